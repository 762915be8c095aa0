"""Which part of a source's time goes into the output, for what is copied beside the pictures."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av import Packet

__all__ = ["TimeWindow"]


@dataclass(frozen=True)
class TimeWindow:
    """The time of the pictures that are written, where they are not all of the source's."""

    start: Fraction
    """Seconds on the source's clock that become 0."""
    end: Fraction | None
    """Seconds on the output's clock, where the last picture ends; ``None``: not known yet."""
    holds_negative: bool
    """Whether the output can hold what begins before 0 and reaches beyond."""

    @property
    def source_end(self) -> Fraction | None:
        """``end`` on the source's clock."""
        return None if self.end is None else self.start + self.end

    def place(self, packet: Packet[Any], *, clip: bool) -> bool:
        """Moves a packet to its time in the output.

        Args:
            packet: of the source, with at least one time stamp.
            clip: whether to shorten what reaches over the borders; sound and data cannot be.

        Returns:
            Whether any of it lies in the window.
        """
        base = packet.time_base
        stamp = packet.pts if packet.pts is not None else packet.dts
        begin = (stamp or 0) * base - self.start
        end = begin + (packet.duration or 0) * base
        if (self.end is not None and begin >= self.end) or (begin < 0 and end <= 0):
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
