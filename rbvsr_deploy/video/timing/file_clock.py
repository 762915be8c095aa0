"""Reads the packets of a file on one clock that does not jump, and finds where its time begins.

The clock of a transport or program stream starts anywhere, wraps around, and jumps where recordings
were joined. A jump is concluded from all audio and video streams together: while one of them goes
on, another that skips time has only paused. Every pass over a file comes to the same conclusions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from rbvsr_deploy.video.stream_choice import is_cover

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer
    from av.stream import Stream

__all__ = ["FileClock"]

_DISCONTINUOUS = 0x0200  # AVFMT_TS_DISCONT: the clock may start anywhere, and jump
_NEVER_JUMPS = ("mp4", "avi")  # their times are sums of durations
# Seconds. FFmpeg's tools also treat a longer gap in discontinuous formats as a jump.
_LONGEST_GAP = 10
_LONGEST_PAUSE = 86_400
"""Seconds without anything in other formats: 32-bit milliseconds wrap around after 25 days."""
# Seconds of audio that a decoder discards at its start; HE-AAC at a low rate takes the longest.
_LONGEST_WARM_UP = Fraction(15, 100)
# Seconds by which packets of one time may be apart in a file.
_INTERLEAVING = 1
# Packets by which a time may go back without a jump.
_DISORDER = 8
_USUAL = Fraction(1, 25)
"""Duration in seconds of a packet that states none."""
_MOST_AHEAD = 2000
"""Maximum number of packets to examine to distinguish a jump from a pause."""

_Verdict = Literal["jump", "pause", "outlier"]


class FileClock:
    """Reads the packets of a newly opened or newly positioned file.

    Args:
        container: the file.
    """

    container: InputContainer
    """The file."""
    jumps = 0
    """Number of jumps of the file's clock so far."""

    def __init__(self, container: InputContainer) -> None:
        self.container = container
        self._discontinuous = bool(container.format.flags & _DISCONTINUOUS)
        self._jumps_possible = not any(n in container.format.name for n in _NEVER_JUMPS)
        self._watched = {
            stream.index: stream
            for stream in container.streams
            if stream.type == "audio" or (stream.type == "video" and not is_cover(stream))
        }
        self._offset = Fraction(0)  # added to times after the last jump
        self._own: dict[int, Fraction] = {}  # the offset that each stream has reached
        self._last: dict[int, Fraction] = {}  # time of each stream's last packet
        self._end: dict[int, Fraction] = {}  # when it ends
        self._first: Fraction | None = None
        self._ahead: deque[Packet[Any]] = deque()
        self._demuxed: Iterator[Packet[Any]] = iter(())

    @property
    def origin(self) -> Fraction:
        """Time in seconds that is the beginning of the file, once a packet is read.

        That is the earliest time of audio and video where the format's clock starts anywhere, or
        has clearly not started with this file. Otherwise it is 0, before which there is only
        audio that decoders need to warm up, or what an edit list hides.
        """
        starts = [
            stream.start_time * stream.time_base
            for stream in self._watched.values()
            if stream.start_time is not None and stream.time_base is not None
        ]
        if self._first is not None:  # what starts at another time does so after a jump
            starts = [start for start in starts if abs(start - self._first) <= _LONGEST_GAP]
        begin = min(starts, default=self._first or Fraction(0))
        early = begin < -_LONGEST_WARM_UP and "mp4" not in self.container.format.name
        late = begin > _LONGEST_GAP
        return begin if self._discontinuous or early or late else Fraction(0)

    def packets(self, wanted: Collection[Stream]) -> Iterator[Packet[Any]]:
        """Yield the packets of some streams, with their times on one clock.

        Raises:
            av.FFmpegError: the file cannot be read.
        """
        indices = {stream.index for stream in wanted}
        everything = indices | (self._watched.keys() if self._jumps_possible else set())
        streams = [s for s in self.container.streams if s.index in everything]
        self._demuxed = self.container.demux(streams)
        while True:
            packet = self._ahead.popleft() if self._ahead else next(self._demuxed, None)
            if packet is None:
                return
            self._place(packet)
            if packet.stream.index in indices:
                yield packet

    def _place(self, packet: Packet[Any]) -> None:
        """Move a packet to its time on the common clock."""
        time = _time(packet)
        if time is None or not packet.size:
            return
        index = packet.stream.index
        if index in self._watched and self._jumps_possible:
            if self._is_odd(index, time):
                verdict = self._judge(packet, time)
                if verdict == "outlier":
                    packet.pts = packet.dts = None  # repaired later
                    return
                if verdict == "jump":
                    self._jump(index, time)
            self._own[index] = self._offset_of(index, time)
            placed = time + self._own[index]
            self._last[index] = placed
            self._end[index] = placed + _duration(packet)
            if self._first is None:
                self._first = placed
            offset = self._own[index]
        else:
            offset = self._nearest(time)
            if self._first is None and index in self._watched:
                self._first = time
        if offset:
            shift = round(offset / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts + shift
            packet.dts = None if packet.dts is None else packet.dts + shift

    @property
    def _now(self) -> Fraction | None:
        return max(self._last.values(), default=None)

    def _goes_on(self, index: int, time: Fraction) -> bool:
        """Return whether a time continues a stream on the clock that it has been on."""
        last = self._last.get(index)
        placed = time + self._own.get(index, self._offset)
        if last is None:
            now = self._now
            return now is None or abs(placed - now) <= _LONGEST_GAP
        back = _DISORDER * (self._end[index] - last)
        return last - back <= placed <= last + _LONGEST_GAP

    def _offset_of(self, index: int, time: Fraction) -> Fraction:
        """Return the offset for a packet: the last jump's, once the stream has reached it."""
        own = self._own.get(index, self._offset)
        if own == self._offset or self._goes_on(index, time):
            return own
        return self._offset

    def _nearest(self, time: Fraction) -> Fraction:
        """Return the offset that brings a packet of any other stream closest to the others."""
        now = self._now
        if now is None:
            return self._offset
        return min({*self._own.values(), self._offset}, key=lambda o: abs(time + o - now))

    def _is_odd(self, index: int, time: Fraction) -> bool:
        """Return whether a packet may be the first after a jump."""
        now = self._now
        if now is None or self._goes_on(index, time):
            return False
        own = self._own.get(index, self._offset)
        if own != self._offset and abs(time + self._offset - now) <= _LONGEST_GAP:
            return False  # it follows the others to the new clock
        placed, last = time + self._offset, self._last.get(index)
        if last is not None and placed < last:
            return True
        longest = _LONGEST_GAP if self._discontinuous else _LONGEST_PAUSE
        return abs(placed - now) > longest

    def _judge(self, odd: Packet[Any], start: Fraction) -> _Verdict:
        """Distinguish a jump of the clock from a pause of one stream and a single wrong time."""
        index = odd.stream.index
        now = self._now
        assert now is not None
        forward = start + self._offset > self._last.get(index, now)
        active = {i for i, last in self._last.items() if last > now - _LONGEST_GAP}
        arrived, follows = {index}, False
        for packet in self._upcoming():
            time, other = _time(packet), packet.stream.index
            if time is None or other not in self._watched:
                continue
            goes_on = self._goes_on(other, time)
            if other == index:
                if goes_on:
                    return "outlier"
                follows = True
            elif goes_on:
                if time + self._own.get(other, self._offset) > now + _INTERLEAVING:
                    return "pause" if forward else "outlier"
            elif abs(time - start) <= _LONGEST_GAP:
                arrived.add(other)
            if follows and arrived >= active:
                return "jump"
        return "jump" if forward or follows else "outlier"

    def _upcoming(self) -> Iterator[Packet[Any]]:
        """Yield the next packets without consuming them."""
        yield from list(self._ahead)
        while len(self._ahead) < _MOST_AHEAD:
            packet = next(self._demuxed, None)
            if packet is None:
                return
            self._ahead.append(packet)
            yield packet

    def _jump(self, index: int, start: Fraction) -> None:
        """Start a new offset, with which the video continues without a gap.

        Without video, no stream overlaps what it had before the jump.
        """
        first, ends = {index: start}, dict(self._end)
        for packet in self._ahead:
            time, other = _time(packet), packet.stream.index
            if time is None or other not in self._watched or other in first:
                continue
            if not self._goes_on(other, time):
                first[other] = time
            elif other in ends:
                own = self._own.get(other, self._offset)
                ends[other] = max(ends[other], time + own + _duration(packet))
        known = {i: ends[i] - time for i, time in first.items() if i in ends}
        videos = [offset for i, offset in known.items() if self._watched[i].type == "video"]
        now = self._now
        assert now is not None
        self._offset = max(videos or known.values(), default=now - start)
        self.jumps += 1


def _time(packet: Packet[Any]) -> Fraction | None:
    stamp = packet.dts if packet.dts is not None else packet.pts
    return None if stamp is None else stamp * packet.time_base


def _duration(packet: Packet[Any]) -> Fraction:
    return packet.duration * packet.time_base if packet.duration else _USUAL
