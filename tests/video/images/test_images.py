"""Tests reading and writing images and image folders."""

from __future__ import annotations

import logging
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video import Frame, default_output, open_source
from rbvsr_deploy.video.images import IMAGE_SUFFIXES, read_image, write_image
from tests.support import media
from tests.support.sinks import job_sink


def encoded(array: np.ndarray, *, codec: str, source: str, pix_fmt: str) -> bytes:
    """Encode an image without the code under test."""
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = array.shape[1], array.shape[0], pix_fmt
    context.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(array, format=source).reformat(format=pix_fmt)
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def enlarge(path: Path, out: Path, **options: Any) -> None:
    """Copy an input to an output, twice as large."""
    with open_source(path) as source:
        size: dict[str, Any] = {"width": 2 * source.width, "height": 2 * source.height}
        with job_sink(out, source=source, **size, **options) as sink:
            for frame in source:
                image = frame.image.repeat(2, axis=0).repeat(2, axis=1)
                sink.write(Frame(image=image, pts=frame.pts, name=frame.name))
            sink.finish()


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_format_round_trips(tmp_path: Path, suffix: str) -> None:
    image = media.gradient(3, width=50, height=37)
    path = tmp_path / f"a{suffix}"
    write_image(path, image=image)
    back = read_image(path)
    assert back.dtype == np.uint8
    assert back.flags.c_contiguous
    if suffix in (".jpg", ".jpeg"):
        assert np.abs(back.astype(int) - image).mean() < 2
    else:
        np.testing.assert_array_equal(back, image)


@pytest.mark.parametrize("rgb", [(200, 40, 30), (30, 180, 60), (40, 60, 190)])
def test_jpeg_colours(tmp_path: Path, rgb: tuple[int, int, int]) -> None:
    path = tmp_path / "a.jpg"
    write_image(path, image=np.full((32, 32, 3), rgb, np.uint8))
    data = path.read_bytes()
    (frame,) = av.CodecContext.create("mjpeg", "r").decode(av.Packet(data))
    y, u, v = (np.frombuffer(plane, np.uint8)[0] for plane in frame.planes)
    r, g, b = rgb
    np.testing.assert_allclose(y, 0.299 * r + 0.587 * g + 0.114 * b, atol=1.5)
    np.testing.assert_allclose(u, 128 - 0.168736 * r - 0.331264 * g + 0.5 * b, atol=1.5)
    np.testing.assert_allclose(v, 128 + 0.5 * r - 0.418688 * g - 0.081312 * b, atol=1.5)
    np.testing.assert_allclose(read_image(path)[16, 16], rgb, atol=2)


