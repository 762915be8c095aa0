"""Colours in and out, checked against the equations of ITU-R BT.601, BT.709 and BT.2020."""

from __future__ import annotations

import av
import numpy as np
import pytest
from av.video.format import VideoFormat

from rbvsr_deploy.video import open_source
from rbvsr_deploy.video.colour import (
    Colour,
    colour_of,
    from_rgb,
    to_rgb,
)
from tests.video import media
from tests.video.sinks import job_sink

# Matrix code of H.273 to the weights of red and blue in luma.
WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
COLOURS = [(200, 40, 30), (30, 180, 60), (40, 60, 190), (128, 128, 128), (235, 220, 20)]


def yuv_of(rgb: tuple[int, int, int], *, matrix: int, full: bool) -> np.ndarray:
    """The three numbers that the standard gives for a colour."""
    red, blue = WEIGHTS[matrix]
    r, g, b = (channel / 255 for channel in rgb)
    y = red * r + (1 - red - blue) * g + blue * b
    u, v = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    if full:
        return np.array([255 * y, 255 * u + 128, 255 * v + 128])
    return np.array([219 * y + 16, 224 * u + 128, 224 * v + 128])


def flat_frame(yuv: np.ndarray, pix_fmt: str = "yuv420p") -> av.VideoFrame:
    frame = av.VideoFrame(32, 16, pix_fmt)
    bits = VideoFormat(pix_fmt, 32, 16).components[0].bits
    dtype = np.uint8 if bits == 8 else np.uint16
    for plane, value in zip(frame.planes, np.rint(yuv * 2 ** (bits - 8)), strict=True):
        plane.update(np.full(plane.buffer_size // dtype().itemsize, value, dtype).tobytes())
    return frame


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv422p10le"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", sorted(WEIGHTS))
def test_decoded_colours_follow_the_standard(matrix, full, pix_fmt):
    for rgb in COLOURS:
        frame = flat_frame(yuv_of(rgb, matrix=matrix, full=full), pix_fmt)
        frame.colorspace, frame.color_range = matrix, 2 if full else 1
        image = to_rgb(frame, colour=colour_of(frame))
        # Rounding to 8-bit YUV costs up to 2 in RGB; a wrong matrix or range costs 8 and more.
        np.testing.assert_allclose(image[8, 16], rgb, atol=2)
        assert (image == image[0, 0]).all()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", sorted(WEIGHTS))
def test_encoded_colours_follow_the_standard(matrix, full):
    colour = Colour(matrix=matrix, range=2 if full else 1, primaries=9, transfer=14)
    for rgb in COLOURS:
        image = np.full((16, 32, 3), rgb, np.uint8)
        frame = from_rgb(image, pix_fmt="yuv420p", colour=colour)
        found = [np.frombuffer(plane, np.uint8)[0] for plane in frame.planes]
        np.testing.assert_allclose(found, yuv_of(rgb, matrix=matrix, full=full), atol=1.1)
        tags = (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
        assert tags == (matrix, 2 if full else 1, 9, 14)


@pytest.mark.parametrize(("height", "matrix"), [(480, 6), (576, 6), (719, 6), (720, 1), (1080, 1)])
def test_untagged_matrix_is_guessed_by_height(height, matrix):
    frame = av.VideoFrame(16, height, "yuv420p")
    assert colour_of(frame) == Colour(matrix=matrix, range=1, primaries=2, transfer=2)


def test_yuvj_is_full_range():
    assert colour_of(av.VideoFrame(16, 16, "yuvj420p")).range == 2


def test_unsupported_matrix_is_guessed_with_a_warning(caplog):
    frame = av.VideoFrame(16, 16, "yuv420p")
    frame.colorspace = 8  # YCgCo
    assert colour_of(frame).matrix == 6
    assert "matrix 8" in caplog.text


def test_chroma_is_interpolated():
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
def test_video_keeps_colours_and_tags(tmp_path, suffix, tags):
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
        for frame in source:
            np.testing.assert_allclose(frame.image[8, 16], rgb, atol=3)
            sink.write(frame)
        sink.finish()
    with av.open(str(out)) as container:
        frame = next(container.decode(video=0))
    found = (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
    assert found == tags
    luma = np.frombuffer(frame.planes[0], np.uint8)[0]
    assert abs(int(luma) - yuv_of(rgb, matrix=matrix, full=colour_range == 2)[0]) <= 2


def test_guessed_matrix_is_tagged(tmp_path):
    """Four times as high, the output would be guessed differently by players."""
    path = media.make_video(tmp_path / "in.mp4", stamps=[0, 1001])
    out = tmp_path / "out.mp4"
    with open_source(path) as source, job_sink(out, source=source, width=64, height=48) as sink:
        for frame in source:
            sink.write(frame)
        sink.finish()
    with av.open(str(out)) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (6, 1)
