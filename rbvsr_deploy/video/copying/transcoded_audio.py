"""Re-encodes audio that the output container cannot hold, packet by packet."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

from rbvsr_deploy.video.copying.time_window import TimeWindow
from rbvsr_deploy.video.pyav import reason

if TYPE_CHECKING:
    from av import AudioFrame, Packet
    from av.audio.layout import AudioLayout
    from av.audio.stream import AudioStream
    from av.container import OutputContainer
    from av.filter import Graph
    from av.stream import Stream

__all__ = ["TranscodedAudio", "named_layout"]

logger = logging.getLogger(__name__)

# Bits per second and channel at which the encoders are transparent, and the maximum number of bits
# per sample for AAC, which limits low sample rates.
_BIT_RATE, _BITS_PER_SAMPLE = 96_000, 4
# The same channels under the names that every decoder supports.
_COMMON_LAYOUTS = {"5.0(side)": "5.0", "5.1(side)": "5.1"}
# The only layout that Opus supports for each number of channels, and the default for that number.
_DEFAULT_LAYOUTS = ("mono", "stereo", "3.0", "quad", "5.0", "5.1", "6.1", "7.1")
# Seconds by which timestamps may be off before silence is inserted or samples are dropped: more
# than the rounding of any container, less than the gap that a lost packet leaves.
_TOLERANCE = 0.01
# Seconds that decoders need to converge.
_PREROLL = 1


class TranscodedAudio:
    """Re-encodes an audio stream to AAC, or to Opus in WebM.

    The audio keeps its timing; missing or damaged parts are replaced by silence. The channels are
    kept, and so is the sample rate if the encoder supports it.

    Args:
        source: the stream to re-encode.
        target: the output, to which a stream is added.
        window: the time span of the source to encode, exact to the sample.
        mix_down: whether to mix the channels to the usual layout for their number, at most 7.1.

    Raises:
        av.FFmpegError, ValueError: here and in ``convert``: the encoder does not support the audio.
    """

    output: Stream
    """The stream that was added."""

    def __init__(
        self,
        source: AudioStream,
        target: OutputContainer,
        window: TimeWindow,
        *,
        mix_down: bool = False,
    ) -> None:
        from av.audio.layout import AudioLayout
        from av.codec import Codec

        name = "libopus" if target.format.name == "webm" else "aac"
        context = source.codec_context
        self._source = source
        self._window = window
        self._rate = _rate(context.sample_rate, Codec(name, "w").audio_rates or ())
        self._stream = cast("AudioStream", target.add_stream(name, rate=self._rate))
        encoder = self._stream.codec_context
        layout = _layout(context.layout, opus=name == "libopus")
        if mix_down:
            layout = _DEFAULT_LAYOUTS[min(context.layout.nb_channels, len(_DEFAULT_LAYOUTS)) - 1]
        encoder.layout = AudioLayout(layout)
        channels = encoder.layout.nb_channels
        encoder.bit_rate = channels * min(_BIT_RATE, _BITS_PER_SAMPLE * self._rate)
        encoder.time_base = self._stream.time_base = Fraction(1, self._rate)
        self.output = self._stream
        self._graph: Graph | None = None
        self._input: tuple[object, ...] = ()
        self._next = Fraction(0)  # start in seconds of the next frame if it has no timestamp
        self._reached: int | None = None  # end of what was resampled, in samples of the encoder
        self._damaged = 0
        self._timeless = target.format.name == "avi"

    @property
    def description(self) -> str:
        """Human-readable description of the format that is written."""
        encoder = self._stream.codec_context
        return f"{encoder.name}, {encoder.layout.name}, {(encoder.bit_rate or 0) // 1000} kbit/s"

    @property
    def damage(self) -> str | None:
        """Human-readable summary of undecodable packets; ``None`` if there are none."""
        return f"undecodable packets: {self._damaged}" if self._damaged else None

    def convert(self, packet: Packet[Any] | None) -> Iterator[Packet[Any]]:
        """Yield the packets to write for the next packet of the source.

        Args:
            packet: the next packet of the stream; ``None`` after the last one.
        """
        import av

        if packet is not None and self._is_before(packet):
            return
        try:
            frames = self._source.codec_context.decode(packet)
        except av.FFmpegError as error:
            self._damaged += 1
            logger.debug("undecodable audio packet: %s", reason(error))
            frames = []
        for frame in frames:
            yield from self._encode(self._resampled(frame))
        if packet is None:
            yield from self._encode(self._flushed())
            yield from self._stream.encode(None)

    def _is_before(self, packet: Packet[Any]) -> bool:
        """Return whether a packet is so far before the window that it need not be decoded."""
        if packet.pts is None:
            return False
        return packet.pts * packet.time_base < self._window.start - _PREROLL

    def _encode(self, frames: Iterator[AudioFrame]) -> Iterator[Packet[Any]]:
        for frame in frames:
            for packet in self._stream.encode(frame):
                # AAC starts with priming samples, for which AVI has no time.
                if not self._timeless or packet.pts is None or packet.pts >= 0:
                    yield packet

    def _resampled(self, frame: AudioFrame) -> Iterator[AudioFrame]:
        """Yield decoded audio in the format of the encoder, within the window, without gaps."""
        if frame.pts is None:
            frame.time_base = Fraction(1, frame.sample_rate)
            frame.pts = round(self._next * frame.sample_rate)
        base = frame.time_base or Fraction(1, frame.sample_rate)
        self._next = frame.pts * base + Fraction(frame.samples, frame.sample_rate)
        input_format = (frame.sample_rate, frame.format.name, frame.layout.name, base)
        if input_format != self._input:
            yield from self._flushed()
            self._input = input_format
            self._graph = self._make_graph(*input_format)
        assert self._graph is not None
        self._graph.push(frame)
        yield from self._filtered()

    def _flushed(self) -> Iterator[AudioFrame]:
        """Yield the frames buffered in the filter graph, and discard the graph."""
        if self._graph is not None:
            self._graph.push(None)
            yield from self._filtered()
            self._graph = None

    def _filtered(self) -> Iterator[AudioFrame]:
        import av

        assert self._graph is not None
        shift = self._samples(self._window.start)
        while True:
            try:
                frame = cast("AudioFrame", self._graph.pull())
            except (av.BlockingIOError, av.EOFError):
                return
            if frame.pts is not None:
                self._reached = frame.pts + frame.samples
                frame.pts -= shift
            yield frame

    def _make_graph(self, rate: int, sample_format: str, layout: str, base: Fraction) -> Graph:
        from av.filter import Graph

        encoder = self._stream.codec_context
        # In a container without timestamps, playback begins with the first sample. If the format
        # changes, the audio goes on where it was.
        start = self._samples(self._window.start)
        begin = start if self._timeless and self._reached is None else self._reached
        first = "" if begin is None else f":first_pts={begin}"
        graph = Graph()
        chain = [
            graph.add(
                "abuffer",
                sample_rate=str(rate),
                sample_fmt=sample_format,
                channel_layout=layout,
                time_base=str(base),
            ),
            graph.add("aresample", f"{self._rate}:async=1:min_hard_comp={_TOLERANCE}{first}"),
            graph.add(
                "aformat",
                sample_rates=str(self._rate),
                sample_fmts=encoder.format.name,
                channel_layouts=encoder.layout.name,
            ),
        ]
        limits = f"start_pts={start}"
        if self._window.source_end is not None:
            limits += f":end_pts={self._samples(self._window.source_end)}"
        chain.append(graph.add("atrim", limits))
        chain.append(graph.add("abuffersink"))
        graph.link_nodes(*chain).configure()
        return graph

    def _samples(self, seconds: Fraction) -> int:
        return round(seconds * self._rate)


def _rate(requested: int, supported: Sequence[int]) -> int:
    """Return the sample rate itself, or the next higher supported one, or the highest."""
    if not supported or requested in supported:
        return requested
    return min((rate for rate in supported if rate > requested), default=max(supported))


def named_layout(layout: AudioLayout) -> str:
    """Return the layout's name; the default one if only the number of channels is known."""
    number = layout.nb_channels
    if layout.name.endswith(" channels") and number <= len(_DEFAULT_LAYOUTS):
        return _DEFAULT_LAYOUTS[number - 1]
    return layout.name


def _layout(layout: AudioLayout, *, opus: bool) -> str:
    if opus and layout.nb_channels <= len(_DEFAULT_LAYOUTS):
        return _DEFAULT_LAYOUTS[layout.nb_channels - 1]
    name = named_layout(layout)
    return _COMMON_LAYOUTS.get(name, name)
