"""Tests how large the output becomes."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.runtime.output_size import OutputSize

PAL = {"height": 576, "width": 720}
EVEN = (2, 2)


@pytest.mark.parametrize(
    ("size", "source", "expected"),
    [
        ({"scale": 2}, {"height": 75, "width": 101}, (202, 150)),
        ({"scale": 1}, {"height": 75, "width": 101}, (101, 75)),
        ({"scale": 1.5}, {"height": 75, "width": 101}, (152, 113)),
        ({"scale": 1.5}, {"height": 75, "width": 101, "multiple": EVEN}, (152, 112)),
        ({"scale": 3}, {"height": 75, "width": 101, "multiple": (1, 2)}, (304, 225)),
        ({"scale": 2}, {**PAL, "sample_aspect": Fraction(16, 15)}, (1440, 1152)),
        ({"height": 1080}, {"height": 180, "width": 320}, (1920, 1080)),
        ({"height": 1080}, {**PAL, "sample_aspect": Fraction(16, 15)}, (1440, 1080)),
        ({"height": 1080}, {"height": 320, "width": 181, "multiple": EVEN}, (610, 1080)),
        ({"size": (1920, 1080)}, {**PAL, "sample_aspect": Fraction(64, 45)}, (1920, 1080)),
        ({"size": (1920, 1080)}, {**PAL, "sample_aspect": Fraction(16, 15)}, (1440, 1080)),
        ({"size": (1921, 1081)}, {**PAL, "multiple": EVEN}, (1350, 1080)),
        ({"size": (1000, 2000)}, {"height": 180, "width": 320}, (1000, 563)),
        ({"size": (1000, 1000), "fit": "cover"}, {"height": 180, "width": 320}, (1000, 1000)),
        ({"size": (1000, 1000), "fit": "stretch"}, {"height": 180, "width": 320}, (1000, 1000)),
    ],
)
def test_sizes(size: dict[str, Any], source: dict[str, Any], expected: tuple[int, int]) -> None:
    """Width and height follow from the shape of the picture, not from that of its pixels."""
    target = OutputSize(**size).target(**source)
    assert target is not None
    assert (target.width, target.height) == expected


def test_pixels_keep_their_shape_only_with_a_scale() -> None:
    wide = Fraction(16, 15)
    scaled = OutputSize(scale=2).target(**PAL, sample_aspect=wide)
    square = OutputSize(height=720).target(**PAL, sample_aspect=wide)
    unknown = OutputSize(height=720).target(**PAL)
    assert scaled is not None and square is not None and unknown is not None  # noqa: PT018
    assert (scaled.sample_aspect, square.sample_aspect, unknown.sample_aspect) == (wide, 1, None)


def test_cover_crops_the_middle() -> None:
    """4:3 pixels 16:15 covering 16:9: a quarter of the rows goes, half of it at the top."""
    target = OutputSize(size=(1920, 1080), fit="cover").target(
        **PAL, sample_aspect=Fraction(16, 15)
    )
    assert target is not None
    assert target.rows == (72, 432)
    assert target.columns == (0, 720)
    tall = OutputSize(size=(90, 180), fit="cover").target(height=180, width=320)
    assert tall is not None
    assert (tall.rows, tall.columns) == ((0, 180), (115, 90))


@pytest.mark.parametrize("size", [{}, {"scale": 4}, {"height": 720}, {"size": (1280, 900)}])
def test_four_times_the_size_is_the_networks_own_output(size: dict[str, Any]) -> None:
    """Nothing is resized then, whichever way the size is given."""
    assert OutputSize(**size).target(height=180, width=320) is None
    anamorphic = OutputSize(**size).target(height=180, width=320, sample_aspect=Fraction(4, 3))
    assert (anamorphic is None) == (not size or "scale" in size)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"scale": 2, "height": 100}, "scale and height exclude each other"),
        ({"size": (1, 1), "height": 100}, "size and height exclude each other"),
        ({"scale": 2.5}, "the scale must be one of 1, 1.5, 2, 3, 4, got 2.5"),
        ({"scale": float("nan")}, "the scale must be one of"),
        ({"size": (0, 10)}, "whole number of pixels from 1, got 0"),
        ({"size": (10,)}, "a width and a height"),
        ({"height": 10.5}, "whole number of pixels from 1, got 10.5"),
        ({"fit": "cover"}, "'cover' is for a size of width and height"),
        ({"fit": "fill", "size": (1, 1)}, "fit must be one of inside, cover, stretch"),
    ],
)
def test_what_cannot_be_a_size(size: dict[str, Any], message: str) -> None:
    with pytest.raises(RbvsrError, match=message):
        OutputSize(**size)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"height": 89}, "158x89 is out of range for an input of 320x180: .* 0.5 to 8 times"),
        ({"height": 1441}, "out of range"),
        ({"size": (10**6, 10**6), "fit": "stretch"}, "1000000x1000000 is out of range"),
        ({"size": (300, 101), "fit": "stretch"}, "300x101 cannot be written, .* pixel format"),
        ({"height": 721}, "1282x721 cannot be written"),
    ],
)
def test_what_an_input_cannot_become(size: dict[str, Any], message: str) -> None:
    """The sentence says what is possible."""
    with pytest.raises(RbvsrError, match=message):
        OutputSize(**size).target(height=180, width=320, multiple=EVEN)


def test_names_of_outputs() -> None:
    sizes: list[dict[str, Any]] = [{}, {"scale": 1.5}, {"size": (1920, 1080)}, {"height": 1080}]
    names = [OutputSize(**size).ending for size in sizes]
    assert names == ["x4", "x1.5", "1920x1080", "1080p"]
