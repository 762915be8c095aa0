"""Tests animated PNG, WebP and GIF files, which are videos whatever their extension."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageCms, features

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.video import ReadOptions, default_output, open_source
from tests.support.engine_doubles import BicubicEngine
from tests.support.media import gradient, stamps_of
from tests.support.sinks import job_sink

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


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


def saved(path: Path, alphas: tuple[int, int]) -> Path:
    """Write two frames with Pillow, each with one value of alpha, and a profile."""
    frames = [Image.new("RGBA", (32, 24), (200, 100, 50, alpha)) for alpha in alphas]
    frames[1].putpixel((0, 0), (0, 0, 0, alphas[1]))  # equal frames would be merged
    options: dict[str, Any] = (
        {} if path.suffix == ".gif" else {"icc_profile": PROFILE, "lossless": True}
    )
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[100, 3000], **options)
    return path


@pytest.mark.parametrize(
    ("suffix", "opaque"),
    [(".webp", False), (".webp", True), (".png", False), (".png", True), (".gif", True)],
)
def test_alpha_of_animations(tmp_path: Path, suffix: str, opaque: bool) -> None:
    """Only what is not opaque is kept, reported or refused; decoders of GIF always give alpha."""
    path = saved(tmp_path / f"in{suffix}", (255, 255) if opaque else (255, 0))
    with open_source(path) as source:
        assert len(list(source)) == 2
        assert [c.what for c in source.changes.dropped] == ["alpha channel"] * (not opaque)
    if opaque:
        with open_source(path, ReadOptions(alpha="refuse")) as source:
            assert len(list(source)) == 2
        return
    with (
        pytest.raises(MediaError, match="has an alpha channel, which is to be refused"),
        open_source(path, ReadOptions(alpha="refuse")) as source,
    ):
        list(source)
    with open_source(path, ReadOptions(alpha="keep")) as source:
        first, second = source
    assert first.opacity is not None
    assert second.opacity is not None
    assert (first.opacity.min(), second.opacity.max()) == (255, 0)


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_profiles_of_animations(tmp_path: Path, suffix: str) -> None:
    """Images keep them, and a video cannot. FFmpeg's decoder of animated PNG must not see them: it
    frees them twice, which ends this process.
    """
    path = saved(tmp_path / f"in{suffix}", (255, 255))
    summary = upscale_file(path, tmp_path / "out", engine=BicubicEngine())
    assert [c.what for c in summary.kept] == ["colour profile (ICC)"]
    for image in (tmp_path / "out").iterdir():
        with Image.open(image) as written:
            assert written.info["icc_profile"] == PROFILE
    summary = upscale_file(path, tmp_path / "out.mkv", engine=BicubicEngine())
    assert [c.what for c in summary.dropped] == ["colour profile (ICC)"]


def test_an_animated_avif_is_more_than_its_first_image(tmp_path: Path) -> None:
    if not features.check("avif"):
        pytest.skip("this build of Pillow writes no AVIF")
    frames = [Image.fromarray(gradient(number)) for number in range(3)]
    frames[0].save(tmp_path / "in.avif", save_all=True, append_images=frames[1:], duration=100)
    with open_source(tmp_path / "in.avif") as source:
        assert len(list(source)) == 3


def test_excerpt_of_an_animated_webp(tmp_path: Path) -> None:
    path = animation(tmp_path / "in.webp", codec="libwebp_anim", pix_fmt="bgra", container="webp")
    with open_source(path, ReadOptions(start=Fraction("1.4"), frames=3)) as source:
        assert source.frame_count == 3
        frames = list(source)
    assert [frame.pts for frame in frames] == [0, 40, 80]
    assert np.array_equal(frames[0].image, gradient(35))
