"""Computes BRISQUE: how distorted an image looks, by the statistics of its neighbouring pixels.

Mittal, Moorthy and Bovik, *No-reference image quality assessment in the spatial domain*, IEEE
Transactions on Image Processing 2012. The regression is the model of the package ``brisque``, and
the features are computed as that package does: grey in [0, 1], black beyond the borders, zeros
counted as positive, half size by OpenCV's bicubic interpolation. The authors' MATLAB release has a
different model, from which the figures in papers come; do not mix the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.training.evaluation.metrics.aggd import aggd
from rbvsr_deploy.training.evaluation.metrics.base import ScoredFrame
from rbvsr_deploy.training.evaluation.metrics.packages import read_pickle

__all__ = ["Brisque", "Regression", "read_regression"]

_GREY = np.array([0.2125, 0.7154, 0.0721])  # ITU-R BT.709
_FEATURES = 36


@dataclass(frozen=True, eq=False)
class Regression:
    """A support vector regression with radial basis functions."""

    vectors: NDArray[np.float64]
    """(n, 36), scaled."""
    coefficients: NDArray[np.float64]
    """(n,)"""
    gamma: float
    rho: float
    least: NDArray[np.float64]
    """(36,) feature values that are scaled to -1."""
    greatest: NDArray[np.float64]
    """(36,) feature values that are scaled to 1."""

    def __call__(self, features: NDArray[np.float64]) -> float:
        """Return the score for the features of an image, (36,)."""
        scaled = 2 * (features - self.least) / (self.greatest - self.least) - 1
        distances = np.sum((self.vectors - scaled) ** 2, axis=1)
        return float(self.coefficients @ np.exp(-self.gamma * distances) - self.rho)


def read_regression(folder: Path) -> Regression:
    """Read ``svm.txt`` (LIBSVM's format) and ``normalize.pickle``.

    Raises:
        MediaError: one of them cannot be read or has other contents.
    """
    try:
        head, _, body = (folder / "svm.txt").read_text(encoding="ascii").partition("\nSV\n")
        settings = dict(line.split(maxsplit=1) for line in head.splitlines())
        rows = [line.split() for line in body.splitlines()]
        vectors = np.zeros((len(rows), _FEATURES))
        for vector, (_, *entries) in zip(vectors, rows, strict=True):
            for place, value in (entry.split(":") for entry in entries):
                vector[int(place) - 1] = float(value)
        ranges = read_pickle(folder / "normalize.pickle")
        return Regression(
            vectors,
            np.array([float(row[0]) for row in rows]),
            gamma=float(settings["gamma"]),
            rho=float(settings["rho"]),
            least=np.array(ranges["min_"], dtype=np.float64),
            greatest=np.array(ranges["max_"], dtype=np.float64),
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise MediaError(f"cannot read the BRISQUE model in {folder}: {error!r}") from None


class Brisque:
    """Scores images; lower is better."""

    def __init__(self, regression: Regression) -> None:
        self._regression = regression

    def __call__(self, frame: ScoredFrame) -> float | None:
        """Score a frame; ``None`` if it is flat."""
        features = brisque_features(frame.image.rgb)
        return None if np.isnan(features).any() else self._regression(features)


def brisque_features(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Compute the features of an image.

    Args:
        image: (H, W, 3) uint8, RGB.

    Returns:
        (36,) float64: 18 of the image and 18 of the image at half size.
    """
    grey = np.asarray(image @ (_GREY / 255.0), dtype=np.float64)
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
    return np.concatenate([_scale_features(grey), _scale_features(np.asarray(half))])


def _scale_features(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit the shapes and variances of the normalised pixels and of the products of neighbours."""
    from scipy.special import gamma

    def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
        window = cv2.getGaussianKernel(7, 7 / 6, cv2.CV_64F)
        return np.asarray(
            cv2.sepFilter2D(values, cv2.CV_64F, window, window, borderType=cv2.BORDER_CONSTANT)
        )

    mean = smooth(grey)
    deviation = np.sqrt(np.abs(smooth(grey * grey) - mean * mean))
    x = (grey - mean) / (deviation + 1 / 255)
    (shape,), (left,), (right,) = aggd(x[None], zero_is_right=True)
    features = [shape, (left**2 + right**2) / 2]
    neighbours = (
        (x[:, :-1], x[:, 1:]),
        (x[:-1], x[1:]),
        (x[:-1, :-1], x[1:, 1:]),
        (x[1:, :-1], x[:-1, 1:]),
    )
    for one, other in neighbours:
        (shape,), (left,), (right,) = aggd((one * other)[None], zero_is_right=True)
        width = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
        mean_value = (right - left) * width * gamma(2 / shape) / gamma(1 / shape)
        features += [shape, mean_value, left**2, right**2]
    return np.array(features)
