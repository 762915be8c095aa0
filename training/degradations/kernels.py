"""Computes blur kernels: float32, square with an odd side, sum 1.

The formulas are those of Real-ESRGAN (ICCV workshops 2021), section 3. With d = x' S^-1 x for the
covariance S: Gaussian exp(-d/2), generalized Gaussian exp(-d^beta/2), plateau 1/(1 + d^beta). The
sinc is the ideal circular low-pass, c J1(c r) / (2 pi r) for the cutoff c.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Kernel",
    "gaussian_kernel",
    "plateau_kernel",
    "separable_parts",
    "sinc_kernel",
    "trimmed",
]

Kernel = NDArray[np.float32]


def gaussian_kernel(
    size: int, *, sigma_x: float, sigma_y: float, angle: float, beta: float = 1.0
) -> Kernel:
    """Compute a generalized Gaussian; a ``beta`` of 1 gives the ordinary Gaussian.

    Args:
        size: side in pixels, odd.
        sigma_x, sigma_y: standard deviations along the kernel's own axes, in pixels.
        angle: angle from the image's x axis to the kernel's, in radians.
        beta: exponent of the generalized Gaussian.
    """
    return _normalised(np.exp(-0.5 * _distance(size, sigma_x, sigma_y, angle) ** beta))


def plateau_kernel(
    size: int, *, sigma_x: float, sigma_y: float, angle: float, beta: float
) -> Kernel:
    """Compute a kernel with a flat middle; arguments as for :func:`gaussian_kernel`."""
    return _normalised(1.0 / (1.0 + _distance(size, sigma_x, sigma_y, angle) ** beta))


def sinc_kernel(size: int, *, cutoff: float) -> Kernel:
    """Compute the ideal circular low-pass, which causes ringing.

    Args:
        size: side in pixels, odd.
        cutoff: cutoff frequency in radians per pixel, up to pi.
    """
    radii, where = _radii(size)
    values = np.full(len(radii), cutoff**2 / (4.0 * np.pi))  # the limit at radius 0
    r = radii[1:]
    values[1:] = cutoff * _bessel_j1(cutoff * r) / (2.0 * np.pi * r)
    return _normalised(values[where])


def trimmed(kernel: Kernel) -> Kernel:
    """Zero the smallest values of a kernel and remove the borders that become empty.

    The result still has an odd side and sum 1. Filtering an image in [0, 1] with it differs by at
    most 0.2 levels of 255.
    """
    sizes = np.abs(kernel)
    ordered = np.sort(sizes, axis=None)
    smallest = ordered[np.searchsorted(np.cumsum(ordered), 0.1 / 255.0)]
    kept = np.where(sizes >= smallest, kernel, np.float32(0.0))
    middle = len(kernel) // 2
    reach = int(np.abs(np.argwhere(kept) - middle).max())
    inner = kept[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1]
    return _normalised(inner.astype(np.float64))


def separable_parts(kernel: Kernel) -> list[tuple[Kernel, Kernel]]:
    """Approximate a kernel as a sum of separable kernels, each given as its column and row.

    Filtering an image in [0, 1] with the sum differs by at most 0.3 levels of 255.
    """
    columns, strengths, rows = np.linalg.svd(kernel.astype(np.float64))
    parts, rest = [], kernel.astype(np.float64)
    for column, strength, row in zip(columns.T, strengths, rows, strict=True):
        parts.append(((column * strength).astype(np.float32), row.astype(np.float32)))
        rest = rest - np.outer(column * strength, row)
        if np.abs(rest).sum() < 0.3 / 255.0:
            break
    return parts


@functools.cache
def _grid(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the coordinates y and x of the pixels, 0 in the middle."""
    if size % 2 == 0:
        raise ValueError(f"the size of a kernel must be odd, got {size}")
    y, x = np.mgrid[: float(size), : float(size)] - (size // 2)
    return y, x


@functools.cache
def _radii(size: int) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the distinct distances from the middle, ascending from 0, and each pixel's index."""
    y, x = _grid(size)
    squares, where = np.unique(x**2 + y**2, return_inverse=True)
    return np.sqrt(squares), where.reshape(size, size)


def _distance(size: int, sigma_x: float, sigma_y: float, angle: float) -> NDArray[np.float64]:
    y, x = _grid(size)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    distance: NDArray[np.float64] = (along / sigma_x) ** 2 + (across / sigma_y) ** 2
    return distance


def _bessel_j1(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the Bessel function of the first kind, order 1.

    It is the mean of cos(t - x sin t) over half a turn, here by the midpoint rule, which converges
    geometrically on a periodic function.
    """
    nodes = 64  # exact to rounding for x below 40; 21 pixels and a cutoff of pi give 47 at most
    t = (np.arange(nodes) + 0.5) * (np.pi / nodes)
    values: NDArray[np.float64] = np.cos(t - x[..., None] * np.sin(t)).mean(axis=-1)
    return values


def _normalised(kernel: NDArray[np.float64]) -> Kernel:
    normalised: Kernel = (kernel / kernel.sum()).astype(np.float32)
    return normalised
