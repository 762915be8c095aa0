"""How much is done at once, so that it fits the memory: window, batch and bands.

The pictures do not depend on the plan. What is counted are the arrays and intermediate results of
the graphs; Python, the libraries, the decoder and the encoder come on top.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rbvsr_deploy.engines.base import Network
from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.units import show_bytes

__all__ = ["MemoryPlan", "choose_plan"]

# Maps of C channels that a step of the trunks or a pass of cleaning holds at once, and maps of
# ``head_channels`` that ``reconstruct`` does. ONNX Runtime 1.32 on a CPU takes 4.1 and 2.7, for the
# published and the compact size at 320x180.
_STEP_MAPS, _HEAD_MAPS = 6, 3
# Frames per run of the graphs without recurrence: GPUs need several to be busy. On a CPU, four at
# once are no faster than four times one.
_GPU_BATCH = 4
# Rows of a band are not halved below this: the halo is four rows already.
_LEAST_BAND = 8


@dataclass(frozen=True)
class MemoryPlan:
    """How a scene is worked on."""

    window: int
    """Frames whose backward states are held at once; also how far apart states are kept on the
    first pass."""
    batch: int
    """Frames per run of ``clean``, ``flow`` and ``reconstruct``."""
    band: int
    """Rows of the input per run of ``reconstruct``."""
    in_memory: int
    """Cleaned frames held in memory; those beyond wait in a temporary file."""

    def smaller(self) -> MemoryPlan | None:
        """Half as much at once in every respect; ``None`` where nothing is left to halve."""
        window, batch = max(1, self.window // 2), max(1, self.batch // 2)
        band = -(-self.band // 2) if self.band > _LEAST_BAND else self.band
        half = replace(self, window=window, batch=batch, band=band)
        return half if half != self else None

    def __str__(self) -> str:
        batch = "one frame" if self.batch == 1 else f"{self.batch} frames"
        return (
            f"windows of {self.window} frames, {batch} at a time, pictures in bands of "
            f"{self.band} rows"
        )


def choose_plan(
    network: Network,
    *,
    height: int,
    width: int,
    memory: int,
    longest: int,
    ahead: int = 0,
    on_cpu: bool,
    deep: bool = False,
) -> MemoryPlan:
    """The plan that makes most of some memory.

    Args:
        network: what is run.
        height, width: H and W of the input.
        memory: bytes that may be used on the device.
        longest: frames that are propagated at once at most.
        ahead: frames after those that stay on the device.
        on_cpu: whether the device is the host itself, so that waiting frames share its memory.
        deep: whether pictures have 16 bits: they leave the device in floating point.

    Raises:
        RbvsrError: even one frame at a time does not fit.
    """
    item = np.dtype(network.precision).itemsize
    pixels = height * width
    frame, flow = 3 * item * pixels, 2 * 4 * pixels
    state = network.channels * item * pixels
    # What is held for every frame of a batch: its block (three at once) with two flows, its
    # forward states (three buffers), the widest maps, the picture in floating point and in bytes;
    # and two pictures on their way out.
    sample = item + 2 if deep else 1
    block = 3 * (frame + 2 * flow) + 2 * 16 * 3 * sample * pixels
    head = _HEAD_MAPS * network.head_channels * item * pixels + 16 * 3 * (2 * 4 + item + 1) * pixels
    steps = (_STEP_MAPS + 3) * state + ahead * (frame + 2 * flow)

    def fixed(batch: int, rows: int) -> int:
        return steps + batch * (block + 3 * state + head * rows // height)

    batch, band = 1 if on_cpu else min(_GPU_BATCH, longest), height
    while batch > 1 and fixed(batch, band) > memory // 2:
        batch -= 1
    while band > _LEAST_BAND and fixed(batch, band) > memory // 2:
        band = -(-band // 2)
    room = memory - fixed(batch, band)
    each = state + (frame if on_cpu else 0)
    if room < each:
        least = fixed(1, min(_LEAST_BAND, height)) + each
        raise RbvsrError(
            f"{width}x{height} needs {show_bytes(least)} of memory at least, and "
            f"{show_bytes(memory)} may be used: allow more with --memory, or scale the input down"
        )
    window = min(longest, room // each)
    return MemoryPlan(window=window, batch=min(batch, window), band=band, in_memory=room // each)
