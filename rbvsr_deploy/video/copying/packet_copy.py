"""Copies the packets of a stream from the source to the output unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rbvsr_deploy.video.copying.time_window import TimeWindow
from rbvsr_deploy.video.copying.transcoded_audio import named_layout
from rbvsr_deploy.video.pyav import open_input
from rbvsr_deploy.video.stream_choice import codec_name, is_cover

if TYPE_CHECKING:
    from av import Packet
    from av.container import OutputContainer
    from av.stream import Disposition, Stream

__all__ = [
    "NO_DECODER",
    "UNLISTED_AUDIO",
    "CoverAttachment",
    "PacketCopy",
    "copy_tags",
    "portable_tags",
    "stream_tags",
]

# Written by the muxer itself, or only valid for the source file.
_OWN_TAGS = frozenset(
    {"major_brand", "minor_version", "compatible_brands", "encoder", "vendor_id", "duration"}
)
_STATISTICS = ("bps", "number_of_", "_statistics")

# FFmpeg's MPEG-TS muxer accepts any codec, but only these can be identified in the file.
_TS_CODECS = frozenset(
    {
        *("aac", "aac_latm", "ac3", "dts", "eac3", "mp1", "mp2", "mp3", "opus", "s302m", "truehd"),
        *("dvb_subtitle", "dvb_teletext", "hdmv_pgs_subtitle", "hdmv_text_subtitle"),
        *("bin_data", "klv", "smpte_2038", "timed_id3"),
    }
)
# Codecs, besides PCM, that FFmpeg reads back from an AVI unchanged.
_AVI_CODECS = frozenset({"aac", "ac3", "dts", "mp2", "mp3", "wmav1", "wmav2", "wmapro"})
UNLISTED_AUDIO = frozenset({"wmav1", "wmav2", "wmapro", "wmalossless", "adpcm_ms", "adpcm_ima_wav"})
"""Codecs that Matroska holds as in an AVI, which FFmpeg writes without saying so in its list."""
NO_DECODER = "this build of FFmpeg does not support its codec"

_EMPTY_TEXT = 2  # bytes: only the length field
# Seconds by which audio may start early or late in an AVI, which has no timestamps.
_NOTABLE_SHIFT = 0.005
# MOV uses the bibliographic ISO 639-2 code of languages that have two codes.
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
# Timed data that FFmpeg's MP4 and MOV muxers support: positions recorded by cameras.
_MP4_DATA_CODECS = frozenset({"bin_data"})


class PacketCopy:
    """Copies a stream packet by packet.

    Args:
        source: the stream to copy.
        target: the output, to which a stream is added.
        window: the time span of the source to copy.
        begin: when the stream begins in the output, in seconds.

    Raises:
        av.FFmpegError, ValueError: the container cannot hold the stream.
    """

    output: Stream
    """The stream that was added."""
    damage = None

    def __init__(
        self,
        source: Stream,
        target: OutputContainer,
        window: TimeWindow,
        *,
        begin: Fraction = Fraction(0),
    ) -> None:
        from av.audio.stream import AudioStream

        _check_supported(source, container=target.format.name, begin=begin)
        self._window = None if is_cover(source) else window
        self._clip = source.type == "subtitle"
        # In MP4, each text is followed by an empty one, which the muxer writes itself.
        self._skips_empty = codec_name(source) == "mov_text"
        self.output = target.add_stream_from_template(source)
        if isinstance(source, AudioStream) and target.format.name == "mp4":
            # MP4 requires a channel layout, not only a number of channels.
            context = cast("AudioStream", self.output).codec_context
            context.layout = named_layout(source.codec_context.layout)
        self.output.time_base = source.time_base

    def convert(self, packet: Packet[Any] | None) -> Iterator[Packet[Any]]:
        """Yield the packets to write for the next packet of the source.

        Args:
            packet: the next packet of the stream; ``None`` after the last one.
        """
        if packet is None:
            return
        if packet.dts is None and packet.pts is None:
            if not packet.size:
                return
            packet.dts = packet.pts = 0  # cover images have no timestamp
        if self._skips_empty and packet.size <= _EMPTY_TEXT:
            return
        if self._window is None or self._window.place(packet, clip=self._clip):
            packet.stream = self.output
            yield packet


class CoverAttachment:
    """Copies a cover image to an attachment, which is how Matroska stores it.

    Args:
        source: the stream that holds the image.
        target: the output, to which an attachment is added.
        path: the source file.

    Raises:
        av.FFmpegError, OSError: the image cannot be read.
    """

    output: Stream
    """The attachment that was added."""
    damage = None

    def __init__(self, source: Stream, target: OutputContainer, path: Path) -> None:
        codec = codec_name(source)
        kind = "jpeg" if codec == "mjpeg" else codec
        name = source.metadata.get("filename", f"cover.{'jpg' if kind == 'jpeg' else kind}")
        with open_input(path) as container:
            image = next(container.demux(container.streams[source.index]))
            self.output = target.add_attachment(
                name, source.metadata.get("mimetype", f"image/{kind}"), bytes(image)
            )

    def convert(self, packet: Packet[Any] | None) -> Iterator[Packet[Any]]:
        """Yield nothing: the image is in the output's header."""
        return iter(())


def portable_tags(tags: dict[str, str]) -> dict[str, str]:
    """Return the tags of a file or stream that remain valid for a copy."""
    return {
        name: value
        for name, value in tags.items()
        if name.lower() not in _OWN_TAGS and not name.lower().startswith(_STATISTICS)
    }


def stream_tags(tags: dict[str, str], *, container: str) -> dict[str, str]:
    """Return the tags of a stream, such as language and title, as a container has them."""
    tags = portable_tags(tags)
    if "name" in tags:  # FFmpeg reads this tag from MP4, but writes it as "title"
        tags.setdefault("title", tags.pop("name"))
    if container == "mov" and "language" in tags:
        tags["language"] = _OLDER_CODES.get(tags["language"], tags["language"])
    return tags


def copy_tags(source: Stream, output: Stream, *, container: str) -> None:
    """Copy the tags and the disposition of a stream to its copy."""
    output.metadata.update(stream_tags(source.metadata, container=container))
    output.disposition = cast("Disposition", source.disposition.value)  # PyAV 17 expects an int


def _check_supported(stream: Stream, *, container: str, begin: Fraction) -> None:
    codec = codec_name(stream) or ""
    if not codec and stream.type not in ("data", "attachment"):
        raise ValueError(NO_DECODER)
    if stream.type == "attachment" and container == "webm":
        raise ValueError("attachments are not supported")
    if is_cover(stream) and container != "mp4":
        raise ValueError("cover images are not supported")
    if (
        (container == "mpegts" and codec not in _TS_CODECS)
        or (container == "avi" and codec not in _AVI_CODECS and not codec.startswith("pcm_"))
        or (container in ("mp4", "mov") and stream.type == "data" and codec not in _MP4_DATA_CODECS)
    ):
        raise ValueError("the codec has no identifier there")
    if container == "avi" and begin > _NOTABLE_SHIFT:
        raise ValueError(f"audio must start at 0 s, not at {float(begin):.3f} s")
