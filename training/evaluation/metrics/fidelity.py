"""Computes PSNR and SSIM: how close an image is to the ground truth, pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.pixels import psnr_of
from rbvsr_deploy.training.evaluation.metrics.base import ScoredFrame, require_truth

__all__ = ["IDENTICAL", "SSIM_SIDE", "psnr", "psnr_rgb", "psnr_y", "ssim", "ssim_rgb", "ssim_y"]

IDENTICAL = 100.0
"""PSNR of identical images, in dB. Infinity would dominate any mean."""

SSIM_SIDE = 11
"""Minimum side of an image in pixels: the window of SSIM."""


def psnr(image: NDArray[Any], truth: NDArray[Any]) -> float:
    """Compute the peak signal-to-noise ratio in dB, over all channels together, peak 255.

    Args:
        image, truth: (H, W) or (H, W, C), of the same shape, 0 to 255, not rounded.
    """
    difference = image.astype(np.float64) - truth
    return psnr_of(float(np.mean(difference * difference)), peak=255.0, most=IDENTICAL)


def ssim(image: NDArray[Any], truth: NDArray[Any]) -> float:
    """Compute the structural similarity, -1 to 1, as the mean over channels.

    Wang et al., *Image quality assessment: from error visibility to structural similarity*, 2004,
    as in its MATLAB code: a Gaussian window of 11x11, sigma 1.5, K1 = 0.01, K2 = 0.03, range 255,
    only at positions where the whole window lies within the image.

    Args:
        image, truth: (H, W) or (H, W, C), of the same shape, 0 to 255, 11x11 or larger.
    """
    from skimage.metrics import structural_similarity

    value = structural_similarity(  # type: ignore[no-untyped-call]
        image.astype(np.float64),
        truth.astype(np.float64),
        data_range=255.0,
        gaussian_weights=True,  # with sigma 1.5, which gives 11x11
        use_sample_covariance=False,
        channel_axis=2 if image.ndim == 3 else None,
    )
    return float(value)


def psnr_y(frame: ScoredFrame) -> float:
    """Compute the PSNR of the luma."""
    return psnr(frame.image.y, require_truth(frame).y)


def psnr_rgb(frame: ScoredFrame) -> float:
    """Compute the PSNR of all three channels together."""
    return psnr(frame.image.rgb, require_truth(frame).rgb)


def ssim_y(frame: ScoredFrame) -> float:
    """Compute the SSIM of the luma."""
    return ssim(frame.image.y, require_truth(frame).y)


def ssim_rgb(frame: ScoredFrame) -> float:
    """Compute the mean SSIM of the three channels."""
    return ssim(frame.image.rgb, require_truth(frame).rgb)
