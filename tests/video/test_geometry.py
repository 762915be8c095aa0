"""Tests rotation, mirroring, pixel aspect ratios and odd sizes."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from rbvsr_deploy.video import open_source
from rbvsr_deploy.video.colour.orientation import UPRIGHT, exif_orientation, upright
from rbvsr_deploy.video.images import read_image, write_image
from tests.support import media
from tests.support.sinks import job_sink

# Signs (a, b, c, d) of a display matrix, which maps (x, y) to (a x + c y, b x + d y).
ORIENTATIONS = {
    (1, 0, 0, 1): lambda image: image,
    (-1, 0, 0, 1): lambda image: image[:, ::-1],
    (1, 0, 0, -1): lambda image: image[::-1],
    (-1, 0, 0, -1): lambda image: image[::-1, ::-1],
    (0, 1, 1, 0): lambda image: image.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),
    (0, -1, 1, 0): lambda image: np.rot90(image, 1),
}
# The same by EXIF orientation: where row 0 and column 0 of the file are displayed.
EXIF = {
    1: (1, 0, 0, 1),  # top, left
    2: (-1, 0, 0, 1),  # top, right
    3: (-1, 0, 0, -1),  # bottom, right
    4: (1, 0, 0, -1),  # bottom, left
    5: (0, 1, 1, 0),  # left, top
    6: (0, 1, -1, 0),  # right, top
    7: (0, -1, -1, 0),  # right, bottom
    8: (0, -1, 1, 0),  # left, bottom
}


def corners(*, width: int = 64, height: int = 48) -> np.ndarray:
    """Return a black image with a different colour in each corner."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:16, :16] = 255
    image[:16, -16:] = (200, 0, 0)
    image[-16:, :16] = (0, 160, 0)
    image[-16:, -16:] = (0, 0, 250)
    return image


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b).mean())


def exif(number: int, *, order: str) -> bytes:
    """Return an EXIF block with the orientation and one other tag."""
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    width = struct.pack(f"{order}HHII", 256, 4, 1, 64)
    orientation = struct.pack(f"{order}HHIHH", 274, 3, 1, number, 0)
    return start + struct.pack(f"{order}H", 2) + width + orientation + struct.pack(f"{order}I", 0)


def write_oriented(path: Path, image: np.ndarray, number: int, *, order: str = "<") -> None:
    """Write an image file with an EXIF orientation."""
    write_image(path, image=image)
    data = path.read_bytes()
    block = exif(number, order=order)
    if path.suffix == ".jpg":
        segment = b"Exif\0\0" + block
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    elif path.suffix == ".png":
        chunk = b"eXIf" + block
        chunk = struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        data = data[:33] + chunk + data[33:]  # after the header
    elif path.suffix == ".webp":
        height, width = image.shape[:2]
        size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
        header = b"VP8X" + struct.pack("<II", 10, 0x18) + size  # with EXIF, with alpha
        body = b"WEBP" + header + data[12:] + b"EXIF" + struct.pack("<I", len(block)) + block
        data = b"RIFF" + struct.pack("<I", len(body)) + body
    else:
        data = _tiff(image, number, order=order)
    path.write_bytes(data)


def _tiff(image: np.ndarray, number: int, *, order: str) -> bytes:
    """Encode an uncompressed TIFF with one strip."""
    height, width = image.shape[:2]
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 2),  # RGB
        (273, 4, 8),
        (274, 3, number),
        (277, 3, 3),
        (278, 4, height),
        (279, 4, image.nbytes),
    ]
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + image.nbytes)
    table = b"".join(
        struct.pack(f"{order}HHI", tag, kind, 1)
        + struct.pack(f"{order}{'I' if kind == 4 else 'Hxx'}", value)
        for tag, kind, value in tags
    )
    return start + image.tobytes() + struct.pack(f"{order}H", len(tags)) + table + bytes(4)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("matrix", sorted(ORIENTATIONS))
