"""Assigns timestamps to frames: keeps plausible ones and repairs the others."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av import VideoFrame

__all__ = ["NOTABLE_SHIFT", "Clock"]

logger = logging.getLogger(__name__)

NOTABLE_SHIFT = Fraction(1, 2000)
"""Seconds by which a frame may move without a warning: this is invisible, and more than the
rounding in formats with a constant frame rate.
"""

# Maximum number of frames that wait for the next plausible stamp; limits memory use.
_LONGEST_WAIT = 8


class Clock:
    """Assigns increasing timestamps to the frames of a video.

    Stamps that increase are kept, however irregular they are. A frame whose stamp is missing or
    does not increase follows the previous frame by the average duration, or is spaced evenly
    between its neighbours if there is not enough room.

    Args:
        path: the file, for warnings.
        time_base: seconds per tick.
        rate: average frames per second.
    """

    def __init__(self, path: Path, *, time_base: Fraction, rate: Fraction) -> None:
        self._path = path
        self._period = 1 / (rate * time_base)  # in ticks, like all times below
        self._rate = rate
        self._last: Fraction | None = None  # stamp of the previous frame, before rounding
        self._assigned = 0  # the same stamp, as it was returned
        self._waiting: list[VideoFrame] = []
        self._by_decoding = False
        self._frames = self._repaired = 0

    def read(self, frames: Iterable[VideoFrame]) -> Iterator[tuple[VideoFrame, int]]:
        """Yield the frames, each with its stamp in ticks.

        Args:
            frames: decoded frames in presentation order.
        """
        for frame in frames:
            self._frames += 1
            stamp = self._own_stamp(frame)
            if stamp is not None and self._last is not None and stamp <= self._assigned:
                self._repaired += 1
                stamp = None
            if stamp is None:
                self._waiting.append(frame)
                if len(self._waiting) == _LONGEST_WAIT:
                    yield from self._place(None)
            else:
                yield from self._place(stamp)
                assigned = self._next(Fraction(stamp))
                self._repaired += assigned != stamp
                yield frame, assigned
        yield from self._place(None)

    @property
    def repaired(self) -> int:
        """Number of frames so far whose stamp was not kept."""
        return self._repaired

    def report(self) -> None:
        """Log a warning about the repairs so far, if there were any."""
        if self._frames and self._repaired == self._frames:
            logger.warning(
                "%s has no timestamps; its frames are shown at %.6g per second",
                self._path,
                float(self._rate),
            )
        elif self._repaired:
            logger.warning(
                "timestamps of %s that were missing or did not increase: %d; these frames are "
                "shown between their neighbours",
                self._path,
                self._repaired,
            )

    def _own_stamp(self, frame: VideoFrame) -> int | None:
        stamp = _stamp(frame)
        if stamp is None:
            # With decoding times, the last frames leave the decoder after the last packet, hence
            # without a time.
            self._repaired += not self._by_decoding
            return None
        self._by_decoding |= frame.pts is None
        return stamp

    def _place(self, stamp: int | None) -> Iterator[tuple[VideoFrame, int]]:
        """Assign stamps to the waiting frames, up to the stamp of the frame after them."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        step = self._period
        if self._last is None:
            before = -step if stamp is None else stamp - step * (len(waiting) + 1)
        else:
            before = self._last
            if stamp is not None:
                step = min(step, (stamp - before) / (len(waiting) + 1))
        for number, frame in enumerate(waiting, start=1):
            yield frame, self._next(before + step * number)

    def _next(self, exact: Fraction) -> int:
        stamp = round(exact)
        if self._last is not None and stamp <= self._assigned:
            # No free tick is left between the neighbours.
            stamp = self._assigned + 1
            exact = Fraction(stamp)
        self._last, self._assigned = exact, stamp
        return stamp


def _stamp(frame: VideoFrame) -> int | None:
    # Formats without presentation times, such as AVI, only give the time of decoding.
    return frame.pts if frame.pts is not None else frame.dts
