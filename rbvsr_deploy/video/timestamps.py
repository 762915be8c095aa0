"""Assigns timestamps to frames: keeps plausible ones and repairs the others."""

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
"""Seconds by which a frame may move without a warning: this is invisible, and more than the
rounding in formats with a constant frame rate.
"""

# Maximum number of frames that wait for the next plausible stamp; limits memory use.
_LONGEST_WAIT = 8
# Seconds. FFmpeg's tools also treat a longer gap in such formats as a discontinuity.
_LONGEST_GAP = 10


@dataclass(frozen=True)
class Discontinuity:
    """Describes a clock reset in a file."""

    time: Fraction
    """Time of the reset in seconds, on the continuous clock."""
    offset: Fraction
    """Seconds to add to the file's own times after the reset."""


class Clock:
    """Assigns increasing timestamps to the frames of a video.

    Stamps that increase are kept, however irregular they are. A frame whose stamp is missing or
    does not increase follows the previous frame by the average duration, or is spaced evenly
    between its neighbours if there is not enough room. If the clock itself is reset, all later
    times are shifted to continue the previous ones.

    Args:
        path: the file, for warnings.
        time_base: seconds per tick.
        rate: average frames per second.
        discontinuous: whether a gap of more than ten seconds means a clock reset, as in transport
            streams joined from several recordings.
    """

    def __init__(
        self, path: Path, *, time_base: Fraction, rate: Fraction, discontinuous: bool
    ) -> None:
        self._path = path
        self._period = 1 / (rate * time_base)  # in ticks, like all times below
        self._rate = rate
        self._time_base = time_base
        self._gap = _LONGEST_GAP / time_base
        self._discontinuous = discontinuous
        self._last: Fraction | None = None  # stamp of the previous frame, before rounding
        self._assigned = 0  # the same stamp, as it was returned
        self._offset = 0  # added to all stamps since the last clock reset
        self._waiting: list[VideoFrame] = []
        self._by_decoding = False
        self._frames = self._repaired = 0
        self.discontinuities: list[Discontinuity] = []
        """Clock resets in the frames read so far."""

    def read(self, frames: Iterable[VideoFrame]) -> Iterator[tuple[VideoFrame, int]]:
        """Yield the frames, each with its stamp in ticks.

        Args:
            frames: decoded frames in presentation order.
        """
        upcoming = _Peekable(frames)
        for frame in upcoming:
            self._frames += 1
            stamp = self._own_stamp(frame)
            if stamp is not None and self._last is not None:
                stamp = self._plausible(stamp, upcoming)
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
        if self.discontinuities:
            logger.warning(
                "clock resets in %s: %d; the video continues without a gap",
                self._path,
                len(self.discontinuities),
            )

    def _own_stamp(self, frame: VideoFrame) -> int | None:
        stamp = _stamp(frame)
        if stamp is None:
            # With decoding times, the last frames leave the decoder after the last packet, hence
            # without a time.
            self._repaired += not self._by_decoding
            return None
        self._by_decoding |= frame.pts is None
        return stamp + self._offset

    def _plausible(self, stamp: int, upcoming: _Peekable) -> int | None:
        """Return the stamp, shifted if it starts a clock reset; ``None`` if it is implausible."""
        assert self._last is not None
        expected = self._last + self._period * (len(self._waiting) + 1)
        if self._assigned < stamp and not (self._discontinuous and stamp - expected > self._gap):
            return stamp
        following = upcoming.peek()
        after = None if following is None else _stamp(following)
        if stamp > self._assigned:
            is_reset = after is None or after + self._offset > stamp
        else:
            # A small step back is just disorder, which the next stamps resolve.
            back = self._assigned - stamp > _LONGEST_WAIT * self._period
            is_reset = back and after is not None and stamp < after + self._offset <= self._assigned
        if not is_reset:
            self._repaired += 1
            return None
        self._offset += round(expected) - stamp
        self.discontinuities.append(
            Discontinuity(round(expected) * self._time_base, offset=self._offset * self._time_base)
        )
        return round(expected)

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


class Follower:
    """Shifts the packets of another stream at clock resets, as the video's frames were shifted.

    Args:
        discontinuities: the clock resets, in order.
    """

    def __init__(self, discontinuities: Sequence[Discontinuity]) -> None:
        self._ahead = deque(discontinuities)
        self._offset = Fraction(0)
        self._last: Fraction | None = None  # shifted time of the previous packet

    def move(self, packet: Packet[Any]) -> bool:
        """Shift a packet in place.

        Args:
            packet: the next packet of the stream.

        Returns:
            ``False`` if its time is now before that of the previous packet. This happens where
            recordings are joined and the audio of the first is longer than its video.
        """
        base = packet.time_base
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is None:  # cover images have no timestamp
            return True
        time = stamp * base
        while self._ahead and self._is_after_reset(time + self._offset):
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

    def _is_after_reset(self, time: Fraction) -> bool:
        """Return whether a time is after the next clock reset."""
        back = self._last is not None and time < self._last
        return back or time > self._ahead[0].time + _LONGEST_GAP / 2


class _Peekable(Iterator["VideoFrame"]):
    """Iterates over frames and can look ahead by one."""

    def __init__(self, frames: Iterable[VideoFrame]) -> None:
        self._frames = iter(frames)
        self._seen: deque[VideoFrame] = deque()

    def __next__(self) -> VideoFrame:
        return self._seen.popleft() if self._seen else next(self._frames)

    def peek(self) -> VideoFrame | None:
        """Return the next frame without consuming it; ``None`` at the end."""
        if not self._seen:
            self._seen.extend(frame for frame in (next(self._frames, None),) if frame is not None)
        return self._seen[0] if self._seen else None
