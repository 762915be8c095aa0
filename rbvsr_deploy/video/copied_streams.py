"""Audio, subtitles, attachments, chapters and titles: copied packet by packet, never re-encoded."""

from __future__ import annotations

import io
import logging
from collections.abc import Generator
from fractions import Fraction
from typing import TYPE_CHECKING, cast

from rbvsr_deploy.video.pyav import media_errors, open_input, reason

if TYPE_CHECKING:
    from av import Packet
    from av.container import OutputContainer
    from av.stream import Disposition, Stream

    from rbvsr_deploy.video.video_source import VideoSource

logger = logging.getLogger(__name__)

# Written by the muxer itself, or true of the source's file only.
_OWN_TAGS = frozenset(
    {"major_brand", "minor_version", "compatible_brands", "encoder", "vendor_id", "duration"}
)
_STATISTICS = ("bps", "number_of_", "_statistics")


class CopiedStreams:
    """What goes from the source's file into the output besides the video.

    The file is opened a second time and read along with the video, so that memory stays bounded
    however the file interleaves its streams.

    Args:
        source: the video whose companions are copied.
        target: the output; streams are added to it, so its header must not be written yet.
        told: whether the user knows already which streams are left out.
    """

    def __init__(self, source: VideoSource, *, target: OutputContainer, told: bool = False) -> None:
        self._path = source.path
        self._told = told
        self._target = target
        self._copies: dict[int, Stream] = {}
        with media_errors(f"cannot read {source.path}"):
            self._container = open_input(source.path)
        target.metadata.update(portable_tags(self._container.metadata))
        target.set_chapters(self._container.chapters())
        for stream in self._container.streams:
            if stream.index != source.stream_index:
                self._add(stream)
        self._packets = self._demux()
        self._held = next(self._packets, None)

    @property
    def start(self) -> Fraction | None:
        """Decoding time in seconds of the packet that is written next, ``None`` at the end."""
        return None if self._held is None else _seconds(self._held)

    def advance(self, until: Fraction | None) -> None:
        """Writes the packets up to a time.

        Args:
            until: seconds on the source's clock; ``None``: everything that is left.

        Raises:
            MediaError: the source cannot be read, or the output not be written.
        """
        while self._held is not None and (until is None or _seconds(self._held) <= until):
            self._write(self._held)
            self._held = next(self._packets, None)

    def close(self) -> None:
        """Frees the source's file."""
        self._packets.close()
        self._container.close()

    def _add(self, stream: Stream) -> None:
        refusal = _refusal(stream, container=self._target.format.name)
        if refusal is not None:
            level = logging.DEBUG if self._told else logging.WARNING
            logger.log(level, "%s is left out: %s", _describe(stream), refusal)
            return
        copy = self._target.add_stream_from_template(stream)
        copy.time_base = stream.time_base
        copy.metadata.update(portable_tags(stream.metadata))
        copy.disposition = cast("Disposition", stream.disposition.value)  # PyAV 17 wants a number
        self._copies[stream.index] = copy

    def _demux(self) -> Generator[Packet[Stream], None, None]:
        streams = [stream for stream in self._container.streams if stream.index in self._copies]
        if not streams:
            return
        with media_errors(f"cannot read {self._path} any further"):
            for packet in self._container.demux(streams):
                # The last packets of each stream are empty: they flush decoders.
                if packet.size or packet.dts is not None or packet.pts is not None:
                    yield packet

    def _write(self, packet: Packet[Stream]) -> None:
        import av

        index = packet.stream.index
        copy = self._copies.get(index)
        if copy is None:
            return
        description = _describe(packet.stream)
        if packet.dts is None and packet.pts is None:  # cover pictures belong to no time
            packet.dts = packet.pts = 0
        packet.stream = copy
        with media_errors(f"cannot write the output ({description})"):
            try:
                self._target.mux_one(packet)
            except (av.InvalidDataError, av.ArgumentError) as error:
                # The muxer looks into some codecs' packets; the video must not suffer from them.
                logger.warning("%s is left out from here: %s", description, reason(error))
                del self._copies[index]


def portable_tags(tags: dict[str, str]) -> dict[str, str]:
    """The tags of a file or stream that are still true of a copy."""
    return {
        name: value
        for name, value in tags.items()
        if name.lower() not in _OWN_TAGS and not name.lower().startswith(_STATISTICS)
    }


def _refusal(stream: Stream, *, container: str) -> str | None:
    """Why the container cannot hold the stream, or ``None`` where it can; found by trying."""
    import av

    if stream.type == "video" and not _is_cover(stream):
        return "only the first video stream is enlarged"
    if stream.type == "data":
        return "timed data cannot be copied"
    try:
        trial = av.open(io.BytesIO(), "w", format=container)
        try:
            trial.add_stream_from_template(stream).time_base = stream.time_base
            trial.start_encoding()
        finally:
            _abandon(trial)
    except (av.FFmpegError, ValueError) as error:
        hint = "" if container == "matroska" else "; an output in .mkv may"
        return f"{container} cannot hold it ({reason(error)}){hint}"
    return None


def _abandon(trial: OutputContainer) -> None:
    import contextlib

    # A file without one packet is no valid file in some formats; here only the header counts.
    with contextlib.suppress(Exception):
        trial.close()


def _is_cover(stream: Stream) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def _describe(stream: Stream) -> str:
    codec = stream.codec_context.name if stream.codec_context is not None else stream.name
    language = f", {stream.language}" if stream.language else ""
    return f"{stream.type} stream {stream.index} ({codec or 'unknown codec'}{language})"


def _seconds(packet: Packet[Stream]) -> Fraction:
    stamp = packet.dts if packet.dts is not None else packet.pts
    return (stamp or 0) * packet.time_base
