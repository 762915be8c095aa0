"""Defines how large the output is, and computes its size for an input.

The network always enlarges by four; other sizes are made from its output. Sizes in pixels are those
of square pixels: an anamorphic input gets them, whereas a scale keeps the shape of its pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.graphs import RATIOS, SCALE
from rbvsr_deploy.resampling import Axis

__all__ = ["SCALES", "Fit", "OutputSize", "Target", "output_sides"]

Fit = Literal["inside", "cover", "stretch"]

SCALES = (1, 1.5, 2, 3, 4)


@dataclass(frozen=True)
class Target:
    """Describes resized frames, and the part of the input that they show."""

    height: int
    width: int
    source: tuple[int, int]
    """H and W of the input's frames."""
    rows: tuple[Fraction, Fraction]
    """First row and number of rows of the part that is shown, in rows of the input."""
    columns: tuple[Fraction, Fraction]
    """The same in columns."""
    sample_aspect: Fraction | None
    """Width of a pixel divided by its height; ``None``: square or unknown."""

    def axes(self) -> tuple[Axis, Axis]:
        """Return the weights of rows and columns, from a frame of four times the input's size."""
        sizes = (self.height, self.width)
        height, width = (
            Axis(SCALE * size, count, start=float(SCALE * start), extent=float(SCALE * extent))
            for size, count, (start, extent) in zip(
                self.source, sizes, (self.rows, self.columns), strict=True
            )
        )
        return height, width


