"""Makes small videos and reads files back without the code under test."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from numpy.typing import NDArray


def gradient(number: int, *, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """Return a gradient that moves with the frame number; ``(height, width, 3)`` uint8 RGB."""
    y, x = np.mgrid[0:height, 0:width]
    planes = (x * 3 + number * 5, y * 4 + number * 3, (x + y) * 2)
    return np.stack(planes, axis=-1).astype(np.uint8)


def write_still(path: Path, image: NDArray[np.uint8] | NDArray[np.uint16]) -> Path:
    """Write a PNG or TIFF of the image's bit depth, (H, W, 3) RGB or (H, W, 4) RGBA."""
    codec, order = ("png", "be") if path.suffix == ".png" else ("tiff", "le")
    name = "rgba" if image.shape[2] == 4 else "rgb"
    name = f"{name}64" if len(name) == 4 else f"{name}48"
    if image.dtype == np.uint8:
        name, order = name.replace("64", "").replace("48", "24"), ""
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.height, context.width = image.shape[:2]
    context.pix_fmt, context.time_base = f"{name}{order}", Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(image, format=f"{name}{order and 'le'}")
    frame = frame.reformat(format=f"{name}{order}")
    frame.pts = 0
    path.write_bytes(b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)]))
    return path


def read_still(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Read a PNG or TIFF as the array that ``write_still`` takes."""
    context = av.CodecContext.create("png" if path.suffix == ".png" else "tiff", "r")
    data = av.Packet(path.read_bytes())
    (frame,) = context.decode(data) or context.decode(None)
    image = frame.reformat(format=frame.format.name.replace("be", "le")).to_ndarray()
    return cast("NDArray[np.uint8] | NDArray[np.uint16]", image)


def make_video(
    path: Path,
    *,
    stamps: list[int] | None = None,
    time_base: Fraction = Fraction(1, 30000),
    rate: Fraction = Fraction(30000, 1001),
    codec: str = "libx264",
    pix_fmt: str | None = None,
    b_frames: int = 0,
    audio: str | None = None,
    audio_blocks: int = 20,
    audio_start: Fraction | None = None,
    subtitles: str | None = None,
    size: tuple[int, int] = (64, 48),
    images: list[NDArray[np.uint8]] | None = None,
    options: dict[str, str] | None = None,
    matrix: tuple[int, int, int, int] | None = None,
    aspect: Fraction | None = None,
    tags: tuple[int, int, int, int] | None = None,
    metadata: dict[str, str] | None = None,
    chapters: bool = False,
) -> Path:
    """Write a video.

    ``stamps`` are in ticks of ``time_base``; ``tags`` are matrix, range, primaries and transfer.
    """
    if stamps is None:
        stamps = [1001 * number for number in range(12)]
    width, height = size
    keep = {"avoid_negative_ts": "disabled"} if path.suffix != ".ts" else {}
    if path.suffix in (".mp4", ".mov"):
        keep["movie_timescale"] = str(time_base.denominator)
    with av.open(str(path), "w", container_options={**keep, **(options or {})}) as out:
        out.metadata.update(metadata or {})
        if chapters:
            base = Fraction(1, 1000)
            marks = [(0, 150, "one"), (150, 390, "two")]
            out.set_chapters(
                [
                    {"id": i, "start": a, "end": b, "time_base": base, "metadata": {"title": t}}
                    for i, (a, b, t) in enumerate(marks)
                ]
            )
        video = out.add_stream(codec, rate=rate, width=width, height=height)
        assert isinstance(video, av.VideoStream)
        video.codec_context.time_base = video.time_base = time_base
        video.codec_context.max_b_frames = b_frames
        video.codec_context.gop_size = 6
        if codec == "png":
            video.codec_context.pix_fmt = "rgb24"
        if pix_fmt is not None:
            video.codec_context.pix_fmt = pix_fmt
        if codec == "libx264":
            video.options = {"preset": "ultrafast", "crf": "10"}
            if b_frames:
                video.options = {"preset": "veryfast", "bf": str(b_frames), "b_strategy": "0"}
        if aspect is not None:
            video.codec_context.sample_aspect_ratio = aspect
        if tags is not None:
            context = video.codec_context
            context.colorspace, context.color_range = tags[:2]
            context.color_primaries, context.color_trc = tags[2:]
        sound = _add_audio(out, audio) if audio else None
        text = _add_subtitles(out, subtitles) if subtitles else None
        for number, stamp in enumerate(stamps):
            image = images[number] if images else gradient(number, width=width, height=height)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = stamp, time_base
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if sound is not None:
            begin = stamps[0] * time_base if audio_start is None else audio_start
            _write_audio(out, sound, start=begin, blocks=audio_blocks)
        if text is not None:
            _write_subtitles(out, text)
    if matrix is not None:
        _set_display_matrix(path, matrix)
    return path


def remux(path: Path, target: Path) -> Path:
    """Copy the video stream of a file, with its metadata, into another container."""
    with av.open(str(path)) as source, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    return target


def _set_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write the matrix into the header of an MP4's only track."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (65536 * value for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def _add_audio(out: av.container.OutputContainer, codec: str) -> Any:
    stream = out.add_stream(codec, rate=48000)
    stream.codec_context.layout = "stereo"
    stream.metadata["language"] = "fra"
    return stream


def _write_audio(
    out: av.container.OutputContainer, stream: Any, *, start: Fraction, blocks: int = 20
) -> None:
    rng = np.random.default_rng(0)
    out.start_encoding()
    size = stream.codec_context.frame_size or 1024
    layout = stream.codec_context.format.name
    for block in range(blocks):
        noise = rng.normal(0, 0.1, (2, size)).astype(np.float32)
        if layout == "fltp":
            frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="stereo")
        else:
            samples = (noise.T.reshape(1, -1) * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
        frame.sample_rate = 48000
        frame.pts = round(start * 48000) + block * size
        frame.time_base = Fraction(1, 48000)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def _add_subtitles(out: av.container.OutputContainer, codec: str) -> Any:
    stream = out.add_mux_stream(codec)
    stream.metadata["language"] = "deu"
    stream.time_base = Fraction(1, 1000)
    return stream


def _write_subtitles(out: av.container.OutputContainer, stream: Any) -> None:
    for number in range(2):
        packet = av.Packet(f"line {number}".encode())
        packet.stream = stream
        packet.time_base = Fraction(1, 1000)
        packet.pts = packet.dts = number * 200
        packet.duration = 150
        out.mux(packet)


@dataclass(frozen=True)
class Copied:
    """A copied stream that was found in a file."""

    kind: str
    codec: str
    language: str | None
    packets: tuple[tuple[bytes, Fraction], ...]


def stamps_of(path: Path) -> list[Fraction]:
    """Return the presentation times of the video frames in seconds, in order."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [Fraction(frame.pts * frame.time_base) for frame in container.decode(stream)]


def companions_of(path: Path) -> list[Copied]:
    """Return all streams but the video, with payload and time of every packet."""
    with av.open(str(path)) as container:
        streams = [stream for stream in container.streams if stream.type != "video"]
        packets: dict[int, list[tuple[bytes, Fraction]]] = {s.index: [] for s in streams}
        for packet in container.demux(streams) if streams else ():
            if packet.dts is not None:
                packets[packet.stream.index].append((bytes(packet), packet.pts * packet.time_base))
        return [
            Copied(s.type, s.codec_context.name, s.language, tuple(packets[s.index]))
            for s in streams
            if s.codec_context is not None
        ]


def frames_of(path: Path) -> list[NDArray[np.uint8]]:
    """Return the frames as RGB, converted by FFmpeg according to the file's tags."""
    with av.open(str(path)) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return cast("list[NDArray[np.uint8]]", images)
