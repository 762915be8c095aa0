"""Sound that the output's container cannot hold, encoded anew as the packets come by."""

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

# Bits per second and channel with which the encoders cannot be told from the original, and what
# AAC takes at most for each sample of low rates.
_BIT_RATE, _BITS_PER_SAMPLE = 96_000, 4
# The same loudspeakers under the name that every decoder knows.
_COMMON_LAYOUTS = {"5.0(side)": "5.0", "5.1(side)": "5.1"}
# The one layout that Opus knows for each number of channels, and what a number alone stands for.
_USUAL_LAYOUTS = ("mono", "stereo", "3.0", "quad", "5.0", "5.1", "6.1", "7.1")
# Seconds by which time stamps may be off before silence is put in or sound taken out: more than
# any container rounds by, less than a lost packet leaves.
_TOLERANCE = 0.01
# Seconds that decoders need to find in.
_PREROLL = 1


class TranscodedAudio:
    """An audio stream as AAC, or as Opus in WebM.

    The sound keeps its place in time, and silence takes the place of what is missing or damaged.
    Channels stay, and so does the sample rate where the encoder takes it.

    Args:
        source: the stream to encode anew.
        target: the output, which a stream is added to.
        window: what of the source is taken, to the sample; ``None``: everything.

    Raises:
        av.FFmpegError, ValueError: here and in ``take``, where the encoder cannot.
    """

    output: Stream
    """The stream that was added."""

    def __init__(
        self, source: AudioStream, target: OutputContainer, window: TimeWindow | None
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
        encoder.layout = AudioLayout(_layout(context.layout, opus=name == "libopus"))
        channels = encoder.layout.nb_channels
        encoder.bit_rate = channels * min(_BIT_RATE, _BITS_PER_SAMPLE * self._rate)
        encoder.time_base = self._stream.time_base = Fraction(1, self._rate)
        self.output = self._stream
        self._graph: Graph | None = None
        self._input: tuple[object, ...] = ()
        self._next = Fraction(0)  # second at which the next frame begins if it does not say
        self._damaged = 0
        self._timeless = target.format.name == "avi"

    @property
    def description(self) -> str:
        """What is written, for people."""
        encoder = self._stream.codec_context
        return f"{encoder.name}, {encoder.layout.name}, {(encoder.bit_rate or 0) // 1000} kbit/s"

    @property
    def damage(self) -> str | None:
        """What could not be taken along, for people."""
        return f"packets that cannot be decoded: {self._damaged}" if self._damaged else None

    def take(self, packet: Packet[Any] | None) -> Iterator[Packet[Any]]:
        """Yields the packets to write after another one of the source.

        Args:
            packet: the next of the stream; ``None``: there are no more.
        """
        import av

        if packet is not None and self._is_before(packet):
            return
        try:
            frames = self._source.codec_context.decode(packet)
        except av.FFmpegError as error:
            self._damaged += 1
            logger.debug("sound that cannot be decoded: %s", reason(error))
            frames = []
        for frame in frames:
            yield from self._encode(self._fitted(frame))
        if packet is None:
            yield from self._encode(self._drained())
            yield from self._stream.encode(None)

    def _is_before(self, packet: Packet[Any]) -> bool:
        """Whether a packet lies so long before the window that decoding it changes nothing."""
        if self._window is None or packet.pts is None:
            return False
        return packet.pts * packet.time_base < self._window.start - _PREROLL

    def _encode(self, frames: Iterator[AudioFrame]) -> Iterator[Packet[Any]]:
        for frame in frames:
            for packet in self._stream.encode(frame):
                # What AAC begins with, only to begin with something, is of no time.
                if not self._timeless or packet.pts is None or packet.pts >= 0:
                    yield packet

    def _fitted(self, frame: AudioFrame) -> Iterator[AudioFrame]:
        """Yields decoded sound as the encoder takes it, in the window and without gaps."""
        if frame.pts is None:
            frame.time_base = Fraction(1, frame.sample_rate)
            frame.pts = round(self._next * frame.sample_rate)
        base = frame.time_base or Fraction(1, frame.sample_rate)
        self._next = frame.pts * base + Fraction(frame.samples, frame.sample_rate)
        given = (frame.sample_rate, frame.format.name, frame.layout.name, base)
        if given != self._input:
            yield from self._drained()
            self._input = given
            self._graph = self._make_graph(*given)
        assert self._graph is not None
        self._graph.push(frame)
        yield from self._pulled()

    def _drained(self) -> Iterator[AudioFrame]:
        """Yields what the filters still hold, and gives them up."""
        if self._graph is not None:
            self._graph.push(None)
            yield from self._pulled()
            self._graph = None

    def _pulled(self) -> Iterator[AudioFrame]:
        import av

        assert self._graph is not None
        shift = 0 if self._window is None else self._samples(self._window.start)
        while True:
            try:
                frame = cast("AudioFrame", self._graph.pull())
            except (av.BlockingIOError, av.EOFError):
                return
            if frame.pts is not None:
                frame.pts -= shift
            yield frame

    def _make_graph(self, rate: int, sample_format: str, layout: str, base: Fraction) -> Graph:
        from av.filter import Graph

        encoder = self._stream.codec_context
        # A container without times begins with the first sample.
        start = 0 if self._window is None else self._samples(self._window.start)
        first = f":first_pts={start}" if self._timeless else ""
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
        if self._window is not None:
            borders = f"start_pts={start}"
            if self._window.source_end is not None:
                borders += f":end_pts={self._samples(self._window.source_end)}"
            chain.append(graph.add("atrim", borders))
        chain.append(graph.add("abuffersink"))
        graph.link_nodes(*chain).configure()
        return graph

    def _samples(self, seconds: Fraction) -> int:
        return round(seconds * self._rate)


def _rate(wanted: int, possible: Sequence[int]) -> int:
    """The sample rate itself, or the next one above, or the highest there is."""
    if not possible or wanted in possible:
        return wanted
    return min((rate for rate in possible if rate > wanted), default=max(possible))


def named_layout(layout: AudioLayout) -> str:
    """The layout's name; of a number of channels alone, what they usually are."""
    number = layout.nb_channels
    if layout.name.endswith(" channels") and number <= len(_USUAL_LAYOUTS):
        return _USUAL_LAYOUTS[number - 1]
    return layout.name


def _layout(layout: AudioLayout, *, opus: bool) -> str:
    if opus and layout.nb_channels <= len(_USUAL_LAYOUTS):
        return _USUAL_LAYOUTS[layout.nb_channels - 1]
    name = named_layout(layout)
    return _COMMON_LAYOUTS.get(name, name)
