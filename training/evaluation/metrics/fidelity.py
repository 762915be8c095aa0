"""PSNR and SSIM: how near a picture is to the truth, pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.pixels import psnr_of
from rbvsr_deploy.training.evaluation.metrics.base import Shown, the_truth

__all__ = ["IDENTICAL", "SSIM_SIDE", "psnr", "psnr_rgb", "psnr_y", "ssim", "ssim_rgb", "ssim_y"]

IDENTICAL = 100.0
"""dB, for pictures without any difference; with infinity, one of them would decide a mean."""

SSIM_SIDE = 11
"""Pixels a picture must have in either direction: the window of SSIM."""


def psnr(picture: NDArray[Any], truth: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio in dB, over all channels together, peak 255.

    Args:
        picture, truth: (H, W) or (H, W, C), of one shape, 0 to 255, not rounded.
    """
    difference = picture.astype(np.float64) - truth
    return psnr_of(float(np.mean(difference * difference)), peak=255.0, most=IDENTICAL)


def ssim(picture: NDArray[Any], truth: NDArray[Any]) -> float:
    """Structural similarity, -1 to 1, the mean over channels.

    Wang et al., *Image quality assessment: from error visibility to structural similarity*, 2004,
    as its MATLAB code has it: a Gaussian window of 11x11, sigma 1.5, K1 = 0.01, K2 = 0.03, range
    255, only places where the whole window lies in the picture.

    Args:
        picture, truth: (H, W) or (H, W, C), of one shape, 0 to 255, 11x11 or larger.
    """
    from skimage.metrics import structural_similarity

    value = structural_similarity(  # type: ignore[no-untyped-call]
        picture.astype(np.float64),
        truth.astype(np.float64),
        data_range=255.0,
        gaussian_weights=True,  # with sigma 1.5, which gives 11x11
        use_sample_covariance=False,
        channel_axis=2 if picture.ndim == 3 else None,
    )
    return float(value)


def psnr_y(shown: Shown) -> float:
    """Of the luma."""
    return psnr(shown.picture.y, the_truth(shown).y)


def psnr_rgb(shown: Shown) -> float:
    """Of all three channels together."""
    return psnr(shown.picture.rgb, the_truth(shown).rgb)


def ssim_y(shown: Shown) -> float:
    """Of the luma."""
    return ssim(shown.picture.y, the_truth(shown).y)


def ssim_rgb(shown: Shown) -> float:
    """Mean of the three channels."""
    return ssim(shown.picture.rgb, the_truth(shown).rgb)
