"""Tests animated PNG, WebP and GIF files, which are videos whatever their extension."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from rbvsr_deploy.video import ReadOptions, default_output, open_source
from tests.support.media import gradient, stamps_of
from tests.support.sinks import job_sink


def animation(path: Path, *, codec: str, pix_fmt: str, container: str) -> Path:
    """Write 40 frames at 25 per second, losslessly except for GIF."""
    with av.open(str(path), "w", format=container) as out:
        options = {"lossless": "1"} if container == "webp" else {}
        stream = out.add_stream(codec, rate=25, width=64, height=48, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.pix_fmt = pix_fmt
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(gradient(number), format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "container"),
    [
        ("in.png", "apng", "rgb24", "apng"),
        ("in.apng", "apng", "rgb24", "apng"),
        ("in.webp", "libwebp_anim", "bgra", "webp"),
        ("in.gif", "gif", "rgb8", "gif"),
    ],
)
def test_animated_image_is_a_video(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, container: str
) -> None:
    """All frames keep their times in a container that can hold them."""
    path = animation(tmp_path / name, codec=codec, pix_fmt=pix_fmt, container=container)
    out = default_output(path)
    assert out == tmp_path / "in_x4.mkv"
    with (
        open_source(path) as source,
        job_sink(out, source=source, width=source.width, height=source.height) as sink,
    ):
        for number, frame in enumerate(source):
            error = np.abs(frame.image.astype(int) - gradient(number))
            assert error.mean() < 20 if codec == "gif" else not error.any()
            sink.write(frame)
        sink.finish()
    assert stamps_of(out) == [Fraction(number, 25) for number in range(40)]


def test_excerpt_of_an_animated_webp(tmp_path: Path) -> None:
    path = animation(tmp_path / "in.webp", codec="libwebp_anim", pix_fmt="bgra", container="webp")
    with open_source(path, ReadOptions(start=Fraction("1.4"), frames=3)) as source:
        assert source.frame_count == 3
        frames = list(source)
    assert [frame.pts for frame in frames] == [0, 40, 80]
    assert np.array_equal(frames[0].image, gradient(35))
