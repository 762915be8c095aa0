"""Everything beside the pictures: sound, subtitles, data, attachments, chapters and titles."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

from rbvsr_deploy.video.copying.packet_copy import (
    NO_DECODER,
    CoverAttachment,
    PacketCopy,
    codec_name,
    copy_tags,
    is_cover,
    portable_tags,
)
from rbvsr_deploy.video.copying.text_subtitles import ConvertedText
from rbvsr_deploy.video.copying.time_window import TimeWindow
from rbvsr_deploy.video.copying.transcoded_audio import TranscodedAudio
from rbvsr_deploy.video.options import WriteOptions
from rbvsr_deploy.video.pyav import media_errors, open_input, reason
from rbvsr_deploy.video.seeking import has_index
from rbvsr_deploy.video.timestamps import Follower

if TYPE_CHECKING:
    from av import Packet
    from av.container import OutputContainer
    from av.container.core import Chapter
    from av.stream import Stream

    from rbvsr_deploy.video.video_source import VideoSource

__all__ = ["CopiedStreams"]

logger = logging.getLogger(__name__)

# Seconds before an excerpt in which subtitles that reach into it are looked for, and seconds behind
# it in which badly interleaved packets are.
_BEFORE, _BEHIND = 10, 10
_DISCARD_ALL = 48  # as FFmpeg counts
# Formats whose muxer writes the time code that the video's tags tell.
_TIMECODES = ("matroska", "mov", "mp4")


class _Way(Protocol):
    """How the packets of a stream get into the output."""

    output: Stream

    @property
    def damage(self) -> str | None: ...

    def take(self, packet: Packet[Any] | None) -> Iterator[Packet[Any]]: ...


class CopiedStreams:
    """What goes from the source's file into the output besides the video.

    Packets are copied as they are; what the container cannot hold is encoded anew where that is
    possible. The file is opened a second time and read along with the video, so that memory stays
    bounded however the file interleaves its streams.

    Args:
        source: the video whose companions are copied.
        target: the output; streams are added to it, so its header must not be written yet.
        window: what of the source's time is taken; ``None``: everything.
        options: what is wanted.
        reported: whether the user already knows which streams are left out or converted.
    """

    def __init__(
        self,
        source: VideoSource,
        *,
        target: OutputContainer,
        window: TimeWindow | None,
        options: WriteOptions,
        reported: bool,
    ) -> None:
        self._path = source.path
        self._reported = reported
        self._target = target
        self._window = window
        self._options = options
        self._ways: dict[int, _Way] = {}
        self._clocks: defaultdict[int, Follower] = defaultdict(
            lambda: Follower(source.discontinuities)
        )
        with media_errors(f"cannot read {source.path}"):
            self._container = open_input(source.path)
        target.metadata.update(portable_tags(self._container.metadata))
        target.set_chapters(_chapters(self._container.chapters(), window))
        for stream in self._container.streams:
            if stream.index != source.stream_index:
                self._add(stream)
        self._packets = self._convert()
        self._held = next(self._packets, None)

    @property
    def start(self) -> Fraction | None:
        """Decoding time in seconds of the packet that is written next, ``None`` at the end."""
        return None if self._held is None else _seconds(self._held[1])

    def advance(self, until: Fraction | None) -> None:
        """Writes the packets up to a time.

        Args:
            until: seconds on the output's clock; ``None``: everything that is left.

        Raises:
            MediaError: the source cannot be read, or the output not be written.
        """
        while self._held is not None and (until is None or _seconds(self._held[1]) <= until):
            self._write(*self._held)
            self._held = next(self._packets, None)

    def close(self) -> None:
        """Frees the source's file."""
        self._packets.close()
        self._container.close()

    def _add(self, stream: Stream) -> None:
        if (stream.type == "audio" and not self._options.audio) or (
            stream.type == "subtitle" and not self._options.subtitles
        ):
            return
        container = self._target.format.name
        if stream.type == "data" and (
            _is_chapter_list(stream) or ("timecode" in stream.metadata and container in _TIMECODES)
        ):
            return  # written from the chapters, and from the video's own tag
        if stream.type == "video" and not is_cover(stream):
            self._tell("%s is left out: only one video stream is enlarged", _describe(stream))
            return
        problem = None
        for make in self._ways_for(stream):
            found = _problem(make, container=container)
            if found is None:
                way = make(self._target)
                copy_tags(stream, way.output, container=container)
                self._ways[stream.index] = way
                if problem is not None:
                    self._tell(
                        "%s becomes %s: %s cannot hold it as it is",
                        _describe(stream),
                        getattr(way, "description", ""),
                        container,
                    )
                return
            problem = problem or found
        if problem != NO_DECODER:
            problem = f"{container} cannot hold it ({problem})"
            if container != "matroska" and stream.type != "data":
                problem += "; an .mkv can"
        self._tell("%s is left out: %s", _describe(stream), problem)

    def _ways_for(self, stream: Stream) -> list[Callable[[OutputContainer], _Way]]:
        """How the stream may get into the output, the best way first."""
        from av.audio.stream import AudioStream
        from av.subtitles.stream import SubtitleStream

        window = self._window
        if is_cover(stream) and self._target.format.name == "matroska":
            return [lambda target: CoverAttachment(stream, target, self._path)]
        ways: list[Callable[[OutputContainer], _Way]] = [
            lambda target: PacketCopy(stream, target, window)
        ]
        if codec_name(stream) is None:  # nor can it be decoded
            return ways
        if isinstance(stream, AudioStream):
            ways.append(lambda target: TranscodedAudio(stream, target, window))
        if isinstance(stream, SubtitleStream):
            ways.append(lambda target: ConvertedText(stream, target, window))
        return ways

    def _convert(self) -> Generator[tuple[int, Packet[Any]], None, None]:
        """Yields the packets to write, each with the number of its stream in the source."""
        for packet in self._demux():
            yield from self._converted(packet.stream.index, packet)
        for index in list(self._ways):
            yield from self._converted(index, None)
        for index, way in self._ways.items():
            if way.damage is not None:
                logger.warning(
                    "%s of %s is damaged; %s",
                    _describe(self._container.streams[index]),
                    self._path,
                    way.damage,
                )

    def _converted(
        self, index: int, packet: Packet[Any] | None
    ) -> Iterator[tuple[int, Packet[Any]]]:
        import av

        way = self._ways.get(index)
        if way is None:
            return
        try:
            for made in way.take(packet):
                yield index, made
        except (av.FFmpegError, ValueError) as error:
            self._give_up(index, error)

    def _demux(self) -> Iterator[Packet[Any]]:
        streams = [
            stream
            for stream in self._container.streams
            if stream.index in self._ways and stream.type != "attachment"
        ]
        if not streams:
            return
        awaited = {stream.index for stream in streams if not is_cover(stream)}
        end = None if self._window is None else self._window.source_end
        with media_errors(f"cannot read {self._path} any further"):
            self._skip_to_window()
            for packet in self._container.demux(streams):
                if packet.size and self._clocks[packet.stream.index].move(packet):
                    yield packet  # the last ones are empty
                if end is not None and packet.size and _seconds(packet) >= end:
                    awaited.discard(packet.stream.index)
                    if not awaited or _seconds(packet) >= end + _BEHIND:
                        return

    def _skip_to_window(self) -> None:
        import av

        if self._window is None or self._window.start <= _BEFORE:
            return
        if has_index(self._container):
            with contextlib.suppress(av.FFmpegError):  # then everything before is read too
                self._container.seek(int((self._window.start - _BEFORE) * av.time_base))

    def _write(self, index: int, packet: Packet[Any]) -> None:
        import av

        if index not in self._ways:
            return
        with media_errors(f"cannot write the output ({_describe(self._container.streams[index])})"):
            try:
                self._target.mux_one(packet)
            except (av.InvalidDataError, av.ArgumentError) as error:
                # The muxer looks into some codecs' packets; the video must not suffer from them.
                self._give_up(index, error)

    def _give_up(self, index: int, error: Exception) -> None:
        stream = self._container.streams[index]
        logger.warning("%s is left out from here: %s", _describe(stream), reason(error))
        self._ways.pop(index, None)

    def _tell(self, message: str, *values: object) -> None:
        logger.log(logging.DEBUG if self._reported else logging.WARNING, message, *values)


