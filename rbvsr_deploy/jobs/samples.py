"""Upscales single frames of an input, each in the middle of a short excerpt.

The excerpt goes through the same stream as a whole video, so that the frame can draw on those
before and after it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines.base import Engine
from rbvsr_deploy.jobs.page import choose_frames
from rbvsr_deploy.jobs.upscale_file import Progress
from rbvsr_deploy.pixels import Image, eight_bits
from rbvsr_deploy.runtime.output_size import OutputSize
from rbvsr_deploy.runtime.scenes import CutDetector
from rbvsr_deploy.runtime.stream import Settings, Stage, Stream
from rbvsr_deploy.video import Frame, ReadOptions, Source, open_source
from rbvsr_deploy.video.excerpts import EmptyExcerptError

__all__ = ["Sample", "Samples"]

_AROUND = 5
"""Frames before and after the one that is shown: those further away hardly affect it."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Holds the frame in the middle of an excerpt, before and after, in 8 bits."""

    label: str
    """File name of an image in a folder, else the time since the input's first frame."""
    frame: Frame
    upscaled: NDArray[np.uint8]
    seconds_per_frame: float


class Samples:
    """Chooses evenly spread frames of an input, and upscales them.

    Args:
        path: video, image or image folder.
        count: number of frames; fewer if the input has fewer.
        size: how large the output is.
        reading: options for reading the input.

    Raises:
        MediaError: the input cannot be read.
        RbvsrError: the size is out of range for it.
    """

    def __init__(self, path: Path, *, count: int, size: OutputSize, reading: ReadOptions) -> None:
        self._path = path
        with open_source(path, reading) as source:
            self.height, self.width = source.height, source.width
            self.target = size.target(
                height=source.height, width=source.width, sample_aspect=source.sample_aspect
            )
            self.frames = source.frame_count or sum(1 for _ in source)
        self.sample_aspect = (
            source.sample_aspect if self.target is None else self.target.sample_aspect
        )
        """Width of an upscaled pixel divided by its height; ``None``: unknown."""
        self._deep = source.depth > 8
        self.numbers = choose_frames(self.frames, scene_starts=(), at_most=count)
        self._excerpts = [
            _around(number, frames=self.frames, rate=source.rate, reading=reading)
            for number in self.numbers
        ]

    def counted(self, progress: Progress, *, times: int = 1) -> Callable[[Stage, int], None]:
        """Return the progress of streams that upscale the samples some times."""
        total = times * sum(excerpt.frames or 0 for excerpt in self._excerpts)
        done: dict[Stage, int] = {}

        def count(stage: Stage, frames: int) -> None:
            done[stage] = done.get(stage, 0) + frames
            progress(stage, done[stage], total)

        return count

    def stream(
        self, engine: Engine, settings: Settings, *, progress: Callable[[Stage, int], None]
    ) -> Stream:
        """Open a stream for the samples."""
        return Stream(
            engine,
            settings,
            size=(self.height, self.width),
            deep=self._deep,
            target=self.target,
            progress=progress,
        )

    def upscaled(
        self,
        stream: Stream,
        *,
        scene_cuts: bool,
        skipped: Callable[[int, EmptyExcerptError], None],
    ) -> Iterator[Sample]:
        """Yield the samples.

        Args:
            stream: see :meth:`stream`.
            scene_cuts: detect cuts.
            skipped: called with the number of a frame that is not there: a few frames may cover a
                long time where the frame rate varies a lot.
        """
        for number, excerpt in zip(self.numbers, self._excerpts, strict=True):
            try:
                opened = open_source(self._path, excerpt)
            except EmptyExcerptError as error:
                skipped(number, error)
                continue
            with opened:
                yield _upscale_middle(
                    stream, opened, middle=min(_AROUND, number), scene_cuts=scene_cuts
                )


def _around(number: int, *, frames: int, rate: Fraction, reading: ReadOptions) -> ReadOptions:
    """Return the options to read the frames around one of them, assuming a constant frame rate."""
    first = max(0, number - _AROUND)
    start = reading.start
    if first:
        # Half a frame earlier, as timestamps are rounded to the file's ticks.
        start = (start or 0) + (first - Fraction(1, 2)) / rate
    return dataclasses.replace(
        reading, start=start, frames=min(frames, number + _AROUND + 1) - first
    )


def _upscale_middle(stream: Stream, source: Source, *, middle: int, scene_cuts: bool) -> Sample:
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
    return Sample(_label_of(kept, source), kept, eight_bits(upscaled), seconds / done)


def _label_of(frame: Frame, source: Source) -> str:
    if frame.name is not None:
        return frame.name
    offset = source.excerpt.offset if source.excerpt is not None else Fraction(0)
    minutes, seconds = divmod((frame.pts or 0) * source.time_base + offset, 60)
    hours, minutes = divmod(int(minutes), 60)
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{float(seconds):06.3f}"
