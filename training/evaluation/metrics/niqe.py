"""Computes NIQE: how far the statistics of an image are from those of natural, undistorted ones.

Mittal, Soundararajan and Bovik, *Making a "completely blind" image quality analyzer*, IEEE Signal
Processing Letters 2013. Blocks, shifts and rounding follow the authors' MATLAB release, from which
published figures come.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError, first_line
from rbvsr_deploy.training.evaluation.metrics.aggd import aggd
from rbvsr_deploy.training.evaluation.metrics.base import ScoredFrame
from rbvsr_deploy.training.evaluation.metrics.packages import installed_file
from rbvsr_deploy.training.evaluation.metrics.resize import imresize

__all__ = ["BLOCK", "Niqe", "Pristine", "installed_parameters", "read_parameters"]

BLOCK = 96
"""Side in pixels of the blocks whose statistics are computed; an image needs two of them."""

_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Right, below, and both diagonals."""

_FEATURES = 36
"""Number of features, 18 per scale."""

# Packages that include the authors' parameters, with the path of the file in their folder.
_CARRIERS = {
    "mmagic": "evaluation/metrics/niqe_pris_params.npz",
    "basicsr": "metrics/niqe_pris_params.npz",
}


@dataclass(frozen=True, eq=False)
class Pristine:
    """The multivariate Gaussian model of undistorted images."""

    mean: NDArray[np.float64]
    """(36,)"""
    covariance: NDArray[np.float64]
    """(36, 36)"""


def installed_parameters() -> Path | None:
    """Find the authors' parameters in an installed package; ``None`` if no package has them."""
    found = (installed_file(package, name) for package, name in _CARRIERS.items())
    return next((path for path in found if path is not None), None)


def read_parameters(path: Path) -> Pristine:
    """Read the model of undistorted images.

    Args:
        path: ``modelparameters.mat`` of the authors' release, or ``niqe_pris_params.npz`` of
            BasicSR or mmagic.

    Raises:
        MediaError: the file cannot be read or has other contents.
    """
    content: dict[str, Any]
    try:
        if path.suffix.lower() == ".mat":
            from scipy.io import loadmat

            content = loadmat(path)
        else:
            with np.load(path) as arrays:
                content = dict(arrays)
    except Exception as error:  # both readers fail in many ways
        raise MediaError(f"cannot read the NIQE parameters {path}: {first_line(error)}") from None
    found = {}
    for name, shape in (("mu", (_FEATURES,)), ("cov", (_FEATURES, _FEATURES))):
        value = content.get(f"{name}_pris_param", content.get(f"{name}_prisparam"))
        if value is None or np.size(value) != np.prod(shape):
            raise MediaError(
                f"{path} contains no NIQE parameters: give modelparameters.mat of the authors' "
                "release or niqe_pris_params.npz of BasicSR or mmagic"
            )
        found[name] = np.asarray(value, dtype=np.float64).reshape(shape)
    return Pristine(found["mu"], found["cov"])


class Niqe:
    """Scores images; lower is better.

    Args:
        pristine: model of undistorted images to compare with.
    """

    def __init__(self, pristine: Pristine) -> None:
        self._pristine = pristine

    def __call__(self, frame: ScoredFrame) -> float | None:
        return self.of_luma(frame.image.y)

    def of_luma(self, y: NDArray[np.float64]) -> float | None:
        """Compute the NIQE of an image; ``None`` if it is flat almost everywhere.

        Args:
            y: (H, W) luma, 0 to 255, large enough for two blocks of 96x96; pixels beyond the last
                whole block at the right and the bottom are ignored.
        """
        features = _features(y)
        # A block with no value below or no value above its mean has no statistics.
        whole = features[~np.isnan(features).any(axis=1)]
        if len(whole) < 2:
            return None
        mean, covariance = np.nanmean(features, axis=0), np.cov(whole, rowvar=False)
        away = self._pristine.mean - mean
        inverse = np.linalg.pinv((self._pristine.covariance + covariance) / 2)
        return float(np.sqrt(away @ inverse @ away))


def _features(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the features of all blocks, (blocks, 36)."""
    rows, columns = (side // BLOCK for side in y.shape)
    if rows * columns < 2:
        raise ValueError(f"NIQE needs at least two blocks of {BLOCK}x{BLOCK}, got {y.shape}")
    y = np.rint(y[: rows * BLOCK, : columns * BLOCK])
    scales = []
    for side in (BLOCK, BLOCK // 2):
        blocks = _normalised(y).reshape(rows, side, columns, side)
        scales.append(_block_features(blocks.swapaxes(1, 2).reshape(-1, side, side)))
        if side == BLOCK:
            y = imresize(y, 0.5)
    return np.concatenate(scales, axis=1)


def _normalised(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Subtract the local mean from every pixel and divide by the local deviation plus 1.

    In flat areas only the sign of rounding errors remains, so the NIQE of images with much sky or
    letterbox depends on the order of summation. This order comes closest to MATLAB's figures.
    """
    from scipy.ndimage import correlate1d

    window = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    window /= window.sum()

    def smooth(image: NDArray[np.float64]) -> NDArray[np.float64]:
        across = correlate1d(image, window, axis=0, mode="nearest")
        return np.asarray(correlate1d(across, window, axis=1, mode="nearest"))

    mean = smooth(y)
    deviation = np.sqrt(np.abs(smooth(y * y) - mean * mean))
    return np.asarray((y - mean) / (deviation + 1))


def _block_features(blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit the shapes and widths of the distributions of values and of products of neighbours.

    Args:
        blocks: (n, side, side), normalised.

    Returns:
        (n, 18)
    """
    from scipy.special import gamma

    def fit(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        alpha, left, right = aggd(values)
        width = np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))
        return alpha, left * width, right * width

    alpha, left, right = fit(blocks)
    features = [alpha, (left + right) / 2]
    for shift in _SHIFTS:
        alpha, left, right = fit(blocks * np.roll(blocks, shift, axis=(1, 2)))
        features += [alpha, (right - left) * gamma(2 / alpha) / gamma(1 / alpha), left, right]
    return np.stack(features, axis=1)
