"""Tests kinds of image files: the whole image is read, or refused, or what is left out is said."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.video import default_output, open_source
from rbvsr_deploy.video.images import read_image
from tests.support import media
from tests.support.engine_doubles import BicubicEngine

PIXELS = media.gradient(0, width=24, height=16)
PICTURE = Image.fromarray(PIXELS)
OTHER, THIRD = Image.fromarray(255 - PIXELS), Image.fromarray(PIXELS // 2)


def assert_close(path: Path, tolerance: float = 2) -> None:
    image = read_image(path)
    scale = 257 if image.dtype == np.uint16 else 1
    assert np.abs(image / scale - PIXELS).mean() <= tolerance


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "jpeg", "quality": 98},
        {"compression": "tiff_lzw"},
        {"compression": "tiff_adobe_deflate"},
        {"compression": "packbits"},
        {"compression": "zstd"},
        {"big_tiff": True},
        {"tiffinfo": {274: 3}},
    ],
    ids=["jpeg", "lzw", "deflate", "packbits", "zstd", "bigtiff", "upside down"],
)
def test_tiff(tmp_path: Path, options: dict[str, Any]) -> None:
    """Every way of storing RGB in a TIFF is read right."""
    picture = PICTURE.rotate(180) if "tiffinfo" in options else PICTURE
    picture.save(tmp_path / "a.tif", **options)
    assert_close(tmp_path / "a.tif", tolerance=4 if options.get("quality") else 0)


def tiff(path: Path, samples: np.ndarray, **tags: Any) -> None:
    """Write a TIFF of any kind of samples, without Pillow's own choices."""
    height, width, *channels = samples.shape
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    depth = 8 * samples.itemsize
    settings: dict[int, Any] = {
        256: width,
        257: height,
        258: (depth,) * (channels[0] if channels else 1),
        259: 1,
        262: 2 if channels else 1,
        273: 0,
        277: channels[0] if channels else 1,
        278: height,
        279: samples.nbytes,
        339: 3 if samples.dtype.kind == "f" else 1,
    } | {int(tag[1:]): value for tag, value in tags.items()}
    for tag, value in settings.items():
        directory[tag] = value
    with path.open("wb") as file:
        directory.save(file)
        file.write(samples.tobytes())


DEEP = PIXELS.astype(np.uint16) * 257


@pytest.mark.parametrize(
    ("samples", "tags"),
    [
        (DEEP, {}),
        (PIXELS[..., 0].astype(np.float32) / 255, {}),
        (np.dstack([DEEP, DEEP[..., :1]]), {"t338": 2}),
        (DEEP[::-1, ::-1].copy(), {"t274": 3}),
    ],
    ids=["16 bits", "float", "alpha", "upside down"],
)
def test_deep_tiff(tmp_path: Path, samples: np.ndarray, tags: dict[str, Any]) -> None:
    tiff(tmp_path / "a.tif", samples, **tags)
    image = read_image(tmp_path / "a.tif")
    assert image.dtype == np.uint16
    expected = PIXELS if samples.ndim == 3 else PIXELS[..., [0, 0, 0]]
    np.testing.assert_allclose(image / 257, expected, atol=0.01)


@pytest.mark.parametrize(
    ("samples", "tags"),
    [
        (DEEP[..., 0].copy(), {"t262": 0}),
        (DEEP[..., 0].astype(np.uint32), {}),
        (np.dstack([DEEP, DEEP[..., :1]]), {"t262": 5}),
        (PIXELS, {"t254": 1}),
        (PIXELS, {"t50706": b"\1\4\0\0"}),
        (PIXELS, {"t258": (8, 8, 8, 8, 8), "t277": 5}),
    ],
    ids=["white is zero", "32 bits", "CMYK of 16 bits", "thumbnail", "camera raw", "five channels"],
)
def test_tiff_that_is_refused(tmp_path: Path, samples: np.ndarray, tags: dict[str, Any]) -> None:
    """One sentence instead of a wrong image."""
    tiff(tmp_path / "a.tif", samples, **tags)
    with pytest.raises(MediaError, match=r"a\.tif") as caught:
        read_image(tmp_path / "a.tif")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".avif", ".jp2", ".tga", ".ppm"])
def test_formats_that_are_read_only(tmp_path: Path, suffix: str) -> None:
    """Alone, they become a PNG image rather than a video of one frame."""
    path = tmp_path / f"a{suffix}"
    try:
        options: dict[str, Any] = {"quality": 100} if suffix == ".avif" else {}
        PICTURE.save(path, **options)
    except (OSError, KeyError):
        pytest.skip(f"this build of Pillow writes no {suffix}")
    assert default_output(path) == tmp_path / "a_x4.png"
    assert_close(path, tolerance=3)
    with open_source(path) as source:
        assert source.frame_count == 1


@pytest.mark.parametrize("suffix", [".dds", ".ico", ".pcx", ".qoi", ".sgi", ".xbm"])
def test_formats_that_are_refused(tmp_path: Path, suffix: str) -> None:
    """FFmpeg would read them as a video of one frame, or one of several sizes."""
    picture = PICTURE.convert("1") if suffix == ".xbm" else PICTURE
    picture.save(tmp_path / f"a{suffix}")
    with pytest.raises(
        MediaError, match=rf"a\{suffix} is an image of a kind that is not supported"
    ):
        open_source(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".ppm", ".pgm", ".jp2"])
