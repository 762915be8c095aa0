"""Writes inputs with audio, subtitles and other streams, with plain PyAV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.subtitles.subtitle import AssSubtitle, SubtitleSet
from numpy.typing import NDArray

from tests.support.media import gradient

RATE = 25
_ASS_HEADER = (
    "[Script Info]\r\nScriptType: v4.00+\r\n\r\n[V4+ Styles]\r\nFormat: Name, Fontname, Fontsize, "
    "PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, "
    "StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, "
    "MarginR, MarginV, Encoding\r\nStyle: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,"
    "100,0,0,1,1,0,2,10,10,10,1\r\n\r\n[Events]\r\nFormat: Layer, Start, End, Style, Name, MarginL,"
    " MarginR, MarginV, Effect, Text\r\n"
)


@dataclass
class Sound:
    """Silence with clicks of four samples, the first of which is the loudest."""

    codec: str
    rate: int = 48000
    layout: str = "stereo"
    clicks: Sequence[float] = (0.5, 1.0)
    """Times in seconds from the start."""
    start: float = 0.0
    language: str = "fra"
    title: str = ""
    disposition: int = 0


@dataclass
class Text:
    """Subtitles: start and duration in milliseconds, and text with ASS markup."""

    codec: str
    lines: Sequence[tuple[int, int, str]]
    language: str = "deu"
    disposition: int = 0


@dataclass
class Data:
    """Timed data: a packet of ``payload`` and its number every 200 ms."""

    codec: str
    payload: bytes = b"data"


def write(
    path: Path,
    *streams: Sound | Text | Data,
    seconds: float = 1.6,
    start: float = 0.0,
    cover: bytes | None = None,
    timecode: str | None = None,
    metadata: dict[str, str] | None = None,
    chapters: Sequence[tuple[int, int, str]] = (),
    codec: str = "mpeg4",
    container: str | None = None,
) -> Path:
    """Write a video of 25 frames per second and other streams.

    Args:
        path: the file, whose suffix gives the container unless ``container`` is given.
        streams: the other streams, in their order after the video.
        seconds: length of the video.
        start: time of the first frame in seconds.
        cover: cover art, a JPEG.
        timecode: timecode of the first frame.
        metadata: metadata of the file.
        chapters: start and end in milliseconds, and title.
        codec: codec of the video.
        container: FFmpeg's name of the container.
    """
    keep = {} if path.suffix == ".ts" else {"avoid_negative_ts": "disabled"}
    if path.suffix == ".ts":
        keep["mpegts_copyts"] = "1"
    with av.open(str(path), "w", format=container, container_options=keep) as out:
        out.metadata.update(metadata or {})
        base = Fraction(1, 1000)
        out.set_chapters(
            [
                {"id": i, "start": a, "end": b, "time_base": base, "metadata": {"title": title}}
                for i, (a, b, title) in enumerate(chapters)
            ]
        )
        video = out.add_stream(codec, rate=RATE, width=64, height=48)
        assert isinstance(video, av.VideoStream)
        if timecode is not None:
            video.metadata["timecode"] = timecode
        cover_stream = _add_cover(out, cover) if cover is not None else None
        added = [_ADD[type(stream)](out, stream) for stream in streams]
        encoded: list[Any] = []
        for number in range(round(seconds * RATE)):
            frame = av.VideoFrame.from_ndarray(gradient(number), format="rgb24")
            frame.pts = number + round(start * RATE)
            encoded += video.encode(frame)
        encoded += video.encode(None)
        if cover is not None and cover_stream is not None:
            encoded.append(_packet(cover_stream, cover, at=0, duration=0))
        for stream, target in zip(streams, added, strict=True):
            encoded += _MAKE[type(stream)](stream, target, seconds)
        for packet in sorted(encoded, key=lambda packet: packet.dts * packet.time_base):
            out.mux(packet)
    return path


def _add_cover(out: av.container.OutputContainer, cover: bytes) -> Any:
    if out.format.name == "matroska":
        out.add_attachment("front.jpg", "image/jpeg", cover)
        return None
    stream: Any = out.add_mux_stream("mjpeg", width=32, height=32)
    stream.time_base = Fraction(1, 90000)
    stream.disposition = av.stream.Disposition.attached_pic.value
    return stream


def _packet(stream: Any, data: bytes, *, at: int, duration: int) -> Any:
    packet = av.Packet(data)
    packet.stream, packet.time_base = stream, Fraction(1, 1000)
    packet.pts = packet.dts = at
    packet.duration = duration
    return packet


def _add_sound(out: av.container.OutputContainer, sound: Sound) -> Any:
    stream: Any = out.add_stream(sound.codec, rate=sound.rate)
    stream.codec_context.layout = sound.layout
    if sound.codec in ("vorbis", "opus"):
        stream.codec_context.options = {"strict": "-2"}
    stream.metadata["language"] = sound.language
    if sound.title:
        stream.metadata["title"] = sound.title
    stream.disposition = sound.disposition
    return stream


def _make_sound(sound: Sound, stream: Any, seconds: float) -> Iterator[Any]:
    channels = av.AudioLayout(sound.layout).nb_channels
    samples = np.zeros((channels, round(seconds * sound.rate)), np.float32)
    for click in (click for click in sound.clicks if click < seconds):
        at = round(click * sound.rate)
        samples[:, at : at + 4] = np.array([0.9, -0.6, 0.6, -0.6])
    packed = samples.T.reshape(1, -1)  # PyAV does not support eight planes
    frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=sound.layout)
    frame.sample_rate, frame.pts = sound.rate, round(sound.start * sound.rate)
    frame.time_base = Fraction(1, sound.rate)
    context = stream.codec_context
    blocks = av.AudioResampler(
        format=context.format, layout=sound.layout, rate=sound.rate, frame_size=1024
    )
    for block in [*blocks.resample(frame), *blocks.resample(None)]:
        yield from stream.encode(block)
    yield from stream.encode(None)


def _add_text(out: av.container.OutputContainer, text: Text) -> Any:
    stream: Any = out.add_stream(text.codec)
    stream.codec_context.subtitle_header = _ASS_HEADER.encode()
    stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
    stream.metadata["language"] = text.language
    stream.disposition = text.disposition
    return stream


def _make_text(text: Text, stream: Any, seconds: float) -> Iterator[Any]:
    for number, (start, duration, line) in enumerate(text.lines):
        event = f"{number},0,Default,,0,0,0,,{line}".encode()
        encoded = stream.codec_context.encode_subtitle(
            SubtitleSet.create(event, start=0, end=duration, pts=start)
        )
        yield _packet(stream, bytes(encoded), at=start, duration=duration)


def _add_data(out: av.container.OutputContainer, data: Data) -> Any:
    stream = out.add_data_stream(data.codec)
    stream.time_base = Fraction(1, 1000)
    return stream


def _make_data(data: Data, stream: Any, seconds: float) -> Iterator[Any]:
    for number, start in enumerate(range(0, round(1000 * seconds), 200)):
        yield _packet(stream, data.payload + bytes([number]), at=start, duration=200)


_ADD = {Sound: _add_sound, Text: _add_text, Data: _add_data}
_MAKE = {Sound: _make_sound, Text: _make_text, Data: _make_data}


@dataclass
class Heard:
    """The decoded content of an audio stream."""

    codec: str
    layout: str
    rate: int
    language: str | None
    clicks: list[float] = field(default_factory=list)
    """Times of the clicks in seconds."""
    begin: float = 0.0
    end: float = 0.0


def heard(path: Path, number: int = 0) -> Heard:
    """Decode an audio stream of a file; clicks are the loudest samples, at least 50 ms apart."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[number]
        context = stream.codec_context
        result = Heard(
            context.codec.canonical_name, context.layout.name, context.sample_rate, stream.language
        )
        loud: list[tuple[float, float]] = []
        begin = None
        packed = av.AudioResampler(format="flt")
        for decoded in container.decode(stream):
            time = decoded.pts * decoded.time_base
            begin = time if begin is None else begin
            result.end = float(time + Fraction(decoded.samples, decoded.sample_rate))
            for block in packed.resample(decoded):
                level = np.abs(block.to_ndarray()[0, :: context.layout.nb_channels])
                loud += [
                    (float(time) + at / context.sample_rate, float(level[at]))
                    for at in np.flatnonzero(level > 0.25)
                ]
        result.begin = float(begin or 0)
    while loud:
        first = loud[0][0]
        near = [item for item in loud if item[0] < first + 0.05]
        result.clicks.append(max(near, key=lambda item: item[1])[0])
        loud = loud[len(near) :]
    return result


