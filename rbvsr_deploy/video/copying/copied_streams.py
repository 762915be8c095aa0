"""Copies everything except the video: audio, subtitles, data, attachments, chapters and tags."""

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
from rbvsr_deploy.video.pyav import media_errors, reason
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

# Seconds to read before an excerpt, for subtitles that reach into it, and after it, for badly
# interleaved packets.
_BEFORE, _AFTER = 10, 10
_DISCARD_ALL = 48  # AVDISCARD_ALL
# Formats whose muxer writes the time code from the video's tags.
_TIMECODES = ("matroska", "mov", "mp4")


class _StreamWriter(Protocol):
    """Converts the packets of one stream for the output."""

    output: Stream

    @property
    def damage(self) -> str | None: ...

    def convert(self, packet: Packet[Any] | None) -> Iterator[Packet[Any]]: ...


class CopiedStreams:
    """Copies the other streams, chapters and tags of a video source into the output.

    Packets are copied unchanged; streams that the container cannot hold are re-encoded if possible.
    The file is opened a second time and read in step with the video, so that memory use stays
    bounded however the file interleaves its streams.

    Args:
        source: the video source.
        target: the output, to which streams are added; its header must not be written yet.
        window: the time span of the source to copy; ``None``: everything.
        options: whether to keep audio and subtitles.
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
        self._writers: dict[int, _StreamWriter] = {}
        self._clocks: defaultdict[int, Follower] = defaultdict(
            lambda: Follower(source.discontinuities)
        )
        with media_errors(f"cannot read {source.path}"):
            self._container = source.open_container()
        target.metadata.update(portable_tags(self._container.metadata))
        target.set_chapters(_chapters(self._container.chapters(), window))
        for stream in self._container.streams:
            if stream.index != source.stream_index:
                self._add(stream)
        self._packets = self._convert()
        self._held = next(self._packets, None)

    @property
    def start(self) -> Fraction | None:
        """Decoding time in seconds of the next packet to write; ``None`` at the end."""
        return None if self._held is None else _seconds(self._held[1])

    def advance(self, until: Fraction | None) -> None:
        """Write the packets up to a time.

        Args:
            until: time in seconds on the output's clock; ``None``: all remaining packets.

        Raises:
            MediaError: the source cannot be read, or the output cannot be written.
        """
        while self._held is not None and (until is None or _seconds(self._held[1]) <= until):
            self._write(*self._held)
            self._held = next(self._packets, None)

    def close(self) -> None:
        """Close the source's file."""
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
            return  # the muxer writes it from the chapters, or from the video's tag
        if stream.type == "video" and not is_cover(stream):
            self._report("%s is left out: only one video stream is upscaled", _describe(stream))
            return
        problem = None
        for open_writer in self._candidates(stream):
            found = _problem(open_writer, container=container)
            if found is None:
                writer = open_writer(self._target)
                copy_tags(stream, writer.output, container=container)
                self._writers[stream.index] = writer
                if problem is not None:
                    self._report(
                        "%s is converted to %s: %s cannot hold it unchanged",
                        _describe(stream),
                        getattr(writer, "description", ""),
                        container,
                    )
                return
            problem = problem or found
        if problem != NO_DECODER:
            problem = f"{container} cannot hold it ({problem})"
            if container != "matroska" and stream.type != "data":
                problem += "; .mkv can"
        self._report("%s is left out: %s", _describe(stream), problem)

    def _candidates(self, stream: Stream) -> list[Callable[[OutputContainer], _StreamWriter]]:
        """Return the writers to try for a stream, the best one first."""
        from av.audio.stream import AudioStream
        from av.subtitles.stream import SubtitleStream

        window = self._window
        if is_cover(stream) and self._target.format.name == "matroska":
            return [lambda target: CoverAttachment(stream, target, self._path)]
        candidates: list[Callable[[OutputContainer], _StreamWriter]] = [
            lambda target: PacketCopy(stream, target, window)
        ]
        if codec_name(stream) is None:  # it cannot be decoded either
            return candidates
        if isinstance(stream, AudioStream):
            candidates.append(lambda target: TranscodedAudio(stream, target, window))
        if isinstance(stream, SubtitleStream):
            candidates.append(lambda target: ConvertedText(stream, target, window))
        return candidates

    def _convert(self) -> Generator[tuple[int, Packet[Any]], None, None]:
        """Yield the packets to write, each with the index of its stream in the source."""
        for packet in self._demux():
            yield from self._converted(packet.stream.index, packet)
        for index in list(self._writers):
            yield from self._converted(index, None)
        for index, writer in self._writers.items():
            if writer.damage is not None:
                logger.warning(
                    "%s of %s is damaged; %s",
                    _describe(self._container.streams[index]),
                    self._path,
                    writer.damage,
                )

    def _converted(
        self, index: int, packet: Packet[Any] | None
    ) -> Iterator[tuple[int, Packet[Any]]]:
        import av

        writer = self._writers.get(index)
        if writer is None:
            return
        try:
            for converted in writer.convert(packet):
                yield index, converted
        except (av.FFmpegError, ValueError) as error:
            self._abandon(index, error)

    def _demux(self) -> Iterator[Packet[Any]]:
        streams = [
            stream
            for stream in self._container.streams
            if stream.index in self._writers and stream.type != "attachment"
        ]
        if not streams:
            return
        pending = {stream.index for stream in streams if not is_cover(stream)}
        end = None if self._window is None else self._window.source_end
        with media_errors(f"cannot read {self._path} any further"):
            self._skip_to_window()
            for packet in self._container.demux(streams):
                if packet.size and self._clocks[packet.stream.index].move(packet):
                    yield packet  # the final flush packets are empty
                if end is not None and packet.size and _seconds(packet) >= end:
                    pending.discard(packet.stream.index)
                    if not pending or _seconds(packet) >= end + _AFTER:
                        return

    def _skip_to_window(self) -> None:
        import av

        if self._window is None or self._window.start <= _BEFORE:
            return
        if has_index(self._container):
            with contextlib.suppress(av.FFmpegError):  # if seeking fails, read from the start
                self._container.seek(int((self._window.start - _BEFORE) * av.time_base))

    def _write(self, index: int, packet: Packet[Any]) -> None:
        import av

        if index not in self._writers:
            return
        with media_errors(f"cannot write the output ({_describe(self._container.streams[index])})"):
            try:
                self._target.mux_one(packet)
            except (av.InvalidDataError, av.ArgumentError) as error:
                # The muxer parses packets of some codecs; a bad one must not stop the video.
                self._abandon(index, error)

    def _abandon(self, index: int, error: Exception) -> None:
        stream = self._container.streams[index]
        logger.warning("the rest of %s is left out: %s", _describe(stream), reason(error))
        self._writers.pop(index, None)

    def _report(self, message: str, *values: object) -> None:
        logger.log(logging.DEBUG if self._reported else logging.WARNING, message, *values)


