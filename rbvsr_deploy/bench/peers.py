"""Measures other implementations in processes of their own, so that each has its own peak of memory
and its own libraries.

A checkpoint of the network is run by torch as its authors run it, a whole scene in one call, eager
and compiled. An ONNX file is run by ONNX Runtime, frame by frame, with RGB frames (1, 3, H, W) in
[0, 1].
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.bench.machine import PeakMemory
from rbvsr_deploy.bench.pipeline import CLEANINGS
from rbvsr_deploy.bench.result import PeerResult
from rbvsr_deploy.bench.timing import Effort, repeat, summarise
from rbvsr_deploy.engines import CHECKPOINT_SUFFIXES
from rbvsr_deploy.errors import RbvsrError, first_line

__all__ = ["measure_peer"]

_Clip = NDArray[np.uint8]
_Upscale = Callable[[_Clip], _Clip]


def measure_peer(path: Path, clip: _Clip, *, on_gpu: bool, effort: Effort) -> list[PeerResult]:
    """Measure a checkpoint, eager and compiled, or an ONNX file.

    Args:
        path: the file.
        clip: (T, H, W, 3) RGB, the scene to upscale.
        on_gpu: run it on the first GPU instead of the CPU.
        effort: how long to measure.

    Raises:
        RbvsrError: the file is neither, or does not exist.
    """
    if not path.is_file():
        raise RbvsrError(f"the peer '{path}' does not exist: name a checkpoint or an ONNX file")
    if path.suffix in CHECKPOINT_SUFFIXES:
        openers = {"torch, eager": _open_eager, "torch, compiled": _open_compiled}
    elif path.suffix == ".onnx":
        openers = {"onnxruntime, frame by frame": _open_onnx}
    else:
        raise RbvsrError(
            f"the peer '{path}' is neither a checkpoint ({', '.join(CHECKPOINT_SUFFIXES)}) nor an "
            "ONNX file"
        )
    return [
        _in_a_process(f"{path.name}, {how}", opener, path, clip, on_gpu, effort)
        for how, opener in openers.items()
    ]


def _in_a_process(
    name: str, opener: Callable[[Path, bool], _Upscale], *arguments: Any
) -> PeerResult:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        try:
            return pool.submit(_measure, name, opener, *arguments).result()
        except BrokenProcessPool:
            return _unavailable(name, "its process was killed, probably for its memory")


def _measure(
    name: str,
    opener: Callable[[Path, bool], _Upscale],
    path: Path,
    clip: _Clip,
    on_gpu: bool,
    effort: Effort,
) -> PeerResult:
    """Measure one implementation in this process."""
    peak, frames = PeakMemory(), len(clip)
    try:
        upscale = opener(path, on_gpu)
        shape = upscale(clip).shape  # also compiles

        def run() -> float:
            start = time.perf_counter()
            upscale(clip)
            return (time.perf_counter() - start) / frames

        seconds, _ = repeat(run, least_runs=effort.clips, least_seconds=effort.seconds)
    except ImportError as error:
        return _unavailable(name, f"the package '{error.name}' is not installed")
    except Exception as error:  # of any library
        return _unavailable(name, f"it failed: {first_line(error)[:200]}")
    times = summarise(seconds)
    return PeerResult(
        name=name,
        frames_per_second=1000 / times.p50,
        frame_ms=times,
        peak_host_bytes=peak.bytes(),
        scale=shape[1] / clip.shape[1],
        unavailable=None,
    )


def _unavailable(name: str, reason: str) -> PeerResult:
    return PeerResult(
        name=name,
        frames_per_second=None,
        frame_ms=None,
        peak_host_bytes=None,
        scale=None,
        unavailable=reason,
    )


def _open_eager(path: Path, on_gpu: bool) -> _Upscale:
    return _open_torch(path, on_gpu, compiled=False)


def _open_compiled(path: Path, on_gpu: bool) -> _Upscale:
    return _open_torch(path, on_gpu, compiled=True)


def _open_torch(path: Path, on_gpu: bool, *, compiled: bool) -> _Upscale:
    """Open a checkpoint with torch; the returned function upscales a clip in one call."""
    import torch

    from rbvsr_deploy.checkpoint import load_checkpoint

    device = torch.device("cuda" if on_gpu else "cpu")
    model = load_checkpoint(path).model.to(device).eval()
    if compiled:  # its parts: compiling the whole would unroll the scene
        for name in ("clean", "flow", "backward_step", "forward_step", "reconstruct"):
            setattr(model, name, torch.compile(getattr(model, name)))

    @torch.inference_mode()
    def upscale(clip: _Clip) -> _Clip:
        frames = torch.from_numpy(clip).to(device).permute(0, 3, 1, 2)[None] / 255
        images = model(frames, cleanings=CLEANINGS)[0].permute(0, 2, 3, 1)
        result: _Clip = (images * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        return result

    return upscale


def _open_onnx(path: Path, on_gpu: bool) -> _Upscale:
    """Open an ONNX file; the returned function upscales a clip frame by frame."""
    from rbvsr_deploy.engines.onnx_runtime import import_onnxruntime

    onnxruntime = import_onnxruntime()
    providers = ["CUDAExecutionProvider"] if on_gpu else []
    session = onnxruntime.InferenceSession(
        os.fspath(path), providers=[*providers, "CPUExecutionProvider"]
    )
    (wanted,) = session.get_inputs()
    dtype = np.float16 if wanted.type == "tensor(float16)" else np.float32

    def upscale(clip: _Clip) -> _Clip:
        images = []
        for frame in clip:
            values = (frame.transpose(2, 0, 1)[None] / np.float32(255)).astype(dtype)
            (output,) = session.run(None, {wanted.name: values})
            image = np.clip(np.rint(output[0].astype(np.float32) * 255), 0, 255)
            images.append(image.astype(np.uint8).transpose(1, 2, 0))
        return np.stack(images)

    return upscale
