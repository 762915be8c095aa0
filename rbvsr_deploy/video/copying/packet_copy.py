"""Streams whose packets go from the source into the output as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rbvsr_deploy.video.copying.time_window import TimeWindow
from rbvsr_deploy.video.copying.transcoded_audio import named_layout
from rbvsr_deploy.video.pyav import open_input

if TYPE_CHECKING:
    from av import Packet
    from av.codec.context import CodecContext
    from av.container import OutputContainer
    from av.stream import Disposition, Stream

__all__ = [
    "NO_DECODER",
    "CoverAttachment",
    "PacketCopy",
    "codec_name",
    "copy_tags",
    "is_cover",
    "portable_tags",
]

# Written by the muxer itself, or true of the source's file only.
_OWN_TAGS = frozenset(
    {"major_brand", "minor_version", "compatible_brands", "encoder", "vendor_id", "duration"}
)
_STATISTICS = ("bps", "number_of_", "_statistics")

# FFmpeg's MPEG-TS takes anything, but nobody can tell afterwards what it was.
_TOLD_IN_TS = frozenset(
    {
        *("aac", "aac_latm", "ac3", "dts", "eac3", "mp1", "mp2", "mp3", "opus", "s302m", "truehd"),
        *("dvb_subtitle", "dvb_teletext", "hdmv_pgs_subtitle", "hdmv_text_subtitle"),
        *("bin_data", "klv", "smpte_2038", "timed_id3"),
    }
)
# What FFmpeg reads back from an AVI as it was, besides PCM.
_TOLD_IN_AVI = frozenset({"aac", "ac3", "dts", "mp2", "mp3", "wmav1", "wmav2", "wmapro"})
NO_DECODER = "this build of FFmpeg does not know its codec"

_EMPTY_TEXT = 2  # bytes that tell the length of what follows
# Seconds by which sound in an AVI, which has no times, may begin early or late.
_NOTABLE_SHIFT = 0.005
# Of two codes that ISO 639-2 has for a language, MOV knows the older one.
_OLDER_CODES = {
    "bod": "tib",
    "ces": "cze",
    "cym": "wel",
    "deu": "ger",
    "ell": "gre",
    "eus": "baq",
    "fas": "per",
    "hye": "arm",
    "isl": "ice",
    "kat": "geo",
    "mkd": "mac",
    "mri": "mao",
    "msa": "may",
    "mya": "bur",
    "nld": "dut",
    "ron": "rum",
    "slk": "slo",
    "sqi": "alb",
    "zho": "chi",
}
# What FFmpeg's MP4 and MOV can tell of timed data: the positions that cameras record.
_TOLD_IN_MP4 = frozenset({"bin_data"})


class PacketCopy:
    """A stream that is copied packet by packet.

    Args:
        source: the stream to copy.
        target: the output, which a stream is added to.
        window: what of the source is taken; ``None``: everything.

    Raises:
        av.FFmpegError, ValueError: the container cannot hold it.
    """

    output: Stream
    """The stream that was added."""
    damage = None

    def __init__(self, source: Stream, target: OutputContainer, window: TimeWindow | None) -> None:
        from av.audio.stream import AudioStream

        _check_told(source, container=target.format.name)
        self._window = None if is_cover(source) else window
        self._clip = source.type == "subtitle"
        # MP4's text has an empty one after each, which the muxer writes itself.
        self._rests = codec_name(source) == "mov_text"
        self.output = target.add_stream_from_template(source)
        if isinstance(source, AudioStream) and target.format.name == "mp4":
            # Which has to tell where the loudspeakers stand.
            context = cast("AudioStream", self.output).codec_context
            context.layout = named_layout(source.codec_context.layout)
        self.output.time_base = source.time_base

    def take(self, packet: Packet[Any] | None) -> Iterator[Packet[Any]]:
        """Yields the packets to write after another one of the source.

        Args:
            packet: the next of the stream; ``None``: there are no more.
        """
        if packet is None:
            return
        if packet.dts is None and packet.pts is None:
            if not packet.size:
                return
            packet.dts = packet.pts = 0  # cover pictures belong to no time
        if self._rests and packet.size <= _EMPTY_TEXT:
            return
        if self._window is None or self._window.place(packet, clip=self._clip):
            packet.stream = self.output
            yield packet


class CoverAttachment:
    """A cover picture as an attached file, as Matroska has it.

    Args:
        source: the stream that holds the picture.
        target: the output, which an attachment is added to.
        path: of the source's file.

    Raises:
        av.FFmpegError, OSError: it cannot be read.
    """

    output: Stream
    """The attachment that was added."""
    damage = None

    def __init__(self, source: Stream, target: OutputContainer, path: Path) -> None:
        codec = codec_name(source)
        kind = "jpeg" if codec == "mjpeg" else codec
        name = source.metadata.get("filename", f"cover.{'jpg' if kind == 'jpeg' else kind}")
        with open_input(path) as container:
            picture = next(container.demux(container.streams[source.index]))
            self.output = target.add_attachment(
                name, source.metadata.get("mimetype", f"image/{kind}"), bytes(picture)
            )

    def take(self, packet: Packet[Any] | None) -> Iterator[Packet[Any]]:
        """Yields nothing: the picture is in the output's header."""
        return iter(())


def portable_tags(tags: dict[str, str]) -> dict[str, str]:
    """The tags of a file or stream that are still true of a copy."""
    return {
        name: value
        for name, value in tags.items()
        if name.lower() not in _OWN_TAGS and not name.lower().startswith(_STATISTICS)
    }


def is_cover(stream: Stream) -> bool:
    """Whether a stream is a picture that stands for the whole file."""
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def codec_name(stream: Stream) -> str | None:
    """FFmpeg's name of a stream's codec, whichever decoder there is; ``None`` without a decoder.

    Of an attachment it is the name of the file.
    """
    context: CodecContext | None = stream.codec_context
    return getattr(stream, "name", None) if context is None else context.codec.canonical_name


def copy_tags(source: Stream, output: Stream, *, container: str) -> None:
    """Gives a copy the language, title and the like of its original, and its disposition."""
    tags = portable_tags(source.metadata)
    if "name" in tags:  # as MP4 calls it, and FFmpeg only where it reads
        tags.setdefault("title", tags.pop("name"))
    if container == "mov" and "language" in tags:
        tags["language"] = _OLDER_CODES.get(tags["language"], tags["language"])
    output.metadata.update(tags)
    output.disposition = cast("Disposition", source.disposition.value)  # PyAV 17 wants a number


def _check_told(stream: Stream, *, container: str) -> None:
    codec = codec_name(stream) or ""
    if not codec and stream.type not in ("data", "attachment"):
        raise ValueError(NO_DECODER)
    if is_cover(stream) and container != "mp4":
        raise ValueError("it knows no cover pictures")
    if (
        (container == "mpegts" and codec not in _TOLD_IN_TS)
        or (container == "avi" and codec not in _TOLD_IN_AVI and not codec.startswith("pcm_"))
        or (container in ("mp4", "mov") and stream.type == "data" and codec not in _TOLD_IN_MP4)
    ):
        raise ValueError("it has no name for the format")
    if container == "avi" and stream.start_time is not None and stream.time_base is not None:
        start = stream.start_time * stream.time_base
        if abs(start) > _NOTABLE_SHIFT:
            raise ValueError(f"it cannot tell that the sound begins at {float(start):.3f} s")
