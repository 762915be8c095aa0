"""Round trips of every codec with everything that a file can hold in addition to plain video.

Inputs are written, and outputs read back, with plain PyAV; bicubic upscaling stands in for the
network.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.video import default_output
from rbvsr_deploy.video.matroska import write_sample_aspect
from tests.support import media
from tests.support.engine_doubles import BicubicEngine

WIDTH, HEIGHT = 64, 48
CORNERS = {
    "top left": (200, 40, 40),
    "top right": (40, 180, 40),
    "bottom left": (40, 40, 220),
    "bottom right": (200, 200, 60),
}


@dataclass(frozen=True)
class Format:
    """Describes how a codec is written, and the streams that can accompany it."""

    encoder: str
    suffix: str
    pix_fmt: str
    audio: str = "aac"
    subtitles: str = "mov_text"
    ticks: int = 30000
    """Ticks per second of the container's clock."""
    rotates_as: str = ".mov"
    """Suffix of a container in which a display matrix can be written, to be remuxed from there."""


FORMATS = {
    "h264": Format("libx264", ".mp4", "yuv420p"),
    "hevc10": Format("libx265", ".mp4", "yuv420p10le"),
    "vp9": Format("libvpx-vp9", ".webm", "yuv420p", "libopus", "webvtt", 1000, ".mp4"),
    "mpeg4": Format("mpeg4", ".mp4", "yuv420p"),
    "ffv1": Format("ffv1", ".mkv", "yuv420p", "flac", "subrip", 1000),
    "prores": Format("prores_ks", ".mov", "yuv422p10le", "pcm_s16le"),
    "mjpeg": Format("mjpeg", ".mov", "yuvj420p", "pcm_s16le"),
}
CASES = [
    "cfr",
    "vfr",
    "rotated",
    "anamorphic",
    "bt601",
    "bt709",
    "bt2020",
    "limited",
    "full",
    "two audio tracks",
    "subtitles",
]
# H.273 codes of matrix, range, primaries and transfer.
TAGS = {
    "bt601": (6, 1, 6, 6),
    "bt709": (1, 1, 1, 1),
    "bt2020": (9, 1, 9, 14),
    "limited": (1, 1, 1, 1),
    "full": (1, 2, 1, 1),
}
ASPECT = Fraction(5, 4)
UNKNOWN = (0, 2)
JPEG = (5, 2)  # BT.601 and full range, whatever the container says
ENCODER_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "ultrafast", "crf": "4"},
    "libx265": {"preset": "ultrafast", "crf": "4", "x265-params": "log-level=none"},
    "libvpx-vp9": {"cpu-used": "8", "deadline": "realtime", "crf": "4", "b": "0"},
    "mpeg4": {"flags": "+qscale", "global_quality": "236"},
    "mjpeg": {"flags": "+qscale", "global_quality": "236"},
}


@pytest.mark.parametrize(
    ("codec", "case"),
    [
        (codec, case)
        for codec in FORMATS
        for case in CASES
        # FFV1 is written to Matroska, for which PyAV cannot write a rotation.
        if (codec, case) != ("ffv1", "rotated")
    ],
)
def test_properties_are_kept(tmp_path: Path, codec: str, case: str) -> None:
    form = FORMATS[codec]
    path = write_input(tmp_path, form, case=case)
    output = default_output(path)
    upscale_file(path, output, engine=BicubicEngine())
    with av.open(str(output)) as made, av.open(str(path)) as given:
        before = list(given.decode(given.streams.video[0]))
        after = list(made.decode(made.streams.video[0]))
        assert [f.pts * f.time_base for f in after] == [f.pts * f.time_base for f in before]
        assert len(after) == 8
        first, last = before[0], after[0]
        rotated = case == "rotated"
        width, height = (HEIGHT, WIDTH) if rotated else (WIDTH, HEIGHT)
        assert (last.width, last.height) == (4 * width, 4 * height)
        assert (first.rotation, last.rotation) == (-90 if rotated else 0, 0)
        aspects = [c.streams.video[0].sample_aspect_ratio or 1 for c in (given, made)]
        assert aspects == [ASPECT if case == "anamorphic" else 1] * 2
        if case in TAGS:
            check_tags(tags_of(first), tags_of(last), case=case)
        deep = first.format.components[0].bits > 8
        assert (last.format.components[0].bits > 8) == deep
    check_corners(path, output, rotated=rotated)
    streams = media.companions_of(output)
    assert len(streams) == {"two audio tracks": 2, "subtitles": 2}.get(case, 0)
    assert streams == media.companions_of(path)


