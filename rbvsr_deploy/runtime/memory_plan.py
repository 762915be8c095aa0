"""Plans how much is done at once, so that it fits into memory: window, batch, bands and frames.

The output does not depend on the plan. The plan counts the arrays and intermediate results of the
graphs; Python, the libraries, the decoder and the encoder come on top.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from rbvsr_deploy.engines.base import Network
from rbvsr_deploy.errors import DeviceMemoryError, RbvsrError
from rbvsr_deploy.graphs import most_frames, widest_map
from rbvsr_deploy.units import show_bytes

__all__ = ["MemoryBudget", "MemoryPlan", "choose_plan"]

logger = logging.getLogger(__name__)

# Maps of C channels that a step of the trunks or a cleaning pass holds at once, and maps of
# ``head_channels`` that ``reconstruct`` holds. ONNX Runtime 1.32 on a CPU takes 4.1 and 2.7, for
# the published and the compact size at 320x180.
_STEP_MAPS, _HEAD_MAPS = 6, 3
# Upscaled frames in float32 that resizing takes at once.
_RESIZED = 5
# Frames per run of the graphs without recurrence: a GPU needs several to be busy. On a CPU, four
# at once are not faster than one four times.
_GPU_BATCH = 4
# Bands are not halved below this many rows: the halo alone has four or more.
_LEAST_BAND = 8
# On a CPU, bands are halved until the head's maps take no more than so many bytes, as long as each
# row of halo has so many rows of its band. That costs no time: in bands of 180, 90, 60 and 45 rows
# with a halo of two, a frame of the published size at 320x180 takes 3.94, 3.95, 3.89 and 3.90 s.
_CPU_MAPS, _ROWS_PER_HALO = 2**29, 22


@dataclass(frozen=True)
class MemoryPlan:
    """Says how much of a scene is processed at once, and how much of it stays on the device."""

    window: int
    """Frames whose backward states are held at once; also the distance between the states kept by
    the first pass."""
    batch: int
    """Frames per run of ``clean``, ``flow`` and ``reconstruct``."""
    band: int
    """Rows of the input per run of ``reconstruct``."""
    in_memory: int
    """Cleaned frames that stay on the device; the others wait in a temporary file."""

    def smaller(self) -> MemoryPlan | None:
        """Return a plan with half as much of everything at once and no frames waiting on the
        device; ``None`` if nothing is left to give up.
        """
        window, batch = max(1, self.window // 2), max(1, self.batch // 2)
        band = -(-self.band // 2) if self.band > _LEAST_BAND else self.band
        half = MemoryPlan(window=window, batch=batch, band=band, in_memory=0)
        return half if half != self else None

    def __str__(self) -> str:
        batch = "one frame" if self.batch == 1 else f"{self.batch} frames"
        return (
            f"windows of {self.window} frames, {batch} at a time, output in bands of "
            f"{self.band} rows"
        )


class MemoryBudget:
    """Holds the memory plan in effect; the only place where it gets smaller."""

    def __init__(self, plan: MemoryPlan) -> None:
        self.plan = plan

    def shrink(self, error: DeviceMemoryError) -> None:
        """Put a smaller plan into effect after the device ran out of memory.

        Raises:
            DeviceMemoryError: ``error``, if the plan cannot get smaller.
        """
        plan = self.plan.smaller()
        if plan is None:
            raise error
        # Only the text of the error: it holds the arrays of the run that failed.
        logger.warning("%s: continuing with %s", str(error), plan)
        self.plan = plan


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
    keeps_uncleaned: bool = False,
    resized: bool = False,
    halo: int | None = None,
    most: tuple[int, int] | None = None,
) -> MemoryPlan:
    """Return the plan that makes the most of some memory.

    Args:
        network: the network that is run.
        height, width: H and W of the input.
        memory: bytes that may be used on the device.
        longest: largest number of frames that are propagated in one go.
        ahead: number of frames after those that are used again and again.
        on_cpu: True if the device is the CPU.
        deep: True for 16-bit output, which leaves the device in floating point.
        keeps_uncleaned: True if frames are also kept as they were before the cleaning.
        resized: True if upscaled frames are resized.
        halo: rows that are needed above and below a band; ``None`` for the network's own.
        most: most frames per run, and most rows per run of ``reconstruct``, that the engine takes;
            ``None`` for any number.

    Raises:
        RbvsrError: even one frame at a time does not fit, or has more values than a GPU can
            address.
    """
    halo = network.halo if halo is None else halo
    item = np.dtype(network.precision).itemsize
    pixels = height * width
    frame, flow = (6 if keeps_uncleaned else 3) * item * pixels, 2 * 4 * pixels
    state = network.channels * item * pixels
    # Held for every frame of a batch: its block (three at once, on a GPU for each branch) with two
    # flows, a copy of its neighbour, its forward states (three buffers, on a GPU two more where
    # backward states are computed), the widest maps, the upscaled frame in floating point and in
    # bytes; and two upscaled frames being downloaded.
    sample = item + 2 if deep else 1
    blocks, buffers = (3, 3) if on_cpu else (6, 5)
    block = blocks * (frame + 2 * flow) + frame + 2 * 16 * 3 * sample * pixels
    maps = _HEAD_MAPS * network.head_channels * item * pixels
    head = maps + 16 * 3 * (2 * 4 + item + 1) * pixels
    head += _RESIZED * 16 * 3 * 4 * pixels * resized
    steps = (_STEP_MAPS + 3) * state + ahead * (frame + 2 * flow)

    def fixed(batch: int, rows: int) -> int:
        return steps + batch * (block + buffers * state + head * rows // height)

    def fits(batch: int, rows: int) -> bool:
        """Return whether a batch takes at most half of the memory, and a GPU can address it."""
        if on_cpu:
            return fixed(batch, rows) <= memory // 2
        pairs = 2 * batch
        within_halo = min(height, rows + 2 * halo)
        runs = [("clean", batch, height), ("flow", pairs, height), ("backward", 1, height)]
        return fixed(batch, rows) <= memory // 2 and all(
            frames <= most_frames(graph, high, width, widest=_widest(network, graph))
            for graph, frames, high in (*runs, ("reconstruct", batch, within_halo))
        )

    most_batch, most_rows = most or (_GPU_BATCH, height)
    batch, band = 1 if on_cpu else min(_GPU_BATCH, longest, most_batch), height
    while batch > 1 and not fits(batch, band):
        batch -= 1
    while band > _LEAST_BAND and (
        not fits(batch, band) or min(height, band + 2 * halo) > most_rows
    ):
        band = -(-band // 2)
    fewest = max(_LEAST_BAND, _ROWS_PER_HALO * halo)
    while on_cpu and maps * band // height > _CPU_MAPS and band >= 2 * fewest:
        band = -(-band // 2)
    if not (on_cpu or most_frames("backward", height, width, widest=_widest(network, "backward"))):
        raise RbvsrError(
            f"{width}x{height} has more values than a GPU can address: scale the input down"
        )
    room = memory - fixed(batch, band)
    if room < state:
        least = fixed(1, min(_LEAST_BAND, height)) + state
        raise RbvsrError(
            f"{width}x{height} needs {show_bytes(least)} of memory at least, and "
            f"{show_bytes(memory)} may be used: allow more, or scale the input down",
            parameters=("memory",),
        )
    # A window holds a state for each of its frames and, if possible, the frame itself: uploading
    # frames again is cheap compared with computing states again. Cleaned frames get the rest.
    window = min(longest, max(1, room // (state + frame)))
    in_memory = (room - window * state) // frame
    return MemoryPlan(window=window, batch=min(batch, window), band=band, in_memory=in_memory)


def _widest(network: Network, graph: str) -> int:
    return widest_map(graph, channels=network.channels, head_channels=network.head_channels)
