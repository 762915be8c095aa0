"""Time stamps of a video's frames: copied where they can be true, repaired where they cannot."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av import Packet, VideoFrame

__all__ = ["NOTABLE_SHIFT", "Clock", "Discontinuity", "Follower"]

logger = logging.getLogger(__name__)

NOTABLE_SHIFT = Fraction(1, 2000)
"""Seconds by which a frame may move unsaid: nobody sees it, and formats of a constant frame rate
round to less.
"""

# Frames that wait for the next good stamp at most: the memory for them must stay small.
_LONGEST_WAIT = 8
# Seconds. FFmpeg's programs take a longer gap in such formats for a discontinuity, too.
_LONGEST_GAP = 10


@dataclass(frozen=True)
class Discontinuity:
    """Where the clock of a file is set anew."""

    time: Fraction
    """Seconds, as they go on."""
    offset: Fraction
    """Seconds that are added to the file's own times from here on."""


class Clock:
    """Gives every frame of a video its time stamp; the stamps increase.

    Stamps that increase are taken as they are, however they vary. A frame without one, or with one
    that is not above that of the frame before, is put behind the frame before by the average
    duration, or evenly between its neighbours where that is too long. Where the clock itself is set
    anew, all that follows is moved so that it goes on where it was.

    Args:
        path: of the file, for warnings.
        time_base: seconds per tick.
        rate: average frames per second.
        discontinuous: whether a gap of more than ten seconds means a clock that was set anew, as it
            does in transport streams joined from several recordings.
    """

    def __init__(
        self, path: Path, *, time_base: Fraction, rate: Fraction, discontinuous: bool
    ) -> None:
        self._path = path
        self._period = 1 / (rate * time_base)  # in ticks, as all that follows
        self._rate = rate
        self._time_base = time_base
        self._gap = _LONGEST_GAP / time_base
        self._discontinuous = discontinuous
        self._last: Fraction | None = None  # of the frame before, before rounding
        self._given = 0  # the same as it was given out
        self._offset = 0  # what is added since the clock was set anew
        self._waiting: list[VideoFrame] = []
        self._by_decoding = False
        self._frames = self._repaired = 0
        self.discontinuities: list[Discontinuity] = []
        """Where the clock was set anew, as far as frames were read."""

    def read(self, frames: Iterable[VideoFrame]) -> Iterator[tuple[VideoFrame, int]]:
        """Yields the frames, each with its stamp in ticks.

        Args:
            frames: as they leave the decoder, in order of presentation.
        """
        coming = _Peekable(frames)
        for frame in coming:
            self._frames += 1
            stamp = self._own_stamp(frame)
            if stamp is not None and self._last is not None:
                stamp = self._plausible(stamp, coming)
            if stamp is None:
                self._waiting.append(frame)
                if len(self._waiting) == _LONGEST_WAIT:
                    yield from self._place(None)
            else:
                yield from self._place(stamp)
                given = self._next(Fraction(stamp))
                self._repaired += given != stamp
                yield frame, given
        yield from self._place(None)

    def report(self) -> None:
        """Says in a warning what was repaired so far, if anything was."""
        if self._frames and self._repaired == self._frames:
            logger.warning(
                "%s has no time stamps; its frames are shown at %.6g per second",
                self._path,
                float(self._rate),
            )
        elif self._repaired:
            logger.warning(
                "time stamps of %s that were missing or did not increase: %d; these frames are "
                "shown between their neighbours",
                self._path,
                self._repaired,
            )
        if self.discontinuities:
            logger.warning(
                "times at which the clock of %s is set anew: %d; what follows goes on without a "
                "gap",
                self._path,
                len(self.discontinuities),
            )

    def _own_stamp(self, frame: VideoFrame) -> int | None:
        stamp = _stamp(frame)
        if stamp is None:
            # There, the last frames leave it after the last packet, hence without a time.
            self._repaired += not self._by_decoding
            return None
        self._by_decoding |= frame.pts is None
        return stamp + self._offset

    def _plausible(self, stamp: int, coming: _Peekable) -> int | None:
        """The stamp, moved if the clock is set anew with it; ``None`` if it cannot be true."""
        assert self._last is not None
        expected = self._last + self._period * (len(self._waiting) + 1)
        if self._given < stamp and not (self._discontinuous and stamp - expected > self._gap):
            return stamp
        upcoming = coming.peek()
        after = None if upcoming is None else _stamp(upcoming)
        if stamp > self._given:
            goes_on = after is None or after + self._offset > stamp
        else:
            # A little back is mere disorder, which the next stamps make good.
            back = self._given - stamp > _LONGEST_WAIT * self._period
            goes_on = back and after is not None and stamp < after + self._offset <= self._given
        if not goes_on:
            self._repaired += 1
            return None
        self._offset += round(expected) - stamp
        self.discontinuities.append(
            Discontinuity(round(expected) * self._time_base, offset=self._offset * self._time_base)
        )
        return round(expected)

    def _place(self, stamp: int | None) -> Iterator[tuple[VideoFrame, int]]:
        """Gives stamps to the frames that wait, up to that of the frame behind them."""
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
        if self._last is not None and stamp <= self._given:
            # There is no tick left between the neighbours.
            stamp = self._given + 1
            exact = Fraction(stamp)
        self._last, self._given = exact, stamp
        return stamp


def _stamp(frame: VideoFrame) -> int | None:
    # Formats without presentation times, such as AVI, tell when a frame leaves the decoder.
    return frame.pts if frame.pts is not None else frame.dts


class Follower:
    """Moves the packets of one stream beside the video as the video's frames were moved.

    Args:
        discontinuities: where the clock is set anew, in order.
    """

    def __init__(self, discontinuities: Sequence[Discontinuity]) -> None:
        self._ahead = deque(discontinuities)
        self._offset = Fraction(0)
        self._last: Fraction | None = None  # time of the packet before, moved

    def move(self, packet: Packet[Any]) -> bool:
        """Moves a packet; ``False`` if it then lies before the one before, as where a recording is
        joined to one whose sound is longer than its pictures.

        Args:
            packet: the next one.
        """
        base = packet.time_base
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is None:  # cover pictures belong to no time
            return True
        time = stamp * base
        while self._ahead and self._is_over(time + self._offset):
            self._offset = self._ahead.popleft().offset
        if not self._offset:
            self._last = time
            return True
        time += self._offset
        if self._last is not None and time < self._last:
            return False
        shift = round(self._offset / base)
        packet.pts = None if packet.pts is None else packet.pts + shift
        packet.dts = None if packet.dts is None else packet.dts + shift
        self._last = time
        return True

    def _is_over(self, time: Fraction) -> bool:
        """Whether a time is of the other side of the next discontinuity."""
        back = self._last is not None and time < self._last
        return back or time > self._ahead[0].time + _LONGEST_GAP / 2


class _Peekable(Iterator["VideoFrame"]):
    """Frames, of which the next one can be looked at."""

    def __init__(self, frames: Iterable[VideoFrame]) -> None:
        self._frames = iter(frames)
        self._seen: deque[VideoFrame] = deque()

    def __next__(self) -> VideoFrame:
        return self._seen.popleft() if self._seen else next(self._frames)

    def peek(self) -> VideoFrame | None:
        """The next frame, which stays to come; ``None`` at the end."""
        if not self._seen:
            self._seen.extend(frame for frame in (next(self._frames, None),) if frame is not None)
        return self._seen[0] if self._seen else None
