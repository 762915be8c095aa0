"""Measures how far numbers and images are from those of a reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.pixels import psnr_of

__all__ = ["LEVELS", "ErrorSum", "Errors", "FrameErrors", "ImageErrorSum", "ImageErrors"]

_MOST = 200.0
"""PSNR in dB of equal values."""

LEVELS = ("0", "1", "2", "3", "4-7", "8-15", "16+")
"""Classes of absolute differences of uint8 values."""
_FIRST = [0, 1, 2, 3, 4, 8, 16]  # the smallest difference of each class

_GAP = 16  # white columns between the panels of an image


@dataclass(frozen=True)
class Errors:
    """Summarises how floating-point or uint8 numbers differ from the reference."""

    max_difference: float
    peak: float
    """Full signal of the PSNR: 1 for upscaled frames, 255 for uint8, and the reference's largest
    absolute value, at least 1, for everything else.
    """
    psnr: float
    """In dB, at most 200."""
    not_finite: int = 0
    """Number of values that are NaN or infinite on either side; the other figures exclude them."""


@dataclass(frozen=True)
class FrameErrors:
    """Holds the errors of one upscaled frame before it is clamped and becomes uint8."""

    number: int
    errors: Errors


@dataclass(frozen=True)
class ImageErrors:
    """Summarises how the uint8 images, (4H, 4W, 3) each, differ from the reference."""

    max_levels: int
    histogram: dict[str, int]
    """Number of values by the size of their difference; see :data:`LEVELS`."""
    pixels: int
    differing_pixels: int
    """Number of pixels that differ in at least one channel."""


class ErrorSum:
    """Accumulates the differences of many arrays.

    Args:
        peak: full signal of the PSNR; the reference's largest absolute value, at least 1, if
            ``None``.
    """

    def __init__(self, *, peak: float | None = None) -> None:
        self._peak = peak
        self._largest = 0.0
        self._squares = 0.0
        self._count = 0
        self._max = 0.0
        self._not_finite = 0

    def add(self, reference: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float32]:
        """Add two arrays of one shape and any numeric type.

        Returns:
            Their absolute differences, infinite where they are not finite.
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
        """Add everything that was added to another sum."""
        self._largest = max(self._largest, more._largest)
        self._max = max(self._max, more._max)
        self._squares += more._squares
        self._count += more._count
        self._not_finite += more._not_finite

    def figures(self) -> Errors:
        """Return the errors of everything added so far."""
        peak = max(1.0, self._largest) if self._peak is None else self._peak
        mean_square = self._squares / max(1, self._count)
        psnr = psnr_of(mean_square, peak=peak, most=_MOST)
        return Errors(self._max, peak, psnr, self._not_finite)


class ImageErrorSum:
    """Accumulates the errors of upscaled frames, and holds the two images of the worst frame."""

    def __init__(self) -> None:
        self.errors = ErrorSum(peak=1.0)
        """Errors of all frames before they are clamped and become uint8."""
        self.per_frame: list[FrameErrors] = []
        self.worst_frame = 0
        """Number of the frame with the most NaN or infinite values, then the lowest PSNR."""
        self._histogram = np.zeros(len(LEVELS), np.int64)
        self._max_levels = 0
        self._pixels = 0
        self._differing = 0
        self._worst: tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]] | None = None

    def add(
        self,
        reference: Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]],
        other: Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]],
    ) -> None:
        """Add equally many frames of both sides, each (3, 4H, 4W) in floating point and (4H, 4W, 3)
        in uint8.
        """
        for (want, want_image), (got, got_image) in zip(reference, other, strict=True):
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
        """Return the errors of all frames as uint8."""
        histogram = dict(zip(LEVELS, self._histogram.tolist(), strict=True))
        return ImageErrors(self._max_levels, histogram, self._pixels, self._differing)

    def worst_image(self) -> NDArray[np.uint8]:
        """Return the worst frame side by side: the reference, the other, and their absolute
        difference, amplified until its largest value is white: (4H, 12W + two white gaps, 3) uint8
        RGB.
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
