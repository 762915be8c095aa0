"""Counts lost and damaged frames while a video is decoded."""

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

# Maximum number of packet times that wait for their frames; a working decoder delays 16 at most.
_MOST_WAITING = 10_000


class Damage:
    """Counts frames that are lost, and frames in which the decoder concealed errors.

    A decoder does not always report a dropped frame. A frame is lost if a packet has a timestamp
    that no frame has, unless the frames follow each other without a gap: then the packet held half
    a frame, or one that is never shown. If packets have no timestamps, the packets that the
    decoder rejected are counted.

    Args:
        path: the video, for messages.
        time_base: seconds per tick.
        rate: average frames per second.
        strict: whether to raise MediaError at the first damage.
        from_start: whether decoding starts at the first packet of the video, so that a frame is
            expected for it.
    """

    damaged = 0
    """Number of damaged frames."""

    def __init__(
        self, path: Path, *, time_base: Fraction, rate: Fraction, strict: bool, from_start: bool
    ) -> None:
        self._path = path
        self._period = 1 / (rate * time_base)
        self._strict = strict
        self._from_start = from_start
        self._waiting: dict[int, bool] = {}  # packet time: whether the packet is marked as corrupt
        self._last: int | None = None
        self._frames = self._refused = self._missing = 0

    @property
    def lost(self) -> int:
        """Number of lost frames."""
        return max(self._refused, self._missing)

    def packet(self, packet: Packet[VideoStream]) -> None:
        """Record a packet before it is decoded."""
        if packet.size and packet.pts is not None and not packet.is_discard:
            if len(self._waiting) == _MOST_WAITING:
                self._waiting.clear()
                self._missing += _MOST_WAITING
            self._waiting[packet.pts] = packet.is_corrupt

    def refused(self, error: FFmpegError) -> None:
        """Record that the decoder rejected a packet.

        Raises:
            MediaError: in strict mode.
        """
        self._refused += 1
        logger.debug("after frame %d of %s: %s", self._frames, self._path, reason(error))
        self._stop("cannot be decoded")

    def frame(self, frame: VideoFrame) -> None:
        """Record a decoded frame.

        Raises:
            MediaError: in strict mode, if this frame or an earlier one is damaged.
        """
        known = False
        if frame.pts is not None:
            if self._last is not None and frame.pts < self._last and frame.pts not in self._waiting:
                self._missing -= self._missing > 0  # it was only late
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
        """Count frames lost at the end, and log a warning if anything was damaged.

        Raises:
            MediaError: in strict mode, if a frame at the end is lost.
        """
        if self._waiting and self._last is not None:
            self._count(len(self._waiting), until=max(self._waiting))
        if self.lost:
            logger.warning("damaged frames of %s that are left out: %d", self._path, self.lost)
        if self.damaged:
            logger.warning("damaged frames of %s that are kept: %d", self._path, self.damaged)

    def _count(self, passed: int, *, until: Fraction | int) -> None:
        """Count packets as lost frames, limited by the time since the previous frame."""
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
                f"frame {self._frames + 1} of {self._path} {what}: get an undamaged file, or turn "
                "strict off to decode damaged videos as players do"
            )