def test_orientation_of_a_video_is_applied_and_not_carried_over(
    tmp_path: Path, matrix: tuple[int, int, int, int], suffix: str
) -> None:
    path = media.make_video(
        tmp_path / "in.mp4", stamps=[0, 1001], images=[corners()] * 2, matrix=matrix
    )
    if suffix != ".mp4":
        path = media.remux(path, tmp_path / f"in{suffix}")
    expected = ORIENTATIONS[matrix](corners())
    out = tmp_path / f"out{suffix}"
    with open_source(path) as source:
        assert (source.height, source.width) == expected.shape[:2]
        size: dict[str, Any] = {"width": source.width, "height": source.height}
        with job_sink(out, source=source, **size) as sink:
            for frame in source:
                assert difference(frame.image, expected) < 4
                sink.write(frame)
            sink.finish()
    with av.open(str(out)) as container:
        assert "rotate" not in container.streams.video[0].metadata
        written = next(container.decode(video=0))
        assert written.side_data.get("DISPLAYMATRIX") is None
        assert difference(written.to_ndarray(format="rgb24"), expected) < 4


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
@pytest.mark.parametrize("number", sorted(EXIF))
def test_orientation_of_an_image_is_applied_and_not_carried_over(
    tmp_path: Path, number: int, suffix: str, order: str
) -> None:
    path = tmp_path / f"in{suffix}"
    write_oriented(path, corners(), number, order=order)
    expected = ORIENTATIONS[EXIF[number]](corners())
    assert difference(read_image(path), expected) < 2
    out = tmp_path / f"out{suffix}"
    with open_source(path) as source:
        assert (source.height, source.width) == expected.shape[:2]
        with job_sink(out, source=source, width=source.width, height=source.height) as sink:
            for frame in source:
                sink.write(frame)
            sink.finish()
    assert exif_orientation(out.read_bytes()) == UPRIGHT
    assert difference(read_image(out), expected) < 3


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_damaged_exif_data_is_ignored(suffix: str, tmp_path: Path) -> None:
    """EXIF data that is truncated anywhere or has an invalid orientation causes no error."""
    path = tmp_path / f"in{suffix}"
    write_oriented(path, corners(width=16, height=16), 9)
    data = path.read_bytes()
    assert exif_orientation(data) == UPRIGHT
    for end in range(0, len(data), max(1, len(data) // 300)):
        assert exif_orientation(data[:end]) == UPRIGHT


@pytest.mark.parametrize("matrix", sorted(ORIENTATIONS))
def test_upright(matrix: tuple[int, int, int, int]) -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    oriented = upright(image, matrix)
    np.testing.assert_array_equal(oriented, ORIENTATIONS[matrix](image))
    assert oriented.flags.c_contiguous


def test_other_angles_are_not_applied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = media.make_video(tmp_path / "in.mp4", stamps=[0, 1001], matrix=(1, 1, -1, 1))
    with open_source(path) as source:
        assert (source.width, source.height) == (64, 48)
        assert len(list(source)) == 2
    assert caplog.text.count("not a multiple of 90 degrees") == 1


def test_aspect_ratio_is_rotated_with_the_frame(tmp_path: Path) -> None:
    path = media.make_video(
        tmp_path / "in.mp4",
        stamps=[0],
        size=(48, 48),
        matrix=(0, 1, -1, 0),
        aspect=Fraction(16, 15),
    )
    with open_source(path) as source:
        assert source.sample_aspect == Fraction(15, 16)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".mp4", None), (".webm", None), (".mov", "prores_ks"), (".mkv", "ffv1"), (".avi", "mjpeg")],
)
@pytest.mark.parametrize("size", [(33, 17), (1, 1), (66, 50), (3, 130)])
def test_every_size_is_kept_exactly_times_four(
    tmp_path: Path, size: tuple[int, int], suffix: str, codec: str | None
) -> None:
    """The corners are compared too: nothing is cropped or padded."""
    width, height = size
    image = (
        corners(width=width, height=height)
        if min(size) > 32
        else media.gradient(0, width=width, height=height)
    )
    path = media.make_video(
        tmp_path / "in.mkv",
        codec="ffv1",
        pix_fmt="bgr0",
        stamps=[0, 40],
        time_base=Fraction(1, 1000),
        rate=Fraction(25),
        size=size,
        images=[image] * 2,
    )
    out = tmp_path / f"out{suffix}"
    with open_source(path) as source:
        assert (source.width, source.height) == size
        with job_sink(out, source=source, width=4 * width, height=4 * height, codec=codec) as sink:
            for frame in source:
                larger = frame.image.repeat(4, axis=0).repeat(4, axis=1)
                sink.write(dataclasses.replace(frame, image=larger))
            sink.finish()
    with av.open(str(out)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 2
    for enlarged in frames:
        assert (enlarged.width, enlarged.height) == (4 * width, 4 * height)
        got = enlarged.to_ndarray(format="rgb24")
        assert difference(got, image.repeat(4, axis=0).repeat(4, axis=1)) < 10


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".mp4", None), (".webm", None), (".mkv", "ffv1"), (".mov", "prores_ks"), (".mov", "mjpeg")],
)
def test_pixel_aspect_ratio_is_kept(tmp_path: Path, suffix: str, codec: str | None) -> None:
    path = media.make_video(tmp_path / "in.mp4", stamps=[0, 1001], aspect=Fraction(32, 27))
    out = tmp_path / f"out{suffix}"
    with open_source(path) as source:
        size: dict[str, Any] = {"width": source.width, "height": source.height}
        with job_sink(out, source=source, codec=codec, **size) as sink:
            for frame in source:
                sink.write(frame)
            sink.finish()
    with av.open(str(out)) as container:
        found = container.streams.video[0].sample_aspect_ratio
    # Matroska stores the display width in whole pixels.
    assert abs(found - Fraction(32, 27)) * size["width"] <= Fraction(1, 2)
    if suffix in (".mp4", ".mov"):
        assert found == Fraction(32, 27)


@pytest.mark.parametrize("size", [(64, 50), (62, 48), (1920, 1080)])
def test_stream_cropping_is_applied(tmp_path: Path, size: tuple[int, int]) -> None:
    """H.264 codes whole blocks of 16 and has a cropping rectangle."""
    width, height = size
    image = corners(width=width, height=height)
    path = media.make_video(tmp_path / "in.mp4", stamps=[0], size=size, images=[image])
    with open_source(path) as source:
        assert (source.width, source.height) == size
        (frame,) = source
    assert difference(frame.image, image) < 4
