"""Reads the frames of a unit, and checks that they are those that the unit was made for."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.cluster.index import checksum
from rbvsr_deploy.cluster.messages import UnitTask
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video import Frame, Source, numbered, open_source

__all__ = ["PartCuts"]


class PartCuts(Closing):
    """Yields the frames of a unit, each compared with what it was when its scenes were found."""

    def __init__(self, task: UnitTask) -> None:
        self._task = task
        self._stamps = memoryview(task.stamps).cast("q")
        self._sums = memoryview(task.sums).cast("I")
        self._whole: Source | None = None

    def mark(self, source: Source, *, skip: int) -> Iterator[tuple[Frame, bool]]:
        """Yield the frames from number ``skip`` on, each with whether a scene begins with it.

        Raises:
            MediaError: the input gives other frames than before.
        """
        task, starts = self._task, set(self._task.starts)
        if skip == task.stop:
            return
        frames = source.frames_from(skip, pts=self._stamps[skip - task.first])
        for number in range(skip, task.stop):
            frame = self._next(frames, number)
            if frame is None and self._whole is None:
                # What is decoded from a key frame differs from a whole pass: take the latter.
                self._whole = open_source(task.path, task.reading)
                self._whole.keeps_captions = source.keeps_captions
                frames = itertools.islice(self._whole, number, None)
                frame = self._next(frames, number)
            if frame is None:
                raise MediaError(
                    f"frame {number} of {task.path} is not the one it was when its scenes were "
                    "found: it was changed during the run, or its decoder does not repeat itself"
                )
            # A sink for the unit alone would begin to count with it.
            yield dataclasses.replace(frame, name=frame.name or numbered(number)), number in starts

    def close(self) -> None:
        if self._whole is not None:
            self._whole.close()

    def _next(self, frames: Iterator[Frame], number: int) -> Frame | None:
        """Return the next frame if it is what it should be."""
        try:
            frame = next(frames, None)
        except MediaError:
            if self._whole is not None:
                raise
            return None
        same = frame is not None and checksum(frame) == self._sums[number - self._task.first]
        return frame if same else None