def write_input(folder: Path, form: Format, *, case: str) -> Path:
    """Write eight frames with a different colour in each corner."""
    steps = [0, 1, 2, 3, 5, 9, 10, 13] if case == "vfr" else list(range(8))
    tags = TAGS.get(case, TAGS["bt709"])
    matrix, extent = tags[:2] if form.encoder != "mjpeg" else JPEG
    path = folder / f"in{form.rotates_as if case == 'rotated' else form.suffix}"
    options = {"movie_timescale": "30000"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", container_options=options) as out:
        video = out.add_stream(form.encoder, rate=25, width=WIDTH, height=HEIGHT)
        assert isinstance(video, av.VideoStream)
        video.options = {**ENCODER_OPTIONS.get(form.encoder, {})}
        context = video.codec_context
        context.pix_fmt = form.pix_fmt
        context.time_base = video.time_base = Fraction(1, form.ticks)
        context.gop_size = 4
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = tags
        if case == "anamorphic":
            context.sample_aspect_ratio = ASPECT
        sounds = [
            add_sound(out, form, language=language)
            for language in ("fra", "deu")[: {"two audio tracks": 2, "subtitles": 1}.get(case, 0)]
        ]
        text = None
        if case == "subtitles":
            text = out.add_mux_stream(form.subtitles)
            text.time_base = Fraction(1, 1000)
            text.metadata["language"] = "deu"
        chart = corner_chart()
        for step in steps:
            frame = av.VideoFrame.from_ndarray(chart, format="rgb24")
            frame.colorspace = matrix
            frame = frame.reformat(format=form.pix_fmt, dst_color_range=extent)
            frame.colorspace, frame.color_range = matrix, extent
            frame.pts, frame.time_base = step * form.ticks // 25, context.time_base
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        for number, sound in enumerate(sounds):
            write_sound(out, sound, seed=number)
        if text is not None:
            write_text(out, text, form=form)
    if case == "anamorphic" and path.suffix in (".mkv", ".webm"):
        # PyAV only sets it in the codec context, and neither VP9 nor FFV1 stores it.
        assert write_sample_aspect(path, ASPECT)
    if case != "rotated":
        return path
    media._set_display_matrix(path, (0, 1, -1, 0))
    return remuxed(path, folder / f"rotated{form.suffix}")


def corner_chart() -> NDArray[np.uint8]:
    chart = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    for name, colour in CORNERS.items():
        rows = slice(0, HEIGHT // 2) if "top" in name else slice(HEIGHT // 2, None)
        columns = slice(0, WIDTH // 2) if "left" in name else slice(WIDTH // 2, None)
        chart[rows, columns] = colour
    return chart


def add_sound(out: av.container.OutputContainer, form: Format, *, language: str) -> Any:
    stream = out.add_stream(form.audio, rate=48000)
    stream.codec_context.layout = "stereo"
    stream.metadata["language"] = language
    return stream


def write_sound(out: av.container.OutputContainer, stream: Any, *, seed: int) -> None:
    rng = np.random.default_rng(seed)
    context = stream.codec_context
    context.open(strict=False)
    size = context.frame_size or 1024
    for block in range(8):
        noise = rng.normal(0, 0.1, (size, 2))
        packed = np.round(noise * 32767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout="stereo")
        frame.sample_rate, frame.time_base = 48000, Fraction(1, 48000)
        frame.pts = block * size
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def write_text(out: av.container.OutputContainer, stream: Any, *, form: Format) -> None:
    for number in range(2):
        line = f"line {number}".encode()
        packet = av.Packet(len(line).to_bytes(2, "big") + line if form.ticks == 30000 else line)
        packet.stream, packet.time_base = stream, Fraction(1, 1000)
        packet.pts = packet.dts = number * 120
        packet.duration = 80
        out.mux(packet)


def remuxed(path: Path, target: Path) -> Path:
    """Copy the packets to another container."""
    with av.open(str(path)) as given, av.open(str(target), "w") as out:
        copy = out.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    return target


def tags_of(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    return (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)


def check_tags(
    given: tuple[int, int, int, int], made: tuple[int, int, int, int], *, case: str
) -> None:
    """Tags of the input are kept; a missing one has the value of the case, or stays missing."""
    for before, after, expected in zip(given, made, TAGS[case], strict=True):
        assert after == before or (before in UNKNOWN and after in (*UNKNOWN, expected))


def corners_of(path: Path, *, number: int) -> list[NDArray[np.float64]]:
    """Return the mean colours in the corners: top left, top right, bottom left, bottom right."""
    image = media.frames_of(path)[number].astype(float)
    height, width = image.shape[:2]
    return [
        image[top : top + height // 8, left : left + width // 8].mean(axis=(0, 1))
        for top in (height // 8, height * 3 // 4)
        for left in (width // 8, width * 3 // 4)
    ]


def check_corners(given: Path, made: Path, *, rotated: bool) -> None:
    """Each corner has its colour; rotated clockwise, the bottom left one becomes the top left."""
    for number in (0, -1):
        before, after = corners_of(given, number=number), corners_of(made, number=number)
        # ProRes has no range tag: every decoder reads full range as limited.
        assert np.abs(np.subtract(before, list(CORNERS.values()))).max() < 18
        if rotated:
            before = [before[i] for i in (2, 0, 3, 1)]
        assert np.abs(np.subtract(after, before)).max() < 6
