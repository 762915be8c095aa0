"""Exports a network as a single ONNX file that upscales the middle frame of a window of frames.

That is the convention of TSPAN and other temporal networks, which vs-mlrt and the programs built on
it run: the frames of the window are the channels of one image, in the order of time. Nothing is
carried from window to window, so the result differs from the recurrent network on the whole video;
:func:`export_window` measures by how much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rbvsr_deploy.bundle import check_bundle_path
from rbvsr_deploy.checkpoint import load_checkpoint
from rbvsr_deploy.engines.onnx_runtime import import_onnxruntime
from rbvsr_deploy.engines.pytorch import TorchEngine
from rbvsr_deploy.errors import ExportError
from rbvsr_deploy.export.calibration import read_clip
from rbvsr_deploy.export.onnx_export import DEFAULT_OPSET, export_module
from rbvsr_deploy.files import write_atomically
from rbvsr_deploy.model import RealBasicVSR
from rbvsr_deploy.pixels import psnr_of
from rbvsr_deploy.runtime.stream import Settings, Stream

__all__ = ["WINDOWS", "WindowDifference", "export_window"]

WINDOWS = (5, 7)
"""Numbers of frames that a window may have."""

_FRAMES = 15
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class WindowDifference:
    """Says how far windows are from the network on the whole clip, both cleaned once."""

    frames: int
    clip: str
    psnr: float
    """PSNR in dB of 8-bit RGB over all frames."""
    worst_psnr: float
    """PSNR in dB of the worst frame."""
    max_levels: int
    """Largest difference of a sample, in levels of 255."""


class _Window(nn.Module):
    """Upscales the middle frame: (1, 3T, H, W) RGB in [0, 1] to (1, 3, 4H, 4W)."""

    def __init__(self, model: RealBasicVSR, frames: int) -> None:
        super().__init__()
        self.model = model
        self.frames = frames

    def forward(self, window: Tensor) -> Tensor:
        model, middle = self.model, self.frames // 2
        frames = [window[:, 3 * i : 3 * i + 3] for i in range(self.frames)]
        if model.has_cleaning:
            frames = [model.clean(frame)[0] for frame in frames]
        state = torch.zeros_like(frames[0][:, :1]).repeat(1, model.config.mid_channels, 1, 1)
        no_flow = torch.zeros_like(frames[0][:, :2])
        backward = model.backward_step(frames[-1], state, no_flow)
        for i in range(self.frames - 2, middle - 1, -1):
            flow = model.flow(frames[i], frames[i + 1])
            backward = model.backward_step(frames[i], backward, flow)
        forward = model.forward_step(frames[0], state, no_flow)
        for i in range(1, middle + 1):
            flow = model.flow(frames[i], frames[i - 1])
            forward = model.forward_step(frames[i], forward, flow)
        return model.reconstruct(frames[middle], backward, forward).clamp(0.0, 1.0)


def export_window(
    checkpoint: Path,
    output: Path,
    *,
    frames: int,
    opset: int = DEFAULT_OPSET,
    clip: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> WindowDifference:
    """Export a checkpoint as one ONNX file for windows, in float32, with dynamic H and W.

    Args:
        checkpoint: a checkpoint in any layout that :mod:`rbvsr_deploy.checkpoint` accepts.
        output: the ONNX file to write; an existing one is replaced once it is verified.
        frames: T, one of :data:`WINDOWS`.
        opset: 17, 18 or 19.
        clip: video or image folder to measure the difference on; a moving texture if ``None``.
        report: called with one line per step.

    Returns:
        The difference from the recurrent network.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ExportError: it cannot be exported, or the file computes something else than the model.
        BundleError: the output cannot be written.
        MediaError: the clip is missing or cannot be read.
        ValueError: ``frames`` or ``opset`` is not allowed.
    """
    if frames not in WINDOWS:
        raise ValueError(
            f"a window must have {' or '.join(map(str, WINDOWS))} frames, not {frames}"
        )
    check_bundle_path(output)
    images = _moving_texture() if clip is None else read_clip(clip).images[:_FRAMES]
    loaded = load_checkpoint(checkpoint)
    report(f"loaded {checkpoint.name} ({loaded.layout})")
    module = _Window(loaded.model, frames).eval().requires_grad_(False)
    model = export_module(
        module,
        torch.rand(1, 3 * frames, 40, 56),
        names=("input", "output"),
        shapes=((1, 3 * frames, "H", "W"), (1, 3, "4H", "4W")),
        opset=opset,
    )
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    report(f"exported a window of {frames} frames: {len(model.graph.node)} nodes")
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    # Threads that spin while they wait take the cores from torch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(window: NDArray[np.float32]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = session.run(["output"], {"input": window})[0]
        return result

    _verify(module, run, frames)
    found = _difference(
        loaded.model, images, run, frames, name="a moving texture" if clip is None else clip.name
    )
    write_atomically(output, data)
    return found


def _verify(module: _Window, run: Callable[[Any], Any], frames: int) -> None:
    """Compare the file with the module at sizes that it was not exported with."""
    generator = torch.Generator().manual_seed(1)
    for size in ((33, 46), (50, 37)):
        window = torch.rand(1, 3 * frames, *size, generator=generator)
        with torch.no_grad():
            want = module(window).numpy()
        worst = float(np.abs(run(window.numpy()) - want).max())
        if not worst <= _TOLERANCE:
            raise ExportError(
                f"the exported window differs from the model by {worst:.2g} at "
                f"{size[1]}x{size[0]}, more than {_TOLERANCE:g}: use a version of torch that this "
                "toolkit is tested with"
            )


def _difference(
    model: RealBasicVSR,
    images: NDArray[np.uint8],
    run: Callable[[Any], Any],
    frames: int,
    *,
    name: str,
) -> WindowDifference:
    """Compare windows with the runtime on a clip; beyond its ends, frames are repeated."""
    with (
        TorchEngine(model, name="checkpoint") as engine,
        Stream(engine, Settings(cleanings=1), size=images.shape[1:3]) as stream,
    ):
        exact = [frame.image for image in images for frame in stream.push(image)]
        exact += [frame.image for frame in stream.flush()]
    scaled = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    errors, largest = [], 0.0
    for i, want in enumerate(exact):
        around = np.arange(i - frames // 2, i + frames // 2 + 1).clip(0, len(images) - 1)
        window = scaled[around].reshape(1, 3 * frames, *images.shape[1:3])
        got = np.rint(255 * run(window)[0].transpose(1, 2, 0))
        change = got - want.astype(np.float64)
        errors.append(float((change**2).mean()))
        largest = max(largest, float(np.abs(change).max()))
    psnr, worst = (
        round(psnr_of(error, peak=255.0, most=100.0), 2)
        for error in (float(np.mean(errors)), max(errors))
    )
    return WindowDifference(len(exact), name, psnr, worst, int(largest))


def _moving_texture() -> NDArray[np.uint8]:
    """Return frames (T, 64, 96, 3) of waves that move by a fraction of a pixel, with grain."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:64, 0:96][..., None]
    clip = []
    for t in range(_FRAMES):
        moved = x + 0.7 * t
        waves = np.sin(moved / 3) + np.cos((y - 0.4 * t) / 4) + np.sin((moved + y) / 7)
        colours = np.concatenate((waves, np.roll(waves, 5, 0), -waves), axis=2)
        clip.append(127.5 + 40 * colours + rng.normal(0, 4, colours.shape))
    return np.stack(clip).clip(0, 255).astype(np.uint8)
