"""Upscales single frames of an input, each in the middle of a short excerpt.

The excerpt goes through the same stream as a whole video, so that the frame can draw on those
before and after it.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.pixels import Image, eight_bits
from rbvsr_deploy.runtime.scenes import CutDetector
from rbvsr_deploy.runtime.stream import Stream
from rbvsr_deploy.video import Frame, ReadOptions, Source

__all__ = ["AROUND", "Sample", "around", "label_of", "upscale_middle"]

AROUND = 5
"""Frames before and after the one that is shown: those further away hardly affect it."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Holds the frame in the middle of an excerpt, before and after, in 8 bits."""

    frame: Frame
    upscaled: NDArray[np.uint8]
    seconds_per_frame: float


def around(number: int, *, frames: int, rate: Fraction, reading: ReadOptions) -> ReadOptions:
    """Return the options to read the frames around one of them, assuming a constant frame rate."""
    first = max(0, number - AROUND)
    start = reading.start
    if first:
        # Half a frame earlier, as timestamps are rounded to the file's ticks.
        start = (start or 0) + (first - Fraction(1, 2)) / rate
    return dataclasses.replace(
        reading, start=start, frames=min(frames, number + AROUND + 1) - first
    )


def upscale_middle(stream: Stream, source: Source, *, middle: int, scene_cuts: bool) -> Sample:
    """Upscale an excerpt and keep its middle frame, or the last one if the excerpt is shorter."""
    cuts = CutDetector() if scene_cuts else None
    kept: Frame | None = None
    upscaled: Image | None = None
    read = done = 0
    seconds = 0.0
    frames = iter(source)
    while True:
        frame = next(frames, None)
        cut = frame is not None and cuts is not None and cuts.is_cut(frame.image)
        start = time.perf_counter()
        for result in stream.flush() if frame is None else stream.push(frame.image, cut=cut):
            if done <= middle:
                upscaled = result.image
            done += 1
        seconds += time.perf_counter() - start
        if frame is None:
            break
        if read <= middle:
            kept = frame
        read += 1
    assert kept is not None
    assert upscaled is not None
    return Sample(kept, eight_bits(upscaled), seconds / done)


def label_of(frame: Frame, source: Source) -> str:
    """Return the file name of an image in a folder, else the time since the input's first frame."""
    if frame.name is not None:
        return frame.name
    offset = source.excerpt.offset if source.excerpt is not None else Fraction(0)
    minutes, seconds = divmod((frame.pts or 0) * source.time_base + offset, 60)
    hours, minutes = divmod(int(minutes), 60)
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{float(seconds):06.3f}"
