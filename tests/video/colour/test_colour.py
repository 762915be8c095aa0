"""Colour conversion, checked against the equations of ITU-R BT.601, BT.709 and BT.2020."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.format import VideoFormat

from rbvsr_deploy.video import open_source
from rbvsr_deploy.video.colour.colour import Colour, colour_of
from rbvsr_deploy.video.colour.conversion import from_rgb, opacity_of, to_rgb
from tests.support import media
from tests.support.sinks import job_sink

# Luma weights of red and blue by H.273 matrix code.
WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
COLOURS = [(200, 40, 30), (30, 180, 60), (40, 60, 190), (128, 128, 128), (235, 220, 20)]


def yuv_of(
    rgb: tuple[float, float, float] | np.ndarray, *, matrix: int, full: bool, depth: int = 8
) -> np.ndarray:
    """Return the YUV codes that the standard gives for RGB from 0 to 255, (..., 3)."""
    red, blue = WEIGHTS[matrix]
    r, g, b = np.moveaxis(np.asarray(rgb, float) / 255, -1, 0)
    y = red * r + (1 - red - blue) * g + blue * b
    u, v = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    if full:
        top, middle = 2**depth - 1, 2 ** (depth - 1)
        return np.stack([top * y, top * u + middle, top * v + middle], axis=-1)
    numbers = np.stack([219 * y + 16, 224 * u + 128, 224 * v + 128], axis=-1)
    return numbers * 2.0 ** (depth - 8)


def rgb_of(yuv: np.ndarray, *, matrix: int, full: bool, depth: int) -> np.ndarray:
    """Return RGB for YUV codes, nominally 0 to 1 but not clipped."""
    red, blue = WEIGHTS[matrix]
    if full:
        y, u, v = np.moveaxis(
            (yuv - [0, 2 ** (depth - 1), 2 ** (depth - 1)]) / (2**depth - 1), -1, 0
        )
    else:
        scaled = (yuv / 2.0 ** (depth - 8) - [16, 128, 128]) / [219, 224, 224]
        y, u, v = np.moveaxis(scaled, -1, 0)
    r, b = y + (2 - 2 * red) * v, y + (2 - 2 * blue) * u
    return np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], axis=-1)


def chart() -> np.ndarray:
    """Return a row of 16x16 colour patches: (16, 16 N, 3), 0 to 255."""
    corners = [(r, g, b) for r in (0, 255) for g in (0, 255) for b in (0, 255)]
    between = np.random.default_rng(0).uniform(0, 255, (40, 3))
    colours = np.concatenate([corners, COLOURS, between])
    return np.tile(colours.repeat(16, axis=0), (16, 1, 1))


def planes(frame: av.VideoFrame) -> list[np.ndarray]:
    """Return views of the planes of a planar frame."""
    dtype = np.uint8 if frame.format.components[0].bits == 8 else np.uint16
    rows = [np.frombuffer(p, dtype).reshape(p.height, -1) for p in frame.planes]
    return [row[:, : p.width] for row, p in zip(rows, frame.planes, strict=True)]


def fill(frame: av.VideoFrame, codes: np.ndarray) -> None:
    """Write rounded codes (H, W, planes), constant within each chroma sample, into a frame."""
    for plane, values in zip(planes(frame), np.moveaxis(codes, -1, 0), strict=True):
        down, across = (n // m for n, m in zip(values.shape, plane.shape, strict=True))
        plane[...] = np.rint(values[::down, ::across])


def flat_frame(yuv: np.ndarray, pix_fmt: str = "yuv420p") -> av.VideoFrame:
    frame = av.VideoFrame(32, 16, pix_fmt)
    depth = VideoFormat(pix_fmt, 32, 16).components[0].bits
    fill(frame, np.broadcast_to(yuv * 2 ** (depth - 8), (16, 32, 3)))
    return frame


def centres(image: np.ndarray) -> np.ndarray:
    """Return the colours at the centres of the chart's patches."""
    step = image.shape[0]
    return image[step // 2, step // 2 :: step]


@pytest.mark.parametrize("chroma", ["420", "422", "444"])
@pytest.mark.parametrize("depth", [8, 10, 12])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", sorted(WEIGHTS))
def test_conversions_are_exact_to_rounding(
    matrix: int, full: bool, depth: int, chroma: str
) -> None:
    """The error is within 0.01 of the rounding error of 0.5; within 0.05 for swscale's 8 bits."""
    pix_fmt = f"yuv{chroma}p" + (f"{depth}le" if depth > 8 else "")
    colour = Colour(matrix=matrix, range=2 if full else 1, primaries=9, transfer=14)
    kind: dict[str, Any] = {"matrix": matrix, "full": full, "depth": depth}
    exact = np.minimum(yuv_of(chart(), **kind), 2**depth - 1)
    frame = av.VideoFrame(exact.shape[1], exact.shape[0], pix_fmt)
    fill(frame, exact)
    image = to_rgb(frame, colour=colour)
    assert image.dtype == (np.uint8 if depth == 8 else np.uint16)
    top = np.iinfo(image.dtype).max
    expected = np.clip(rgb_of(np.rint(exact), **kind), 0, 1) * top
    assert np.abs(centres(image) - centres(expected)).max() <= (0.55 if depth == 8 else 0.51)

    for dtype in (np.uint8, np.uint16):
        top = np.iinfo(dtype).max
        image = np.rint(chart() / 255 * top).astype(dtype)
        frame = from_rgb(image, pix_fmt=pix_fmt, colour=colour)
        expected = np.minimum(yuv_of(image / top * 255, **kind), 2**depth - 1)
        for number, plane in enumerate(planes(frame)):
            step = plane.shape[0]
            found = plane[
                step // 2,
                plane.shape[1] // (chart().shape[1] // 16) // 2 :: 16
                * plane.shape[1]
                // chart().shape[1],
            ]
            assert np.abs(found - centres(expected[..., number])).max() <= 0.55
        tags = (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
        assert tags == (matrix, 2 if full else 1, 9, 14)


@pytest.mark.parametrize(
    "pix_fmt",
    ["gbrp10le", "gbrp12le", "gbrap12le", "rgb48be", "rgba64le", "x2rgb10le"],
)
def test_deep_rgb_round_trips(pix_fmt: str) -> None:
    video_format = VideoFormat(pix_fmt, 32, 16)
    depth = video_format.components[0].bits
    ramp = np.linspace(0, 65535, 32).astype(np.uint16)
    image = np.tile(np.stack([ramp] * 3, axis=-1), (16, 1, 1))
    image[..., 1] = image[:, ::-1, 1]
    opacity = np.ascontiguousarray(image[..., 1:2])
    colour = Colour(matrix=1, range=2, primaries=1, transfer=1)
    transparent = any(part.is_alpha for part in video_format.components)
    frame = from_rgb(
        image, pix_fmt=pix_fmt, colour=colour, opacity=opacity if transparent else None
    )
    step = 65535 / (2**depth - 1)
    assert np.abs(to_rgb(frame, colour=colour).astype(int) - image).max() <= step
    found = opacity_of(frame)
    assert (found is not None) == transparent
    if found is not None:
        assert np.abs(found.astype(int) - opacity).max() <= step


@pytest.mark.parametrize("depth", [8, 10, 16])
@pytest.mark.parametrize(("range_tag", "full"), [(0, True), (1, False), (2, True)])
def test_grey_is_full_range_unless_tagged(range_tag: int, full: bool, depth: int) -> None:
    ramp = np.linspace(0, 1, 32)
    frame = av.VideoFrame(32, 16, "gray" if depth == 8 else f"gray{depth}le")
    unit = 2.0 ** (depth - 8)
    planes(frame)[0][...] = np.rint(ramp * (2**depth - 1) if full else (219 * ramp + 16) * unit)
    frame.color_range = range_tag
    image = to_rgb(frame, colour=colour_of(frame))
    step = 1 / (219 * unit)
    assert np.abs(image / np.iinfo(image.dtype).max - ramp[:, None]).max() <= step


@pytest.mark.parametrize(
    ("width", "height", "matrix"),
    [(720, 480, 6), (1024, 576, 6), (16, 577, 1), (1026, 16, 1), (1280, 544, 1), (1920, 800, 1)],
)
def test_untagged_matrix_is_guessed_by_size(width: int, height: int, matrix: int) -> None:
    """Wide films have few lines: players go by the width, too."""
    frame = av.VideoFrame(width, height, "yuv420p")
    assert colour_of(frame) == Colour(matrix=matrix, range=1, primaries=2, transfer=2)


def test_yuvj_is_full_range() -> None:
    assert colour_of(av.VideoFrame(16, 16, "yuvj420p")).range == 2


def test_unsupported_matrix_is_guessed_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    frame = av.VideoFrame(16, 16, "yuv420p")
    frame.colorspace = 8  # YCgCo
    assert colour_of(frame).matrix == 6
    assert "matrix 8" in caplog.text


def test_chroma_is_interpolated() -> None:
    """The nearest chroma sample would give a staircase instead of a ramp."""
    frame = flat_frame(np.array([128, 128, 128]))
    ramp = np.tile(np.arange(88, 168, 5, dtype=np.uint8), 8)
    plane = frame.planes[2]
    assert plane.line_size >= 16
    rows = np.full((8, plane.line_size), 128, np.uint8)
    rows[:, :16] = ramp.reshape(8, 16)
    plane.update(rows.tobytes())
    frame.colorspace, frame.color_range = 1, 1
    red = to_rgb(frame, colour=colour_of(frame))[8, 4:-4, 0].astype(int)
    assert (np.diff(red) > 0).all()


@pytest.mark.parametrize(
    "tags", [(1, 1, 1, 1), (6, 1, 6, 6), (5, 1, 5, 1), (9, 1, 9, 14), (1, 2, 1, 13)]
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_video_keeps_colours_and_tags(
    tmp_path: Path, suffix: str, tags: tuple[int, int, int, int]
) -> None:
    matrix, colour_range = tags[:2]
    rgb = (180, 70, 40)
    path = tmp_path / f"in{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, width=32, height=16)
        context = stream.codec_context
        context.colorspace, context.color_range = tags[:2]
        context.color_primaries, context.color_trc = tags[2:]
        frame = flat_frame(yuv_of(rgb, matrix=matrix, full=colour_range == 2))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    out = tmp_path / f"out{suffix}"
    with open_source(path) as source, job_sink(out, source=source, width=32, height=16) as sink:
        for read in source:
            np.testing.assert_allclose(read.image[8, 16], rgb, atol=3)
            sink.write(read)
        sink.finish()
    with av.open(str(out)) as container:
        frame = next(container.decode(video=0))
    found = (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
    assert found == tags
    luma = np.frombuffer(frame.planes[0], np.uint8)[0]
    assert abs(int(luma) - yuv_of(rgb, matrix=matrix, full=colour_range == 2)[0]) <= 2


def test_guessed_matrix_is_tagged(tmp_path: Path) -> None:
    """Players would guess differently for the output, which is four times as high."""
    path = media.make_video(tmp_path / "in.mp4", stamps=[0, 1001])
    out = tmp_path / "out.mp4"
    with open_source(path) as source, job_sink(out, source=source, width=64, height=48) as sink:
        for frame in source:
            sink.write(frame)
        sink.finish()
    with av.open(str(out)) as container:
        written = next(container.decode(video=0))
    assert (written.colorspace, written.color_range) == (6, 1)
