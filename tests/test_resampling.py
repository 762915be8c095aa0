"""Tests the weights of resizing against an independent filter in double precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rbvsr_deploy.graphs import MOST_ROWS, RATIOS, blocks_of, most_blocks
from rbvsr_deploy.resampling import Axis, resampled
from tests.support.resizing import weights_of

SIZES = [
    ((160, 224), (80, 112)),
    ((160, 224), (120, 168)),
    ((148, 100), (37, 25)),  # a scale of one
    ((148, 100), (21, 77)),
    ((20, 36), (37, 71)),
    ((4, 4), (2, 8)),
]


@pytest.mark.parametrize(("size", "result"), SIZES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_image_is_resized_as_in_double_precision(
    size: tuple[int, int], result: tuple[int, int], dtype: type[Any]
) -> None:
    """Every sample is that of the filter written as a formula, within one level."""
    most = np.iinfo(dtype).max
    image = np.random.default_rng(1).integers(0, most, (*size, 3), dtype, endpoint=True)
    got = resampled(image, Axis(size[0], result[0]), Axis(size[1], result[1]))
    rows, columns = (weights_of(a, b) for a, b in zip(size, result, strict=True))
    want = np.einsum("hH,HWc,wW->hwc", rows, image.astype(np.float64), columns, optimize=True)
    assert got.shape == (*result, 3)
    assert got.dtype == dtype
    assert np.abs(got - want.clip(0, most)).max() <= 1


@pytest.mark.parametrize(("size", "result"), SIZES)
def test_the_filter_is_that_of_pillow(size: tuple[int, int], result: tuple[int, int]) -> None:
    image = np.random.default_rng(2).random(size, np.float32)
    rows, columns = (weights_of(a, b) for a, b in zip(size, result, strict=True))
    pillow = Image.fromarray(image).resize(result[::-1], Image.Resampling.LANCZOS)
    np.testing.assert_allclose(rows @ image @ columns.T, np.asarray(pillow), atol=1e-5)


@pytest.mark.parametrize("start", [0.0, 10.25])
def test_bands_have_the_weights_of_the_whole(start: float) -> None:
    """Rows made from a part of the frame equal those made from all of it."""
    axis = Axis(120, 47, start=start, extent=100.0)
    values = np.random.default_rng(3).random((120, 5))

    def applied(start: int, stop: int, top: int, bottom: int) -> NDArray[Any]:
        blocks = axis.blocks(start, stop, top=top, height=bottom - top)
        made = np.einsum("rpk,rkw->rpw", blocks.weights, values[top:bottom][blocks.places])
        return made.reshape(-1, 5)[: stop - start]

    whole = applied(0, 47, 0, 120)
    for first, last in ((0, 20), (20, 21), (21, 47)):
        np.testing.assert_allclose(applied(first, last, *axis.span(first, last)), whole[first:last])
    np.testing.assert_allclose(whole, weights_of(120, 47, start=start, extent=100.0) @ values)


@pytest.mark.parametrize(
    "ratio", [RATIOS[0], 0.8, 1.0, 4 / 3, 2.0, 3.99, 4.0, 4.01, 6.0, RATIOS[1]]
)
@pytest.mark.parametrize("size", [1, 5, 90, 1081])
def test_blocks_are_large_enough_and_within_the_profile(ratio: float, size: int) -> None:
    """Together they have all rows; each is made from the rows it has places for, and TensorRT's
    engines take as many.
    """
    count = max(1, math.floor(4 * size / ratio))
    number, rows, taps = blocks_of(count, ratio=ratio)
    assert count <= number * rows < count + number
    assert rows <= MOST_ROWS
    axis = Axis(4 * size, count)
    for i in range(number):
        first, stop = min(i * rows, count - 1), min((i + 1) * rows, count)
        if first < stop:
            top, bottom = axis.span(first, stop)
            assert bottom - top <= taps
    limits = most_blocks(size)
    for name, value in (("R", number), ("P", rows), ("K", taps)):
        assert limits[name][0] <= value <= limits[name][1]