def test_deep_samples_of_other_formats(tmp_path: Path, suffix: str) -> None:
    """Pillow reads RGB of 8 bits from them."""
    path = tmp_path / f"a{suffix}"
    deep = DEEP[..., 0] if suffix == ".pgm" else DEEP
    if suffix == ".jp2":
        context: Any = av.CodecContext.create("jpeg2000", "w")
        context.width, context.height, context.pix_fmt = 24, 16, "rgb48le"
        context.time_base, context.options = Fraction(1), {"pred": "dwt53"}
        frame = av.VideoFrame.from_ndarray(DEEP, format="rgb48le")
        frame.pts = 0
        path.write_bytes(b"".join(map(bytes, [*context.encode(frame), *context.encode(None)])))
    else:
        number = 5 if suffix == ".pgm" else 6
        path.write_bytes(b"P%d\n24 16\n65535\n" % number + deep.astype(">u2").tobytes())
    image = read_image(path)
    assert image.dtype == np.uint16
    expected = deep if deep.ndim == 3 else np.dstack([deep] * 3)
    assert np.abs(image.astype(int) - expected).max() <= (400 if suffix == ".jp2" else 0)


def test_colours_and_depth_of_avif(tmp_path: Path) -> None:
    """HDR is said in a PNG, too; Pillow reads 8 bits."""
    with av.open(str(tmp_path / "a.avif"), "w") as out:
        video: Any = out.add_stream("libsvtav1", width=64, height=64, pix_fmt="yuv420p10le")
        context: Any = video.codec_context
        context.options = {"preset": "13", "svtav1-params": "avif=1"}
        context.colorspace, context.color_range = 9, 1
        context.color_primaries, context.color_trc = 9, 16
        frame = av.VideoFrame.from_ndarray(media.gradient(0, width=64, height=64), format="rgb24")
        frame = frame.reformat(format="yuv420p10le", dst_colorspace=9)
        frame.pts = 0
        out.mux([*video.encode(frame), *video.encode(None)])
    summary = upscale_file(tmp_path / "a.avif", tmp_path / "a.png", engine=BicubicEngine())
    assert b"cICP" + bytes([9, 16, 0, 1]) in (tmp_path / "a.png").read_bytes()
    assert [c.what for c in summary.converted] == ["10 bits per sample"]


def test_a_gif_alone_is_a_video(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.gif")
    assert default_output(tmp_path / "a.gif") == tmp_path / "a_x4.mkv"


def dropped(folder: Path) -> list[str]:
    summary = upscale_file(folder, folder.with_name("out"), engine=BicubicEngine())
    return [change.what for change in summary.dropped]


def test_a_folder_of_many_formats(tmp_path: Path) -> None:
    """All images in it are taken; other files are counted, but for those of the system."""
    folder = tmp_path / "in"
    folder.mkdir()
    suffixes = ["tif", "png", "tga", "gif", "jp2", "ppm", "webp"]
    for number, suffix in enumerate(suffixes):
        PICTURE.save(folder / f"{number}.{suffix}")
    for name in ("notes.txt", "a.cr2", "b.heic", "c.exr", "Thumbs.db", ".DS_Store"):
        (folder / name).write_text("other")
    assert dropped(folder) == [f"4 files in {folder}: a.cr2, b.heic, c.exr and 1 more"]
    assert len(list((tmp_path / "out").iterdir())) == len(suffixes)


@pytest.mark.parametrize("suffix", ["tif", "png", "gif", "webp", "mpo"])
def test_further_images_in_a_file(tmp_path: Path, suffix: str) -> None:
    """The first image of pages and animations in a folder is read, and the others are counted."""
    folder = tmp_path / "in"
    folder.mkdir()
    PICTURE.save(folder / "0.png")
    for number in (1, 2):
        PICTURE.save(folder / f"{number}.{suffix}", save_all=True, append_images=[OTHER, THIRD])
    assert dropped(folder) == [f"4 further images in 1.{suffix}, 2.{suffix}"]


def test_pages_of_a_single_file(tmp_path: Path) -> None:
    # New images: Pillow's own settings of an earlier save as JPEG would stay with the others.
    first, *others = (Image.fromarray(pixels) for pixels in (PIXELS, *[255 - PIXELS] * 3))
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    with open_source(tmp_path / "a.tif") as source:
        (frame,) = source
        assert [c.what for c in source.changes.dropped] == ["3 further images in a.tif"]
    np.testing.assert_array_equal(frame.image, PIXELS)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"avci"])
def test_heif(tmp_path: Path, brand: bytes) -> None:
    """FFmpeg would read one of its tiles: it is refused instead."""
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(500))
    with pytest.raises(MediaError, match=r"is a HEIF image .* convert it to PNG or JPEG"):
        open_source(path)


def test_pixels_beyond_the_limit(tmp_path: Path) -> None:
    """A header that claims any size is refused before memory is allocated."""
    for suffix in ("png", "tif", "tga", "gif", "bmp"):
        path = tmp_path / f"a.{suffix}"
        PICTURE.save(path)
        data = bytearray(path.read_bytes())
        if suffix == "png":
            data[16:24] = b"\0\0\xff\xff\0\0\xff\xff"
        elif suffix == "tga":
            data[12:16] = b"\xff" * 4
        elif suffix == "gif":
            data[6:10] = b"\xff" * 4
        elif suffix == "bmp":
            data[18:26] = b"\xff\xff\0\0\xff\xff\0\0"
        else:
            tiff(path, PIXELS, t256=65535, t257=65535)
            data = bytearray(path.read_bytes())
        path.write_bytes(data)
        with pytest.raises(MediaError, match=r"pixels|damaged"):
            read_image(path)
