"""Finds out which streams a container can hold, by writing the first packets of each."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.video.copying.time_window import TimeWindow
from rbvsr_deploy.video.pyav import media_errors, reason
from rbvsr_deploy.video.timing.file_clock import FileClock

if TYPE_CHECKING:
    from av import Packet
    from av.container import OutputContainer
    from av.stream import Stream

    from rbvsr_deploy.video.video_source import VideoSource

__all__ = ["MakeWriter", "StreamWriter", "Trials"]

# Packets to try of a stream, and to read in all to find them.
_TRIED, _MOST_READ = 4, 400


class StreamWriter(Protocol):
    """Converts the packets of one stream for the output."""

    output: Stream

    @property
    def damage(self) -> str | None: ...

    def convert(self, packet: Packet[Any] | None) -> Iterator[Packet[Any]]: ...


MakeWriter = Callable[["Stream", "OutputContainer", TimeWindow], StreamWriter]
"""Adds a stream to an output, and returns what converts its packets."""


class Trials(Closing):
    """Reads the first packets of the streams of a file, and writes them to files in memory.

    Args:
        source: the video source, whose file is opened again.
        indices: indices of the streams.
        container: FFmpeg's name of the output's format.

    Raises:
        MediaError: the file cannot be read.
    """

    def __init__(self, source: VideoSource, indices: Collection[int], *, container: str) -> None:
        self._container = container
        self._packets: defaultdict[int, list[Packet[Any]]] = defaultdict(list)
        with media_errors(f"cannot read {source.path}"):
            self._file = source.open_container()
        try:
            with media_errors(f"cannot read {source.path} any further"):
                self._read(indices)
        except BaseException:
            self.close()
            raise

    def problem(self, make: MakeWriter, index: int, window: TimeWindow) -> str | None:
        """Return why the container cannot hold a stream as written by ``make``; ``None`` if it can.

        Args:
            make: opens the writer to try.
            index: index of the stream.
            window: the time span of the file to copy.
        """
        import av

        start = self.first_time(index)
        if start is not None:
            window = dataclasses.replace(window, start=start, end=None)
        try:
            trial = av.open(io.BytesIO(), "w", format=self._container)
            written = False
            try:
                writer = make(self._file.streams[index], trial, window)
                trial.start_encoding()
                for packet in (*map(_copy, self._packets[index]), None):
                    for converted in writer.convert(packet):
                        trial.mux_one(converted)
                        written = True
                if written:
                    trial.close()
            finally:
                # In some formats, a file without packets is invalid.
                with contextlib.suppress(Exception):
                    trial.close()
        except (av.FFmpegError, ValueError) as error:
            return reason(error)
        return None

    def first_time(self, index: int) -> Fraction | None:
        """Return the time of a stream's first packet in seconds; ``None`` if there is none soon."""
        first = next(iter(self._packets[index]), None)
        stamp = None if first is None else first.pts if first.pts is not None else first.dts
        return None if first is None or stamp is None else stamp * first.time_base

    def begin(self, index: int, *, start: Fraction) -> Fraction:
        """Return when a stream begins if only whole packets from ``start`` on are kept.

        Args:
            index: index of the stream.
            start: time in seconds that becomes 0.

        Returns:
            Seconds after ``start``.
        """
        time = self.first_time(index)
        if time is None:
            return Fraction(0)
        begin = time - start
        first = self._packets[index][0]
        step = (first.duration or 0) * first.time_base
        if begin < 0 and step:
            begin += math.ceil(-begin / step) * step
        return max(begin, Fraction(0))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, indices: Collection[int]) -> None:
        streams = [s for s in self._file.streams if s.index in indices and s.type != "attachment"]
        missing = {s.index: _TRIED if s.type == "audio" else 1 for s in streams}
        if not missing:
            return
        for number, packet in enumerate(FileClock(self._file).packets(streams)):
            index = packet.stream.index
            if packet.size and index in missing:
                self._packets[index].append(packet)
                missing[index] -= 1
                if not missing[index]:
                    del missing[index]
            if not missing or number >= _MOST_READ:
                return


def _copy(packet: Packet[Any]) -> Packet[Any]:
    """Return a copy of a packet that a writer may change."""
    import av

    copy: Packet[Any] = av.Packet(bytes(packet))
    copy.stream, copy.time_base = packet.stream, packet.time_base
    copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
    copy.is_keyframe = packet.is_keyframe
    return copy
