"""Chroma siting: colours must stay aligned with luma."""

from __future__ import annotations

import av
import numpy as np
import pytest

from rbvsr_deploy.video.colour.colour import Colour
from rbvsr_deploy.video.colour.conversion import from_rgb, to_rgb

WIDTH = 128
COLOUR = Colour(matrix=1, range=1, primaries=1, transfer=1)


def blueness_at(x: np.ndarray) -> np.ndarray:
    """Return 8-bit U codes at pixel x, with a slope at which rounding errors cancel out."""
    return 50 + 1.15 * x


def ramp(pix_fmt: str, *, siting: float) -> av.VideoFrame:
    """Return a frame with a horizontal U ramp; chroma sample j is sited at 2 j + ``siting``."""
    frame = av.VideoFrame(WIDTH, 16, pix_fmt)
    deep = "10" in pix_fmt
    scale = 4 if deep else 1
    for number, plane in enumerate(frame.planes):
        samples = np.frombuffer(memoryview(plane), np.uint16 if deep else np.uint8)
        rows = samples.reshape(plane.height, -1)
        rows[:] = 126 * scale
        if number == 1:
            rows[:, : plane.width] = np.rint(
                scale * blueness_at(2 * np.arange(plane.width) + siting)
            )
    return frame


def blueness(image: np.ndarray) -> np.ndarray:
    """Return 8-bit U codes along the middle row, by the equation of H.273."""
    red, green, blue = (image[8, :, i] / np.iinfo(image.dtype).max for i in range(3))
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return 224 * (blue - luma) / 1.8556 + 128


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv420p10le", "yuv422p10le"])
def test_video_has_chroma_on_the_left(pix_fmt: str) -> None:
    """Reading and writing: an offset of half a pixel would change the codes by 0.6 here."""
    image = to_rgb(ramp(pix_fmt, siting=0), colour=COLOUR)
    inside = slice(16, WIDTH - 32)
    found = blueness(image)[inside] - blueness_at(np.arange(WIDTH)[inside])
    assert abs(found.mean()) < 0.15
    frame = from_rgb(image, pix_fmt=pix_fmt, colour=COLOUR)
    deep = "10" in pix_fmt
    plane = frame.planes[1]
    samples = np.frombuffer(memoryview(plane), np.uint16 if deep else np.uint8)
    row = samples.reshape(plane.height, -1)[plane.height // 2, : plane.width]
    written = row[8:48] / (4 if deep else 1) - blueness_at(2 * np.arange(8, 48))
    assert abs(written.mean()) < 0.15


@pytest.mark.parametrize(("pix_fmt", "is_image"), [("yuvj420p", False), ("yuv420p", True)])
def test_images_have_centred_chroma(pix_fmt: str, is_image: bool) -> None:
    """This holds for JPEG in a video or a file, and for WebP."""
    colour = Colour(matrix=1, range=2 if "j" in pix_fmt else 1, primaries=1, transfer=1)
    image = to_rgb(ramp(pix_fmt, siting=0.5), colour=colour, is_image=is_image)
    inside = slice(16, WIDTH - 32)
    codes = blueness(image)[inside]
    if colour.range == 2:
        codes = (codes - 128) * 255 / 224 + 128
    found = codes - blueness_at(np.arange(WIDTH)[inside])
    assert abs(found.mean()) < 0.15


def test_a_decoded_frame_is_not_modified() -> None:
    """The decoder still uses it as a reference for other frames."""
    frame = ramp("yuv420p", siting=0)
    before = [bytes(plane) for plane in frame.planes]
    to_rgb(frame, colour=COLOUR)
    assert [bytes(plane) for plane in frame.planes] == before
