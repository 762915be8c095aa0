"""What is damaged in a video, counted while it is decoded."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.pyav import reason

if TYPE_CHECKING:
    from av import FFmpegError, Packet, VideoFrame
    from av.video.stream import VideoStream

__all__ = ["Damage"]

logger = logging.getLogger(__name__)

# Times that wait for their frames at most; where frames come out at all, no more than 16 do.
_MOST_WAITING = 10_000


class Damage:
    """Frames that are lost, and frames that come out with parts the decoder made up.

    A decoder does not always say that it leaves a frame out. It is lost if a packet had a time and
    no frame has it: unless frames follow each other without a gap, as where a packet holds only
    half a frame, or one that is never shown. Where packets have no times, those that the decoder
    refused are counted.

    Args:
        path: of the video, for messages.
        time_base: seconds per tick.
        rate: average frames per second.
        strict: whether to raise MediaError at the first damage.
        from_start: whether the first packet is that of the video, so that a frame is due for it.
    """

    damaged = 0
    """Frames that came out damaged."""

    def __init__(
        self, path: Path, *, time_base: Fraction, rate: Fraction, strict: bool, from_start: bool
    ) -> None:
        self._path = path
        self._period = 1 / (rate * time_base)
        self._strict = strict
        self._from_start = from_start
        self._waiting: dict[int, bool] = {}  # times of packets; whether they are known as damaged
        self._last: int | None = None
        self._frames = self._refused = self._missing = 0

    @property
    def lost(self) -> int:
        """Frames that did not come out."""
        return max(self._refused, self._missing)

    def packet(self, packet: Packet[VideoStream]) -> None:
        """Takes note of a packet before it is decoded."""
        if packet.size and packet.pts is not None and not packet.is_discard:
            if len(self._waiting) == _MOST_WAITING:
                self._waiting.clear()
                self._missing += _MOST_WAITING
            self._waiting[packet.pts] = packet.is_corrupt

    def refused(self, error: FFmpegError) -> None:
        """Takes note that the decoder refused a packet.

        Raises:
            MediaError: reading is strict.
        """
        self._refused += 1
        logger.debug("after frame %d of %s: %s", self._frames, self._path, reason(error))
        self._stop("cannot be decoded")

    def frame(self, frame: VideoFrame) -> None:
        """Takes note of a decoded frame.

        Raises:
            MediaError: reading is strict, and the frame or one before it is damaged.
        """
        known = False
        if frame.pts is not None:
            if self._last is not None and frame.pts < self._last and frame.pts not in self._waiting:
                self._missing -= self._missing > 0  # it comes late
            known = self._waiting.pop(frame.pts, False)
            passed = [pts for pts in self._waiting if pts < frame.pts]
            for pts in passed:
                del self._waiting[pts]
            self._count(len(passed), until=frame.pts - self._period)
            self._last = frame.pts
        if known or frame.is_corrupt:
            self.damaged += 1
            self._stop("is damaged")
        self._frames += 1

    def finish(self) -> None:
        """Takes note of the end, and says in a warning what was damaged, if anything was.

        Raises:
            MediaError: reading is strict, and a frame at the end is lost.
        """
        if self._waiting and self._last is not None:
            self._count(len(self._waiting), until=max(self._waiting))
        if self.lost:
            logger.warning("damaged frames of %s that are left out: %d", self._path, self.lost)
        if self.damaged:
            logger.warning("damaged frames of %s that are kept: %d", self._path, self.damaged)

    def _count(self, passed: int, *, until: Fraction | int) -> None:
        """Counts packets as lost frames, as many as there is time for since the frame before."""
        if self._last is None:
            missing = passed if self._from_start else 0
        else:
            missing = min(passed, round((until - self._last) / self._period))
        if missing > 0:
            self._missing += missing
            self._stop("cannot be decoded")

    def _stop(self, what: str) -> None:
        if self._strict:
            raise MediaError(
                f"frame {self._frames + 1} of {self._path} {what}: get an undamaged file, or "
                "leave strict out to go on as players do"
            )
