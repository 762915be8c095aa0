"""Subtitles as text that the output's container holds in another format only."""

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

# Containers that hold text, and the encoder of the format they hold it in.
_TEXT_FORMATS = {"mp4": "mov_text", "mov": "mov_text", "webm": "webvtt", "matroska": "subrip"}


class ConvertedText:
    """A stream of text subtitles in the format of the output's container.

    What it can say of bold, italics and the like is kept.

    Args:
        source: the stream to convert.
        target: the output, which a stream is added to.
        window: what of the source is taken; ``None``: everything.

    Raises:
        av.FFmpegError, ValueError: the subtitles are no text, or the container holds none.
    """

    output: Stream
    """The stream that was added."""

    def __init__(
        self, source: SubtitleStream, target: OutputContainer, window: TimeWindow | None
    ) -> None:
        decoder = source.codec_context
        if not decoder.codec.text_sub:
            raise ValueError("its subtitles are pictures")
        name = _TEXT_FORMATS.get(target.format.name)
        if name is None:
            raise ValueError("it holds no subtitles as text")
        decoder.open(strict=False)
        self._decoder = decoder
        self._window = window
        self._stream = cast("SubtitleStream", target.add_stream(name))
        self._encoder = self._stream.codec_context
        # Styles and their names, from which the encoder starts.
        self._encoder.subtitle_header = decoder.subtitle_header
        base = source.time_base or Fraction(1, 1000)
        self._encoder.time_base = self._stream.time_base = base
        self.output = self._stream
        self._damaged = 0

    @property
    def description(self) -> str:
        """What is written, for people."""
        return self._encoder.name

    @property
    def damage(self) -> str | None:
        """What could not be taken along, for people."""
        return f"texts that cannot be read: {self._damaged}" if self._damaged else None

    def take(self, packet: Packet[Any] | None) -> Iterator[Packet[Any]]:
        """Yields the packets to write after another one of the source.

        Args:
            packet: the next of the stream; ``None``: there are no more.
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
            logger.debug("a subtitle that cannot be read: %s", reason(error))
            return
        converted.stream = self._stream
        converted.time_base = packet.time_base
        converted.pts = converted.dts = packet.pts
        converted.duration = packet.duration
        yield converted
