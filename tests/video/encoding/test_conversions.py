"""Tests that frames converted in threads are those of the plain conversion, in order."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from rbvsr_deploy.video.colour.colour import RGB_COLOUR
from rbvsr_deploy.video.colour.conversion import from_rgb
from rbvsr_deploy.video.colour.planes import planes_of
from rbvsr_deploy.video.encoding import conversions
from rbvsr_deploy.video.encoding.conversions import Conversions


def images(count: int) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (32, 48, 3), np.uint8) for _ in range(count)]


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p10le", "gbrp"])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_frames_are_those_of_the_plain_conversion(threads: int, pix_fmt: str) -> None:
    """They have equal bytes, come out in order, and none is missing."""
    pictures = images(9)
    with Conversions[int](pix_fmt=pix_fmt, colour=RGB_COLOUR, threads=threads) as converter:
        out = [pair for i, image in enumerate(pictures) for pair in converter.add(image, i)]
        assert len(out) == 9 - threads
        out += converter.rest()
    assert [number for _, number in out] == list(range(9))
    for (frame, _), image in zip(out, pictures, strict=True):
        want = from_rgb(image, pix_fmt=pix_fmt, colour=RGB_COLOUR)
        for got, plane in zip(planes_of(frame), planes_of(want), strict=True):
            np.testing.assert_array_equal(got, plane)


def test_a_slow_frame_does_not_change_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames converted meanwhile wait for it."""
    release = threading.Event()

    def convert(image: Any, **options: Any) -> Any:
        if image[0, 0, 0] == 0:
            assert release.wait(10)
        else:
            release.set()
        return int(image[0, 0, 0])

    monkeypatch.setattr(conversions, "from_rgb", convert)
    with Conversions[None](pix_fmt="yuv420p", colour=RGB_COLOUR, threads=2) as converter:
        numbered = [np.full((2, 2, 3), i, np.uint8) for i in range(3)]
        out: list[Any] = [frame for image in numbered for frame, _ in converter.add(image, None)]
        out += [frame for frame, _ in converter.rest()]
    assert out == [0, 1, 2]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Big images are held one at a time, however many threads there are."""
    monkeypatch.setattr(conversions, "_MOST_WAITING", 2 * 32 * 48 * 3)
    with Conversions[None](pix_fmt="yuv420p", colour=RGB_COLOUR, threads=4) as converter:
        out = [frame for image in images(6) for frame, _ in converter.add(image, None)]
        assert len(out) == 4


def test_errors_reach_the_caller_and_discarded_frames_do_not() -> None:
    """An image that cannot be converted fails where it would have come out."""
    with Conversions[None](pix_fmt="yuv420p", colour=RGB_COLOUR, threads=1) as converter:
        list(converter.add(np.zeros((4, 4), np.uint8), None))
        with pytest.raises((ValueError, IndexError)):
            list(converter.rest())
        list(converter.add(np.zeros((4, 4), np.uint8), None))
        converter.clear()
        assert list(converter.rest()) == []
    converter.close()
