"""Computes the peak signal-to-noise ratio."""

from __future__ import annotations

import math

__all__ = ["psnr_of"]


def psnr_of(mean_square: float, *, peak: float, most: float) -> float:
    """Return the PSNR in dB: ten times the decimal logarithm of the squared peak divided by the
    mean squared difference.

    Args:
        mean_square: mean squared difference, in the square of the peak's unit.
        peak: the full signal.
        most: upper limit, also returned where there is no difference: JSON has no infinity.
    """
    return min(most, 10.0 * math.log10(peak**2 / mean_square)) if mean_square > 0 else most