def _problem(
    open_writer: Callable[[OutputContainer], _StreamWriter], *, container: str
) -> str | None:
    """Return why the container cannot hold a stream, found by trying; ``None`` if it can."""
    import av

    try:
        trial = av.open(io.BytesIO(), "w", format=container)
        try:
            open_writer(trial)
            trial.start_encoding()
        finally:
            # In some formats, a file without packets is invalid; only the header matters here.
            with contextlib.suppress(Exception):
                trial.close()
    except (av.FFmpegError, ValueError) as error:
        return reason(error)
    return None


def _chapters(chapters: list[Chapter], window: TimeWindow | None) -> list[Chapter]:
    """Return the chapters that overlap the window, clipped to it."""
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
    """Return whether a stream is the track in which MP4 and MOV keep their chapter titles.

    FFmpeg reads it with the header and discards its packets; PyAV 17 does not expose this.
    """
    return getattr(stream, "discard", None) == _DISCARD_ALL


def _describe(stream: Stream) -> str:
    codec = codec_name(stream)
    language = f", {stream.language}" if stream.language else ""
    return f"{stream.type} stream {stream.index} ({codec or 'unknown codec'}{language})"


def _seconds(packet: Packet[Any]) -> Fraction:
    stamp = packet.dts if packet.dts is not None else packet.pts
    return (stamp or 0) * packet.time_base
