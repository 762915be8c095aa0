"""Tests that conversions do not depend on those before them in the thread, whose contexts of
swscale are kept.
"""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

from rbvsr_deploy.pixels import Image
from rbvsr_deploy.video.colour.colour import Colour, colour_of
from rbvsr_deploy.video.colour.conversion import from_rgb, to_rgb
from rbvsr_deploy.video.colour.planes import planes_of

SIZES, MATRICES, RANGES = ((48, 32), (50, 34)), (1, 5, 9), (1, 2)
"""Sizes, and codes of BT.709, BT.601, BT.2020, limited and full range."""

CASES = list(itertools.product(SIZES, MATRICES, RANGES))


def there_and_back(size: tuple[int, int], matrix: int, code_range: int) -> list[NDArray[np.uint8]]:
    """Return a frame of noise as RGB, and its RGB as planes."""
    noise = np.random.default_rng(matrix)
    frame = VideoFrame(*size, "yuv420p")
    for plane in planes_of(frame):
        plane[...] = noise.integers(0, 256, plane.shape)
    frame.colorspace, frame.color_range = matrix, code_range
    colour: Colour = colour_of(frame)
    rgb: Image = to_rgb(frame, colour=colour)
    made = from_rgb(rgb, pix_fmt="yuv420p", colour=colour)
    return [np.asarray(rgb), *(plane.copy() for plane in planes_of(made))]


def in_a_new_thread(case: tuple[tuple[int, int], int, int]) -> list[NDArray[np.uint8]]:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(there_and_back, *case).result()


def test_earlier_conversions_change_nothing() -> None:
    """Size, matrix and range are those of each frame, whatever came before in the thread."""
    for case in [*CASES, *reversed(CASES), *CASES[::5], *CASES]:
        for got, want in zip(there_and_back(*case), in_a_new_thread(case), strict=True):
            np.testing.assert_array_equal(got, want, err_msg=str(case))


def test_threads_do_not_disturb_each_other() -> None:
    wanted = {case: in_a_new_thread(case) for case in CASES}
    begin = threading.Barrier(4)

    def convert(cases: list[tuple[tuple[int, int], int, int]]) -> bool:
        begin.wait()
        return all(
            np.array_equal(got, want)
            for case in cases * 10
            for got, want in zip(there_and_back(*case), wanted[case], strict=True)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(convert, [CASES[n:] + CASES[:n] for n in range(4)]))
