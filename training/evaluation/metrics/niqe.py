"""NIQE: how far the statistics of a picture are from those of natural, undistorted ones.

Mittal, Soundararajan and Bovik, *Making a "completely blind" image quality analyzer*, IEEE Signal
Processing Letters 2013. Blocks, shifts and rounding are those of the authors' MATLAB release, which
published figures were made with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError, first_line
from rbvsr_deploy.training.evaluation.metrics.aggd import aggd
from rbvsr_deploy.training.evaluation.metrics.base import Shown
from rbvsr_deploy.training.evaluation.metrics.packages import installed_file
from rbvsr_deploy.training.evaluation.metrics.resize import imresize

__all__ = ["BLOCK", "Niqe", "Pristine", "installed_parameters", "read_parameters"]

BLOCK = 96
"""Side of the blocks whose statistics are taken; a picture needs two of them."""

_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Right, below, and both diagonals."""

_FEATURES = 36
"""18 of either scale."""

# Packages that carry the authors' parameters, as a file in their folder.
_CARRIERS = {
    "mmagic": "evaluation/metrics/niqe_pris_params.npz",
    "basicsr": "metrics/niqe_pris_params.npz",
}


@dataclass(frozen=True, eq=False)
class Pristine:
    """The multivariate Gaussian model of undistorted pictures."""

    mean: NDArray[np.float64]
    """(36,)"""
    covariance: NDArray[np.float64]
    """(36, 36)"""


def installed_parameters() -> Path | None:
    """The authors' parameters, in a package that is installed."""
    found = (installed_file(package, name) for package, name in _CARRIERS.items())
    return next((path for path in found if path is not None), None)


def read_parameters(path: Path) -> Pristine:
    """Read the model of undistorted pictures.

    Args:
        path: ``modelparameters.mat`` of the authors' release, or ``niqe_pris_params.npz`` as
            BasicSR and mmagic carry it.

    Raises:
        MediaError: it cannot be read or holds something else.
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
                f"{path} holds no NIQE parameters: give modelparameters.mat of the authors' "
                "release or niqe_pris_params.npz of BasicSR or mmagic"
            )
        found[name] = np.asarray(value, dtype=np.float64).reshape(shape)
    return Pristine(found["mu"], found["cov"])


class Niqe:
    """Scores pictures; lower is better.

    Args:
        pristine: what they are held against.
    """

    def __init__(self, pristine: Pristine) -> None:
        self._pristine = pristine

    def __call__(self, shown: Shown) -> float | None:
        return self.of_luma(shown.picture.y)

    def of_luma(self, y: NDArray[np.float64]) -> float | None:
        """NIQE of a picture; ``None`` where it is flat almost everywhere.

        Args:
            y: (H, W) luma, 0 to 255, with room for two blocks of 96x96; what is left over at the
                right and below does not count.
        """
        features = _features(y)
        # A block without a single value below or above its mean has no statistics.
        whole = features[~np.isnan(features).any(axis=1)]
        if len(whole) < 2:
            return None
        mean, covariance = np.nanmean(features, axis=0), np.cov(whole, rowvar=False)
        away = self._pristine.mean - mean
        inverse = np.linalg.pinv((self._pristine.covariance + covariance) / 2)
        return float(np.sqrt(away @ inverse @ away))


def _features(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(blocks, 36)"""
    rows, columns = (side // BLOCK for side in y.shape)
    if rows * columns < 2:
        raise ValueError(f"NIQE needs two blocks of {BLOCK}x{BLOCK}, got {y.shape}")
    y = np.rint(y[: rows * BLOCK, : columns * BLOCK])
    scales = []
    for side in (BLOCK, BLOCK // 2):
        blocks = _normalised(y).reshape(rows, side, columns, side)
        scales.append(_block_features(blocks.swapaxes(1, 2).reshape(-1, side, side)))
        if side == BLOCK:
            y = imresize(y, 0.5)
    return np.concatenate(scales, axis=1)


def _normalised(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every pixel without the local mean, divided by the local deviation plus 1.

    In flat areas what is left is rounding, and the sign of rounding decides: NIQE of pictures with
    much sky or letterbox depends on the order of sums. This one comes nearest to MATLAB's figures.
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
    """Shapes and widths of the distributions of values and of products of neighbours.

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
