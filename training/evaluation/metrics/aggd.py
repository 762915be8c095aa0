"""Fits the asymmetric generalised Gaussian distributions on which NIQE and BRISQUE are based."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["aggd"]


def aggd(
    values: NDArray[np.float64], *, zero_is_right: bool = False
) -> tuple[NDArray[np.float64], ...]:
    """Fit an asymmetric generalised Gaussian distribution to each block, by its moments.

    Lasmar, Stitou and Berthoumieu, *Multiscale skewed heavy tailed model for texture analysis*,
    2009; the shape is looked up in steps of 0.001 from 0.2 to 10.

    Args:
        values: (n, ...).
        zero_is_right: count zeros as values to the right, instead of to neither side.

    Returns:
        The shape alpha and the standard deviations to the left and to the right of 0, (n,) each;
        NaN for a block without negative or without positive values.
    """
    from scipy.special import gamma

    values = values.reshape(len(values), -1)
    squares = values * values
    above = values >= 0 if zero_is_right else values > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        left = np.sqrt(np.sum(squares, axis=1, where=values < 0) / np.sum(values < 0, axis=1))
        right = np.sqrt(np.sum(squares, axis=1, where=above) / np.sum(above, axis=1))
        skew = left / right
        ratio = np.mean(np.abs(values), axis=1) ** 2 / np.mean(squares, axis=1)
        wanted = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shapes = np.arange(0.2, 10.001, 0.001)
    ratios = gamma(2 / shapes) ** 2 / (gamma(1 / shapes) * gamma(3 / shapes))  # rising
    next_one = np.clip(np.searchsorted(ratios, wanted), 1, len(shapes) - 1)
    nearest = next_one - (wanted - ratios[next_one - 1] < ratios[next_one] - wanted)
    alpha = np.where(np.isnan(wanted), np.nan, shapes[nearest])
    return alpha, left, right
