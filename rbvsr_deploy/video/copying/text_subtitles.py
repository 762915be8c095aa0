"""Converts text subtitles to the format that the output container supports."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

from rbvsr_deploy.video.copying.time_window import TimeWindow
from rbvsr_deploy.video.pyav import reason

if TYPE_CHECKING:
    from av import Packet
    from av.container import OutputContainer
    from av.stream import Stream
    from av.subtitles.stream import SubtitleStream

__all__ = ["ConvertedText"]

logger = logging.getLogger(__name__)

# Containers that support text subtitles, and the encoder for their format.
_TEXT_FORMATS = {"mp4": "mov_text", "mov": "mov_text", "webm": "webvtt", "matroska": "subrip"}


class ConvertedText:
    """Converts a text subtitle stream to the text format of the output container.

    Bold, italics and other styles are kept as far as the format supports them.

    Args:
        source: the stream to convert.
        target: the output, to which a stream is added.
        window: the time span of the source to convert; ``None``: everything.

    Raises:
        av.FFmpegError, ValueError: the subtitles are not text, or the container does not support
            text subtitles.
    """

    output: Stream
    """The stream that was added."""

    def __init__(
        self, source: SubtitleStream, target: OutputContainer, window: TimeWindow | None
    ) -> None:
        decoder = source.codec_context
        if not decoder.codec.text_sub:
            raise ValueError("its subtitles are bitmaps")
        name = _TEXT_FORMATS.get(target.format.name)
        if name is None:
            raise ValueError("text subtitles are not supported")
        decoder.open(strict=False)
        self._decoder = decoder
        self._window = window
        self._stream = cast("SubtitleStream", target.add_stream(name))
        self._encoder = self._stream.codec_context
        # The encoder needs the style definitions of the source.
        self._encoder.subtitle_header = decoder.subtitle_header
        base = source.time_base or Fraction(1, 1000)
        self._encoder.time_base = self._stream.time_base = base
        self.output = self._stream
        self._damaged = 0

    @property
    def description(self) -> str:
        """Human-readable name of the format that is written."""
        return self._encoder.name

    @property
    def damage(self) -> str | None:
        """Human-readable summary of unreadable texts; ``None`` if there are none."""
        return f"unreadable texts: {self._damaged}" if self._damaged else None

    def convert(self, packet: Packet[Any] | None) -> Iterator[Packet[Any]]:
        """Yield the packets to write for the next packet of the source.

        Args:
            packet: the next packet of the stream; ``None`` after the last one.
        """
        import av

        if packet is None or not packet.size:
            return
        if self._window is not None and not self._window.place(packet, clip=True):
            return
        try:
            text = self._decoder.decode2(packet)
            if text is None:
                return
            converted = self._encoder.encode_subtitle(text)
        except av.FFmpegError as error:
            self._damaged += 1
            logger.debug("unreadable subtitle: %s", reason(error))
            return
        converted.stream = self._stream
        converted.time_base = packet.time_base
        converted.pts = converted.dts = packet.pts
        converted.duration = packet.duration
        yield converted