def _problem(make: Callable[[OutputContainer], _Way], *, container: str) -> str | None:
    """Why the container cannot hold a stream, or ``None`` where it can; found by trying."""
    import av

    try:
        trial = av.open(io.BytesIO(), "w", format=container)
        try:
            make(trial)
            trial.start_encoding()
        finally:
            # A file without one packet is no valid file in some formats; only the header counts.
            with contextlib.suppress(Exception):
                trial.close()
    except (av.FFmpegError, ValueError) as error:
        return reason(error)
    return None


def _chapters(chapters: list[Chapter], window: TimeWindow | None) -> list[Chapter]:
    """The chapters of which something is in the window, clipped to it."""
    if window is None:
        return chapters
    kept: list[Chapter] = []
    for chapter in chapters:
        base = chapter["time_base"] or Fraction(1)
        start = max(chapter["start"] * base - window.start, Fraction(0))
        end = chapter["end"] * base - window.start
        end = end if window.end is None else min(end, window.end)
        if start < end:
            kept.append({**chapter, "start": round(start / base), "end": round(end / base)})
    return kept


def _is_chapter_list(stream: Stream) -> bool:
    """Whether it is the track in which MP4 and MOV keep the titles of their chapters.

    FFmpeg has read it with the header, and discards its packets; PyAV 17 does not tell.
    """
    return getattr(stream, "discard", None) == _DISCARD_ALL


def _describe(stream: Stream) -> str:
    codec = codec_name(stream)
    language = f", {stream.language}" if stream.language else ""
    return f"{stream.type} stream {stream.index} ({codec or 'unknown codec'}{language})"


def _seconds(packet: Packet[Any]) -> Fraction:
    stamp = packet.dts if packet.dts is not None else packet.pts
    return (stamp or 0) * packet.time_base
