"""Copies everything except the video: audio, subtitles, data, attachments, chapters and tags."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

from rbvsr_deploy.video.copying.packet_copy import (
    NO_DECODER,
    UNLISTED_AUDIO,
    CoverAttachment,
    PacketCopy,
    copy_tags,
    portable_tags,
)
from rbvsr_deploy.video.copying.text_subtitles import ConvertedText
from rbvsr_deploy.video.copying.time_window import TimeWindow
from rbvsr_deploy.video.copying.transcoded_audio import TranscodedAudio
from rbvsr_deploy.video.copying.trials import MakeWriter, StreamWriter, Trials
from rbvsr_deploy.video.options import WriteOptions
from rbvsr_deploy.video.pyav import media_errors, reason
from rbvsr_deploy.video.staging.read_back import Ledger
from rbvsr_deploy.video.stream_choice import (
    codec_name,
    describe,
    is_chapter_list,
    is_cover,
)
from rbvsr_deploy.video.timing.file_clock import FileClock
from rbvsr_deploy.video.timing.seeking import has_index

if TYPE_CHECKING:
    from av import Packet
    from av.audio.stream import AudioStream
    from av.container import OutputContainer
    from av.container.core import Chapter
    from av.stream import Stream
    from av.subtitles.stream import SubtitleStream

    from rbvsr_deploy.video.video_source import VideoSource

__all__ = ["CopiedStreams"]

logger = logging.getLogger(__name__)

# Seconds to read before an excerpt, for subtitles that reach into it, and after it, for badly
# interleaved packets.
_BEFORE, _AFTER = 10, 10
_MOST_CHAPTERS = 10_000  # the time of copying them grows with the square
# Formats whose muxer writes the time code from the video's tags.
_TIMECODES = ("matroska", "mov", "mp4")


class CopiedStreams:
    """Copies the other streams, chapters and tags of a video source into the output.

    Packets are copied unchanged; streams that the container cannot hold are re-encoded if possible.
    The file is opened a second time and read in step with the video, so that memory use stays
    bounded however the file interleaves its streams.

    Args:
        source: the video source.
        target: the output, to which streams are added; its header must not be written yet.
        container: FFmpeg's name of the output's format.
        window: the time span of the source to copy.
        options: whether to keep audio and subtitles.
        ledger: records the packets that are written.
    """

    def __init__(
        self,
        source: VideoSource,
        *,
        target: OutputContainer,
        container: str,
        window: TimeWindow,
        options: WriteOptions,
        ledger: Ledger,
    ) -> None:
        self._path = source.path
        self._changes = source.changes
        self._target = target
        self._container_name = container
        self._window = window
        self._options = options
        self._ledger = ledger
        self._writers: dict[int, StreamWriter] = {}
        self._times: dict[int, Fraction] = {}  # of the last packet written to each stream
        self._refused: Counter[int] = Counter()
        with media_errors(f"cannot read {source.path}"):
            self._container = source.open_container()
        target.metadata.update(portable_tags(self._container.metadata))
        target.set_chapters(self._chapters())
        others = [s for s in self._container.streams if s.index != source.stream_index]
        with Trials(source, {stream.index for stream in others}, container=container) as trials:
            for stream in others:
                self._add(stream, trials)
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

    def _chapters(self) -> list[Chapter]:
        found = self._container.chapters()
        if len(found) > _MOST_CHAPTERS:
            self._changes.drop("chapters", f"there are more than {_MOST_CHAPTERS}")
            return []
        return _within(found, self._window)

    def _add(self, stream: Stream, trials: Trials) -> None:
        if (stream.type == "audio" and not self._options.audio) or (
            stream.type == "subtitle" and not self._options.subtitles
        ):
            return
        container = self._container_name
        if stream.type == "data" and (
            is_chapter_list(stream) or ("timecode" in stream.metadata and container in _TIMECODES)
        ):
            return  # the muxer writes it from the chapters, or from the video's tag
        if stream.type == "video" and not is_cover(stream):
            return  # reported by the source
        problem = None
        unlisted = self._target.format.name != container
        for make in self._candidates(stream, trials):
            # Such outputs cannot be tried in memory.
            untried = unlisted and codec_name(stream) in UNLISTED_AUDIO
            found = None if untried else trials.problem(make, stream.index, self._window)
            if found is None:
                writer = make(stream, self._target, self._window)
                copy_tags(stream, writer.output, container=container)
                self._writers[stream.index] = writer
                if problem is None:
                    self._changes.keep(describe(stream), "copied")
                else:
                    self._changes.convert(
                        describe(stream),
                        f"to {getattr(writer, 'description', '')}, as {container} cannot hold it "
                        "unchanged",
                    )
                return
            problem = problem or found
        if problem != NO_DECODER:
            problem = f"{container} cannot hold it ({problem})"
            if container != "matroska" and stream.type != "data":
                problem += "; .mkv can"
        self._changes.drop(describe(stream), problem or "")

    def _candidates(self, stream: Stream, trials: Trials) -> list[MakeWriter]:
        """Return the writers to try for a stream, the best one first."""
        if is_cover(stream) and self._container_name == "matroska":
            return [lambda stream, target, window: CoverAttachment(stream, target, self._path)]
        begin = trials.begin(stream.index, start=self._window.start)
        candidates: list[MakeWriter] = [
            lambda stream, target, window: PacketCopy(stream, target, window, begin=begin)
        ]
        if codec_name(stream) is None:  # it cannot be decoded either
            return candidates
        if stream.type == "audio":
            candidates += [_transcoded, _mixed_down]
        if stream.type == "subtitle":
            candidates.append(_converted_text)
        return candidates

    def _convert(self) -> Generator[tuple[int, Packet[Any]], None, None]:
        """Yield the packets to write, each with the index of its stream in the source."""
        for packet in self._demux():
            yield from self._converted(packet.stream.index, packet)
        for index in list(self._writers):
            yield from self._converted(index, None)
        for index, number in self._refused.items():
            self._changes.drop(
                f"some packets of {describe(self._container.streams[index])}",
                f"{number} are damaged, or their times go back",
            )
        for index, writer in self._writers.items():
            if writer.damage is not None:
                logger.warning(
                    "%s of %s is damaged; %s",
                    describe(self._container.streams[index]),
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
        end = self._window.source_end
        with media_errors(f"cannot read {self._path} any further"):
            self._skip_to_window()
            for packet in FileClock(self._container).packets(streams):
                if packet.size:
                    yield packet  # the final flush packets are empty
                if end is not None and packet.size and _seconds(packet) >= end:
                    pending.discard(packet.stream.index)
                    if not pending or _seconds(packet) >= end + _AFTER:
                        return

    def _skip_to_window(self) -> None:
        import av

        # The first packets of other streams may come before the first key frame.
        if self._window.start - Fraction(self._container.start_time or 0, av.time_base) <= _BEFORE:
            return
        if has_index(self._container):
            with contextlib.suppress(av.FFmpegError):  # if seeking fails, read from the start
                self._container.seek(int((self._window.start - _BEFORE) * av.time_base))

    def _write(self, index: int, packet: Packet[Any]) -> None:
        import av

        time = _seconds(packet)
        if index not in self._writers:
            return
        if time < self._times.get(index, time):  # no format can hold it
            self._refused[index] += 1
            return
        self._times[index] = time
        with media_errors(f"cannot write the output ({describe(self._container.streams[index])})"):
            try:
                self._ledger.note(packet)
                self._target.mux_one(packet)
            except (av.InvalidDataError, av.ArgumentError) as error:
                # The muxer parses packets of some codecs; a bad one must not stop the others.
                logger.debug("refused packet: %s", reason(error))
                self._refused[index] += 1

    def _abandon(self, index: int, error: Exception) -> None:
        stream = self._container.streams[index]
        self._changes.drop(f"the rest of {describe(stream)}", reason(error))
        self._writers.pop(index, None)


def _transcoded(stream: Stream, target: OutputContainer, window: TimeWindow) -> StreamWriter:
    return TranscodedAudio(cast("AudioStream", stream), target, window)


def _mixed_down(stream: Stream, target: OutputContainer, window: TimeWindow) -> StreamWriter:
    return TranscodedAudio(cast("AudioStream", stream), target, window, mix_down=True)


def _converted_text(stream: Stream, target: OutputContainer, window: TimeWindow) -> StreamWriter:
    return ConvertedText(cast("SubtitleStream", stream), target, window)


def _within(chapters: list[Chapter], window: TimeWindow) -> list[Chapter]:
    """Return the chapters that overlap the window, clipped to it."""
    kept: list[Chapter] = []
    for chapter in chapters:
        base = chapter["time_base"] or Fraction(1)
        start = max(chapter["start"] * base - window.start, Fraction(0))
        end = chapter["end"] * base - window.start
        end = end if window.end is None else min(end, window.end)
        if start < end:
            kept.append({**chapter, "start": round(start / base), "end": round(end / base)})
    return kept


def _seconds(packet: Packet[Any]) -> Fraction:
    stamp = packet.dts if packet.dts is not None else packet.pts
    return (stamp or 0) * packet.time_base
