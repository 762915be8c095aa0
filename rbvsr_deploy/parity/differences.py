"""Figures of how far numbers and pictures are from those of a reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.psnr import psnr_of

__all__ = ["LEVELS", "ErrorSum", "Errors", "FrameErrors", "ImageErrors", "PictureErrors"]

_MOST = 200.0
"""PSNR in dB where there is no difference at all."""

LEVELS = ("0", "1", "2", "3", "4-7", "8-15", "16+")
"""Classes of absolute differences of uint8 values."""
_FIRST = [0, 1, 2, 3, 4, 8, 16]  # of each class

_GAP = 16  # white columns between the panels of a picture


@dataclass(frozen=True)
class Errors:
    """Differences of floating-point or uint8 numbers from the reference."""

    max_difference: float
    peak: float
    """What the PSNR counts as the full signal: 1 for pictures, 255 for uint8, and the largest
    absolute value of the reference, 1 at least, for everything else.
    """
    psnr: float
    """In dB, 200 at most."""
    not_finite: int = 0
    """How many differences are no finite number, because one side or both are not. They are left
    out of the other figures.
    """


@dataclass(frozen=True)
class FrameErrors:
    """Of the picture of one frame before it is clamped and becomes uint8."""

    number: int
    errors: Errors


@dataclass(frozen=True)
class ImageErrors:
    """Of the uint8 pictures: (4H, 4W, 3) each."""

    max_levels: int
    histogram: dict[str, int]
    """How many values differ by how many levels; see :data:`LEVELS`."""
    pixels: int
    differing_pixels: int
    """Those that differ in at least one channel."""


class ErrorSum:
    """Differences of many arrays in one set of figures.

    Args:
        peak: of the PSNR; the reference's largest absolute value, 1 at least, if ``None``.
    """

    def __init__(self, *, peak: float | None = None) -> None:
        self._peak = peak
        self._largest = 0.0
        self._squares = 0.0
        self._count = 0
        self._max = 0.0
        self._not_finite = 0

    def add(self, reference: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float32]:
        """Take two arrays of one shape and any numeric type.

        Returns:
            Their absolute differences, infinite where they are no finite number.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.abs(other.astype(np.float32) - reference.astype(np.float32))
            squares = np.square(difference)
        finite = np.isfinite(difference)
        count = int(np.count_nonzero(finite))
        self._squares += float(squares.sum(where=finite, dtype=np.float64))
        self._count += count
        self._not_finite += difference.size - count
        self._max = max(self._max, float(difference.max(where=finite, initial=0.0)))
        values = np.abs(reference.astype(np.float32))
        self._largest = max(self._largest, float(values.max(where=finite, initial=0.0)))
        difference[~finite] = np.inf
        return difference

    def merge(self, more: ErrorSum) -> None:
        """Take what another one has been given."""
        self._largest = max(self._largest, more._largest)
        self._max = max(self._max, more._max)
        self._squares += more._squares
        self._count += more._count
        self._not_finite += more._not_finite

    def figures(self) -> Errors:
        """Of everything so far."""
        peak = max(1.0, self._largest) if self._peak is None else self._peak
        mean_square = self._squares / max(1, self._count)
        psnr = psnr_of(mean_square, peak=peak, most=_MOST)
        return Errors(self._max, peak, psnr, self._not_finite)


class PictureErrors:
    """Figures of pictures as they come; holds the two of the worst frame."""

    def __init__(self) -> None:
        self.errors = ErrorSum(peak=1.0)
        """Of all pictures before they are clamped and become uint8."""
        self.per_frame: list[FrameErrors] = []
        self.worst_frame = 0
        """Number of the frame with the most values that are not finite, then the lowest PSNR."""
        self._histogram = np.zeros(len(LEVELS), np.int64)
        self._max_levels = 0
        self._pixels = 0
        self._differing = 0
        self._worst: tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]] | None = None

    def add(
        self,
        pictures: Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]],
        others: Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]],
    ) -> None:
        """Take as many pictures of the other as of the reference, each (3, 4H, 4W) in floating
        point and (4H, 4W, 3) in uint8.
        """
        for (want, want_image), (got, got_image) in zip(pictures, others, strict=True):
            errors = ErrorSum(peak=1.0)
            difference = errors.add(want, got)
            self.errors.merge(errors)
            self._add_images(want_image, got_image)
            frame = FrameErrors(len(self.per_frame), errors.figures())
            self.per_frame.append(frame)
            worst = self.per_frame[self.worst_frame]
            if self._worst is None or _quality(frame) < _quality(worst):
                self.worst_frame = frame.number
                self._worst = (want_image, got_image, difference)

    def images(self) -> ImageErrors:
        """Of all pictures as uint8."""
        histogram = dict(zip(LEVELS, self._histogram.tolist(), strict=True))
        return ImageErrors(self._max_levels, histogram, self._pixels, self._differing)

    def worst_picture(self) -> NDArray[np.uint8]:
        """The reference's picture of the worst frame, the other's, and their absolute difference,
        amplified until its largest value is white: (4H, 12W + two white gaps, 3) uint8 RGB.
        """
        assert self._worst is not None
        want, got, difference = self._worst
        largest = float(difference.max(where=np.isfinite(difference), initial=0.0)) or 1.0
        levels = np.rint(255 * np.minimum(difference / largest, 1.0)).astype(np.uint8)
        amplified = levels.transpose(1, 2, 0)
        gap = np.full((len(want), _GAP, 3), 255, np.uint8)
        return np.concatenate((want, gap, got, gap, amplified), axis=1)

    def _add_images(self, want: NDArray[np.uint8], got: NDArray[np.uint8]) -> None:
        levels = np.abs(got.astype(np.int16) - want.astype(np.int16))
        self._histogram += np.add.reduceat(np.bincount(levels.ravel(), minlength=256), _FIRST)
        self._max_levels = max(self._max_levels, int(levels.max()))
        self._pixels += levels.shape[0] * levels.shape[1]
        self._differing += int(np.count_nonzero(levels.any(axis=2)))


def _quality(frame: FrameErrors) -> tuple[int, float]:
    return -frame.errors.not_finite, frame.errors.psnr
