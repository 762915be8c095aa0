"""Converts text subtitles to the format that the output container supports."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rbvsr_deploy.video.copying.time_window import TimeWindow
from rbvsr_deploy.video.pyav import reason

if TYPE_CHECKING:
    from av import Packet
    from av.container import OutputContainer
    from av.stream import Stream
    from av.subtitles.stream import SubtitleStream
    from av.subtitles.subtitle import SubtitleSet

__all__ = ["ConvertedText"]

logger = logging.getLogger(__name__)

# Containers that support text subtitles, and the encoder for their format.
_TEXT_FORMATS = {"mp4": "mov_text", "mov": "mov_text", "webm": "webvtt", "matroska": "subrip"}


_LONGEST = 2**14
"""Bytes of a text, or of all that are visible at once; a printed page has 3,000. MP4 cannot hold
64 KiB, and FFmpeg's time to convert a text is quadratic.
"""
_MOST_AT_ONCE = 50
"""Lines that are visible at once; each one that comes or goes makes a text of all of them."""

_LINE_BREAK = r"{\r}\N"


class _Line(NamedTuple):
    """Holds a line that is visible now; times are in ticks."""

    begin: int
    end: int
    text: SubtitleSet
    time_base: Fraction
    size: int
    """Bytes of the text."""


class ConvertedText:
    """Converts a text subtitle stream to the text format of the output container.

    Bold, italics and other styles are kept as far as the format supports them.

    Args:
        source: the stream to convert.
        target: the output, to which a stream is added.
        window: the time span of the source to convert.

    Raises:
        av.FFmpegError, ValueError: the subtitles are not text, or the container does not support
            text subtitles.
    """

    output: Stream
    """The stream that was added."""

    def __init__(self, source: SubtitleStream, target: OutputContainer, window: TimeWindow) -> None:
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
        self._damaged = self._excessive = 0
        # MP4 shows one text at a time: lines that overlap become several texts.
        self._one_at_a_time = name == "mov_text"
        self._shown: list[_Line] = []
        self._position = 0

    @property
    def description(self) -> str:
        """Human-readable name of the format that is written."""
        return self._encoder.name

    @property
    def damage(self) -> str | None:
        """Human-readable summary of texts that were left out; ``None`` if there are none."""
        found = {"unreadable": self._damaged, "too long, or too many at once": self._excessive}
        listed = ", ".join(f"{count} {why}" for why, count in found.items() if count)
        return f"texts left out: {listed}" if listed else None

    def convert(self, packet: Packet[Any] | None) -> Iterator[Packet[Any]]:
        """Yield the packets to write for the next packet of the source.

        Args:
            packet: the next packet of the stream; ``None`` after the last one.
        """
        import av

        if packet is None:
            yield from self._texts(None)
            return
        if not packet.size:
            return
        if packet.size > _LONGEST:
            self._excessive += 1
            return
        if not self._window.place(packet, clip=True):
            return
        try:
            text = self._decoder.decode2(packet)
            if text is None:
                return
            begin, duration = packet.pts or 0, packet.duration or 0
            if self._one_at_a_time and duration:
                yield from self._texts(begin)
                size = packet.size + sum(line.size for line in self._shown)
                if len(self._shown) >= _MOST_AT_ONCE or size > _LONGEST:
                    self._excessive += 1
                    return
                self._shown.append(
                    _Line(begin, begin + duration, text, packet.time_base, packet.size)
                )
                return
            converted = self._encoder.encode_subtitle(text)
        except av.FFmpegError as error:
            self._damaged += 1
            logger.debug("unreadable subtitle: %s", reason(error))
            return
        yield self._placed(converted, begin, duration, packet.time_base)

    def _texts(self, until: int | None) -> Iterator[Packet[Any]]:
        """Yield texts up to a time, each with all the lines that are visible while it is shown."""
        while self._shown:
            begin = max(self._position, self._shown[0].begin)
            end = min(line.end for line in self._shown)
            end = end if until is None else min(end, until)
            if until is not None and begin >= until:
                return
            if end > begin:
                text = _joined([line.text for line in self._shown])
                converted = self._encoder.encode_subtitle(text)
                yield self._placed(converted, begin, end - begin, self._shown[0].time_base)
            self._position = max(begin, end)
            self._shown = [line for line in self._shown if line.end > self._position]

    def _placed(
        self, packet: Packet[Any], pts: int, duration: int, time_base: Fraction
    ) -> Packet[Any]:
        packet.stream = self._stream
        packet.time_base = time_base
        packet.pts = packet.dts = pts
        packet.duration = duration
        return packet


def _joined(texts: list[SubtitleSet]) -> SubtitleSet:
    """Return one text with the lines of several, one below the other."""
    from av.subtitles.subtitle import AssSubtitle, SubtitleSet

    if len(texts) == 1:
        return texts[0]
    events = [part.ass for text in texts for part in text if isinstance(part, AssSubtitle)]
    # The ninth field of an event is its text; {\r} ends the styles of the line before.
    lines = [event.decode(errors="replace").split(",", 8)[-1] for event in events]
    return SubtitleSet.create(
        f"0,0,Default,,0,0,0,,{_LINE_BREAK.join(lines)}".encode(), start=0, end=0, pts=0
    )