@dataclass(frozen=True)
class OutputSize:
    """Says how large the output is: by a scale, a size or a height; four times the input if none is
    given.

    Raises:
        RbvsrError: more than one of them is given, or a value is not allowed.
    """

    scale: float | None = None
    """One of :data:`SCALES`. Pixels keep their shape."""
    size: tuple[int, int] | None = None
    """Width and height in square pixels."""
    height: int | None = None
    """Height in square pixels; the width follows."""
    fit: Fit = "inside"
    """How an input of another shape gets the ``size``: "inside" makes it as large as fits, "cover"
    fills the size and crops what exceeds it, "stretch" changes its shape."""

    def __post_init__(self) -> None:
        names = ("scale", "size", "height")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise RbvsrError(
                f"{' and '.join(given)} exclude each other: give one of them", parameters=given
            )
        if self.scale is not None and self.scale not in SCALES:
            raise RbvsrError(
                f"the scale must be one of {', '.join(f'{s:g}' for s in SCALES)}, got "
                f"{self.scale!r}",
                parameters=("scale",),
            )
        if self.fit not in get_args(Fit):
            raise RbvsrError(f"fit must be one of {', '.join(get_args(Fit))}, got {self.fit!r}")
        if self.fit != "inside" and self.size is None:
            raise RbvsrError(
                f"fit {self.fit!r} is for a size of width and height: give one, or leave it out",
                parameters=("size", "fit"),
            )
        if self.size is not None and len(self.size) != 2:
            raise RbvsrError(f"the size must be a width and a height, got {self.size}")
        for side in (*(self.size or ()), *((self.height,) if self.height is not None else ())):
            if type(side) is not int or side < 1:
                raise RbvsrError(
                    f"a width or height must be a whole number of pixels from 1, got {side!r}",
                    parameters=given,
                )

    def __str__(self) -> str:
        if self.size is not None:
            return f"{self.size[0]}x{self.size[1]}, {self.fit}"
        return f"height {self.height}" if self.height is not None else f"scale {self._scale:g}"

    @property
    def ending(self) -> str:
        """The end of a default output's name, such as "x4", "1920x1080" or "1080p"."""
        if self.size is not None:
            return f"{self.size[0]}x{self.size[1]}"
        return f"{self.height}p" if self.height is not None else f"x{self._scale:g}"

    @property
    def _scale(self) -> float:
        return SCALE if self.scale is None else self.scale

    def target(
        self,
        *,
        height: int,
        width: int,
        sample_aspect: Fraction | None = None,
        multiple: tuple[int, int] = (1, 1),
    ) -> Target | None:
        """Return the size of the output for an input.

        Args:
            height, width: H and W of the input's frames, upright.
            sample_aspect: width of a pixel divided by its height; ``None``: square.
            multiple: what height and width of the output must be multiples of, as its pixel format
                requires. Sizes that are not given in pixels are rounded to them.

        Returns:
            ``None`` if the network's output is the output.

        Raises:
            RbvsrError: the size is out of range for this input, or not such a multiple.
        """
        whole = Fraction(0), Fraction(height)
        rows, columns = whole, (Fraction(0), Fraction(width))
        aspect = Fraction(width, height) * (sample_aspect or 1)
        shape = sample_aspect
        if self.size is None and self.height is None:
            if self._scale == SCALE:
                return None
            scale = Fraction(self._scale)
            made = [
                _rounded(scale * side, m) for side, m in zip((height, width), multiple, strict=True)
            ]
        else:
            shape = None if sample_aspect is None else Fraction(1)
            if self.height is not None:
                made = [self.height, _rounded(self.height * aspect, multiple[1])]
            elif self.fit == "inside":
                made = self._inside(aspect, multiple)
            else:
                made = list(reversed(self.size or ()))
            if self.fit == "cover":
                rows, columns = _cropped(height, width, Fraction(made[1], made[0]) / aspect)
        target = Target(made[0], made[1], (height, width), rows, columns, shape)
        self._check(target, multiple)
        same = (target.height, target.width) == (SCALE * height, SCALE * width)
        return (
            None
            if same and rows == whole and shape == sample_aspect and columns[0] == 0
            else target
        )

    def _inside(self, aspect: Fraction, multiple: tuple[int, int]) -> list[int]:
        """Return the largest height and width of a shape within the size."""
        assert self.size is not None
        width, height = (
            max(m, side // m * m) for side, m in zip(self.size, reversed(multiple), strict=True)
        )
        exact = min(Fraction(height), width / aspect), min(Fraction(width), height * aspect)
        return [
            min(_rounded(side, m), most)
            for side, most, m in zip(exact, (height, width), multiple, strict=True)
        ]

    def _check(self, target: Target, multiple: tuple[int, int]) -> None:
        sizes = target.height, target.width
        extents = target.rows[1], target.columns[1]
        given = [name for name in ("scale", "size", "height") if getattr(self, name) is not None]
        least, most = (Fraction(SCALE) / Fraction(ratio) for ratio in reversed(RATIOS))
        if any(not least * e <= n <= most * e for n, e in zip(sizes, extents, strict=True)):
            height, width = target.source
            cropped = " that is cropped" * (tuple(map(int, extents)) != target.source)
            raise RbvsrError(
                f"{target.width}x{target.height} is out of range for an input of {width}x{height}"
                f"{cropped}: each side must have from "
                f"{_shown(least)} to {most} times its pixels",
                parameters=given,
            )
        if any(n % m for n, m in zip(sizes, multiple, strict=True)):
            names = "multiples of " + " and ".join(
                f"{m} in {name}"
                for m, name in zip(multiple, ("height", "width"), strict=True)
                if m > 1
            )
            raise RbvsrError(
                f"{target.width}x{target.height} cannot be written, as the output's pixel format "
                f"takes only {names}: give such a size, or the pixel format yuv444p",
                parameters=(*given, "pix_fmt"),
            )


def output_sides(target: Target | None, *, height: int, width: int) -> tuple[int, int]:
    """Return the height and width of the output for an input of a height and width: four times
    theirs without a target.
    """
    if target is None:
        return SCALE * height, SCALE * width
    return target.height, target.width


def _rounded(value: Fraction, multiple: int) -> int:
    """Round to the nearest multiple, at least one."""
    return max(1, math.floor(value / multiple + Fraction(1, 2))) * multiple


def _cropped(
    height: int, width: int, wider: Fraction
) -> tuple[tuple[Fraction, Fraction], tuple[Fraction, Fraction]]:
    """Return the middle part of an input whose shape is ``wider`` times as wide: its rows and
    columns.
    """
    rows, columns = Fraction(height), Fraction(width)
    if wider > 1:
        rows /= wider
    else:
        columns *= wider
    return ((height - rows) / 2, rows), ((width - columns) / 2, columns)


def _shown(value: Fraction) -> str:
    return f"{float(value):g}"
