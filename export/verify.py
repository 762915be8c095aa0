"""Verifies exported graphs against the torch model, output by output, before a bundle is written.

The inputs are realistic: a moving texture runs through the float32 model step by step, and every
graph receives the model's own intermediate results, at two sizes that are not multiples of 32. The
flow between frames is shifted off whole pixels, where a sampler that has fallen back to "nearest"
would go unnoticed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rbvsr_deploy.errors import ExportError
from rbvsr_deploy.graphs import GRAPHS, Precision
from rbvsr_deploy.pixels import psnr_of
from rbvsr_deploy.resampling import example_inputs

__all__ = ["MAX_DIFFERENCE", "MIN_PSNR", "verify_graphs"]

SIZES = ((1, 45, 70), (2, 71, 37))
"""Test sizes (N, H, W)."""

MAX_DIFFERENCE = 1e-4
"""Tolerance for float32 outputs, relative to the output's largest value if that is above 1."""

MIN_PSNR = 50.0
"""Minimum PSNR in dB of float16 outputs; the peak is the output's largest value, at least 1."""

Call = tuple[str, tuple[Tensor, ...], tuple[Tensor, ...]]
"""Graph name, inputs, expected outputs; all float32 or uint8."""


def verify_graphs(
    graphs: Mapping[str, bytes], reference: Mapping[str, nn.Module], *, precision: Precision
) -> dict[str, Any]:
    """Run every graph under ONNX Runtime's CPU provider and compare it with the float32 torch
    model.

    Args:
        graphs: serialised ONNX models by graph name; a subset is allowed.
        reference: the float32 modules of the same model, by graph name.
        precision: float type of ``graphs``.

    Returns:
        The record for the manifest: the largest absolute difference, the largest value and the
        PSNR in dB (for uint8, the largest difference in levels) per graph, output and size.

    Raises:
        ExportError: ONNX Runtime rejects a graph, or outputs exceed the tolerance; lists every
            such output with its figures.
    """
    from rbvsr_deploy.engines.onnx_runtime import import_onnxruntime

    onnxruntime = import_onnxruntime()

    record: dict[str, Any] = {
        "runtime": f"onnxruntime {onnxruntime.__version__} CPU",
        "outputs": {},
    }
    failures = []
    sessions = {}
    for name, data in graphs.items():
        try:
            sessions[name] = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ExportError(f"graph '{name}' is rejected by ONNX Runtime: {error}") from error
    for n, height, width in SIZES:
        for name, inputs, expected in _calls(reference, n, height, width):
            if name not in sessions:
                continue
            spec = GRAPHS[name]
            feeds = {
                item.name: value.numpy().astype(item.numpy_dtype(precision), copy=False)
                for item, value in zip(spec.inputs, inputs, strict=True)
            }
            try:
                outputs = sessions[name].run([item.name for item in spec.outputs], feeds)
            except Exception as error:
                raise ExportError(
                    f"graph '{name}' fails in ONNX Runtime at {n}x{height}x{width}: {error}"
                ) from error
            for item, got, want in zip(spec.outputs, outputs, expected, strict=True):
                figures = _compare(got, want.numpy())
                record["outputs"].setdefault(name, {}).setdefault(item.name, {})[
                    f"{n}x{height}x{width}"
                ] = figures
                if not _passes(figures, precision):
                    failures.append(f"{name}.{item.name} at {n}x{height}x{width}: {figures}")
    if failures:
        raise ExportError(
            f"{len(failures)} outputs differ from the torch model by more than the tolerance "
            f"({MAX_DIFFERENCE} in float32, {MIN_PSNR} dB in float16, 1 level in uint8): "
            f"{'; '.join(failures)}"
        )
    return record


def _compare(got: NDArray[Any], want: NDArray[Any]) -> dict[str, float]:
    if got.shape != want.shape or not np.isfinite(got).all():
        return {"max_difference": math.inf, "peak": 0.0, "psnr": -math.inf}
    difference = got.astype(np.float64) - want.astype(np.float64)
    if want.dtype == np.uint8:
        return {"max_levels": float(np.abs(difference).max())}
    peak = max(1.0, float(np.abs(want).max()))
    mse = float((difference**2).mean())
    return {
        "max_difference": float(f"{np.abs(difference).max():.3g}"),
        "peak": float(f"{peak:.3g}"),
        "psnr": round(psnr_of(mse, peak=peak, most=200.0), 1),
    }


def _passes(figures: Mapping[str, float], precision: Precision) -> bool:
    if "max_levels" in figures:
        return figures["max_levels"] <= 1
    if precision == "float16":
        return figures["psnr"] >= MIN_PSNR
    return figures["max_difference"] <= MAX_DIFFERENCE * figures["peak"]


@torch.no_grad()
def _calls(modules: Mapping[str, nn.Module], n: int, height: int, width: int) -> list[Call]:
    """Return calls of every graph, with their inputs in a sequence of two frames."""
    calls: list[Call] = []

    def call(name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = modules[name](*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        calls.append((name, inputs, outputs))
        return outputs

    frames = [call("ingest", image)[0] for image in _moving_texture(n, height, width)]
    if "clean" in modules:
        frames = [call("clean", frame)[0] for frame in frames]
    earlier, later = frames
    sub_pixel = torch.tensor([0.37, -0.61]).view(1, 2, 1, 1)
    to_next = call("flow", earlier, later)[0] + sub_pixel
    to_previous = call("flow", later, earlier)[0] + sub_pixel
    channels = _state_channels(modules["backward"])
    zero_state, zero_flow = (
        torch.zeros(n, channels, height, width),
        torch.zeros(n, 2, height, width),
    )
    later_state = call("backward", later, zero_state, zero_flow)[0]
    backward_state = call("backward", earlier, later_state, to_next)[0]
    earlier_state = call("forward", earlier, zero_state, zero_flow)[0]
    forward_state = call("forward", later, earlier_state, to_previous)[0]
    upscaled = call("reconstruct", earlier, backward_state, forward_state)[0]
    call("emit", upscaled)
    amount = torch.tensor([0.4])
    if "mix" in modules:
        call("mix", earlier, later, amount)
    call("blend", later, upscaled, amount)
    weights = (torch.from_numpy(array) for array in example_inputs(height, width).values())
    call("resize", upscaled, *weights)
    return calls


def _state_channels(step: nn.Module) -> int:
    """Return the mid channels of a propagation step."""
    return int(step.model.config.mid_channels)  # type: ignore[union-attr, arg-type]


def _moving_texture(n: int, height: int, width: int) -> list[Tensor]:
    """Return two uint8 frames (n, H, W, 3): smooth noise, and the same moved by a fraction of a
    pixel, each with its own grain.
    """
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand(n, 3, height // 4 + 3, width // 4 + 3, generator=generator)
    texture = F.interpolate(
        coarse, size=(height + 4, width + 4), mode="bicubic", align_corners=False
    )
    first = texture[..., 2:-2, 2:-2]
    second = 0.6 * first + 0.4 * texture[..., 2:-2, 3:-1]  # moved by 0.4 px in x
    grain = [0.02 * torch.randn(first.shape, generator=generator) for _ in range(2)]
    return [
        ((frame + g).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        for frame, g in zip((first, second), grain, strict=True)
    ]