def test_folder_to_folder_keeps_names_in_natural_order(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(["2.png", "10.png", "b.JPG", "scan.tif"]):
        write_image(folder / name, image=media.gradient(number))
    (folder / "notes.txt").write_text("ignored")
    (folder / "sub").mkdir()
    with open_source(folder) as source:
        assert (source.width, source.height, source.frame_count) == (64, 48, 4)
        assert [frame.name for frame in source] == ["2.png", "10.png", "b.JPG", "scan.tif"]
    out = default_output(folder)
    assert out == tmp_path / "in_x4"
    enlarge(folder, out)
    assert sorted(path.name for path in out.iterdir()) == ["10.png", "2.png", "b.JPG", "scan.tif"]
    expected = media.gradient(1).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(read_image(out / "10.png"), expected)
    assert (out / "b.JPG").read_bytes()[:2] == b"\xff\xd8"


def test_single_image(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    write_image(path, image=media.gradient(0))
    assert default_output(path) == tmp_path / "one_x4.png"
    enlarge(path, tmp_path / "one_x4.png")
    assert read_image(tmp_path / "one_x4.png").shape == (96, 128, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "one_x4.png"}


def test_format_is_detected_from_the_content(tmp_path: Path) -> None:
    write_image(tmp_path / "image.png", image=media.gradient(0))
    (tmp_path / "image.png").rename(tmp_path / "misnamed.mp4")
    with open_source(tmp_path / "misnamed.mp4") as source:
        assert source.frame_count == 1


def test_names_with_percent_and_colon(tmp_path: Path) -> None:
    """FFmpeg would interpret these as a number pattern and a protocol."""
    path = tmp_path / "a:b %03d.png"
    write_image(path, image=media.gradient(0))
    assert read_image(path).shape == (48, 64, 3)
    clip = media.make_video(tmp_path / "x.mp4", stamps=[0, 1001])
    odd = clip.rename(tmp_path / "c:d %03d.mp4")
    enlarge(odd, tmp_path / "e:f %03d.mp4")
    assert len(media.stamps_of(tmp_path / "e:f %03d.mp4")) == 2


def test_folder_to_video(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        write_image(folder / f"{number}.png", image=media.gradient(number))
    enlarge(folder, tmp_path / "out.mp4")
    assert media.stamps_of(tmp_path / "out.mp4") == [Fraction(n, 25) for n in range(5)]
    first = media.frames_of(tmp_path / "out.mp4")[0]
    expected = media.gradient(0).repeat(2, axis=0).repeat(2, axis=1)
    assert np.abs(first.astype(int) - expected).mean() < 4


def test_video_to_folder(tmp_path: Path) -> None:
    path = media.make_video(tmp_path / "in.mp4", stamps=[0, 1001, 2002])
    enlarge(path, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["00000000.png", "00000001.png", "00000002.png"]


def test_existing_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_image(folder / "1.png", image=media.gradient(0))
    out = tmp_path / "out"
    out.mkdir()
    enlarge(folder, out)  # an existing folder may be used if it is empty
    (out / "other.txt").write_text("mine")
    with pytest.raises(MediaError, match="is not empty"):
        enlarge(folder, out)
    enlarge(folder, out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["1.png", "other.txt"]
    with pytest.raises(MediaError, match="is the input itself"):
        enlarge(folder, folder, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_file_of_a_different_size_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png", image=media.gradient(0))
    write_image(tmp_path / "2.png", image=media.gradient(0, width=32))
    with open_source(tmp_path) as source, pytest.raises(MediaError, match=r"2\.png is 32x48"):
        list(source)


@pytest.mark.parametrize("size", [40, 120])
def test_damaged_image(tmp_path: Path, size: int) -> None:
    write_image(tmp_path / "1.png", image=media.gradient(0))
    data = (tmp_path / "1.png").read_bytes()
    (tmp_path / "2.png").write_bytes(data[:size])
    with pytest.raises(MediaError, match=r"cannot read the image .*2\.png"):
        read_image(tmp_path / "2.png")


def test_truncated_jpeg(tmp_path: Path) -> None:
    """Decoders tend to fill the missing part with grey."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "a.jpg"
    write_image(path, image=noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
    with pytest.raises(MediaError, match="cannot read the image"):
        read_image(path)


@pytest.mark.parametrize("opacity", [255, 100])
def test_alpha_is_dropped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, opacity: int
) -> None:
    image = media.gradient(0)
    rgba = np.dstack([image, np.full(image.shape[:2], opacity, np.uint8)])
    path = tmp_path / "a.png"
    path.write_bytes(encoded(rgba, codec="png", source="rgba", pix_fmt="rgba"))
    with caplog.at_level(logging.WARNING), open_source(path) as source:
        (frame,) = source
    np.testing.assert_array_equal(frame.image, image)
    assert frame.opacity is None
    assert caplog.text.count("Dropped: alpha channel") == (opacity < 255)


def test_grey_and_sixteen_bits(tmp_path: Path) -> None:
    grey = media.gradient(0)[..., 0].copy()
    path = tmp_path / "grey.png"
    path.write_bytes(encoded(grey, codec="png", source="gray", pix_fmt="gray"))
    np.testing.assert_array_equal(read_image(path), np.dstack([grey] * 3))
    deep = np.random.default_rng(0).integers(0, 65536, (48, 64, 3)).astype(np.uint16)
    path.write_bytes(encoded(deep, codec="png", source="rgb48le", pix_fmt="rgb48be"))
    np.testing.assert_array_equal(read_image(path), deep)


def test_orientation_of_a_photograph_is_applied(tmp_path: Path) -> None:
    """Cameras store images lying on their side and mark them with EXIF orientation 6."""
    path = tmp_path / "a.jpg"
    image = np.zeros((48, 64, 3), np.uint8)
    image[:16, :16] = 255
    write_image(path, image=image)
    data = path.read_bytes()
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    tiff = b"MM\0*" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 0)
    exif = b"\xff\xe1" + struct.pack(">H", 2 + 6 + len(tiff)) + b"Exif\0\0" + tiff
    path.write_bytes(data[:2] + exif + data[2:])
    np.testing.assert_allclose(read_image(path), np.rot90(image, -1), atol=6)


def test_default_output_of_videos() -> None:
    expected = {
        "a/clip.mp4": "a/clip_x4.mp4",
        "a/CLIP.MOV": "a/CLIP_x4.MOV",
        "clip.v2.mkv": "clip.v2_x4.mkv",
        "clip.wmv": "clip_x4.mkv",
        "clip.gif": "clip_x4.mkv",
        "clip": "clip_x4.mkv",
        "photo.webp": "photo_x4.webp",
    }
    assert {name: str(default_output(Path(name))) for name in expected} == expected


def test_unreadable_file_with_an_image_extension_is_reported(tmp_path: Path) -> None:
    """A frame truncated to nothing would otherwise be missing from the video silently."""
    for name in ("1.png", "3.png"):
        write_image(tmp_path / name, image=np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "notes.txt").write_text("not an image, nor named like one")
    (tmp_path / "._1.png").write_bytes(b"what macOS stores next to a file")
    with open_source(tmp_path) as source:
        assert [frame.name for frame in source] == ["1.png", "3.png"]
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(MediaError, match=r"2\.png has an image extension but is not a complete"):
        open_source(tmp_path)


def test_motion_jpeg_without_a_container_is_a_video(tmp_path: Path) -> None:
    path = tmp_path / "camera.mjpeg"
    with av.open(str(path), "w", format="mjpeg") as out:
        stream = out.add_stream("mjpeg", rate=25, width=32, height=16)
        stream.codec_context.pix_fmt = "yuvj420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 32, 3), np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with open_source(path) as source:
        assert len(list(source)) == 3
