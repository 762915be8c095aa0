"""Maps packet times of a source to those of the output, for the streams that are copied."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av import Packet

__all__ = ["TimeWindow"]


@dataclass(frozen=True)
class TimeWindow:
    """Describes the time span of the source that goes into the output."""

    start: Fraction
    """Time in seconds on the source's clock that becomes 0 in the output."""
    end: Fraction | None
    """End of the excerpt, in seconds on the output's clock; ``None``: no end, or not known yet."""
    holds_negative: bool
    """True if the output can hold packets that begin before 0 and end after it."""
    preroll: Fraction = Fraction(0)
    """Seconds of audio and data before 0 to keep, for decoders to warm up."""

    @property
    def source_end(self) -> Fraction | None:
        """``end`` on the source's clock."""
        return None if self.end is None else self.start + self.end

    def place(self, packet: Packet[Any], *, clip: bool) -> bool:
        """Move a packet to its time in the output, in place.

        Args:
            packet: a packet of the source with at least one timestamp.
            clip: whether to clip the packet to the window; not possible for audio and data.

        Returns:
            Whether to write the packet.
        """
        base = packet.time_base
        stamp = packet.pts if packet.pts is not None else packet.dts
        begin = (stamp or 0) * base - self.start
        end = begin + (packet.duration or 0) * base
        before = Fraction(0) if clip else self.preroll
        if (self.end is not None and begin >= self.end) or (begin < 0 and end <= -before):
            return False
        if clip:
            last = end if self.end is None else min(end, self.end)
            packet.pts = packet.dts = round(max(begin, Fraction(0)) / base)
            packet.duration = round(last / base) - packet.pts if packet.duration else 0
            return True
        shift = round(self.start / base)
        packet.pts = None if packet.pts is None else packet.pts - shift
        packet.dts = None if packet.dts is None else packet.dts - shift
        return begin >= 0 or self.holds_negative