def texts(path: Path, number: int = 0) -> list[tuple[float, float, str]]:
    """Return start and duration in seconds and text with ASS markup of a subtitle stream."""
    found = []
    with av.open(str(path)) as container:
        stream = container.streams.subtitles[number]
        for packet in container.demux(stream):
            shown = stream.codec_context.decode2(packet) if packet.size else None
            for line in shown or ():
                if isinstance(line, AssSubtitle) and line.ass:
                    base = packet.time_base
                    text = line.ass.decode().split(",", 8)[8]
                    found.append((float(packet.pts * base), float(packet.duration * base), text))
    return found


def packets(path: Path, kind: str) -> list[tuple[Fraction, bytes]]:
    """Return time in seconds and payload of all packets of the first stream of a kind."""
    with av.open(str(path)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        return [
            (packet.pts * packet.time_base, bytes(packet))
            for packet in container.demux(stream)
            if packet.size
        ]


def jpeg(shade: int = 90) -> bytes:
    """Return a JPEG of 32x32 pixels of one shade."""
    context = av.CodecContext.create("mjpeg", "w")
    context.width = context.height = 32
    context.pix_fmt, context.time_base = "yuvj420p", Fraction(1, 25)
    image: NDArray[np.uint8] = np.full((32, 32, 3), shade, np.uint8)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuvj420p")
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])
