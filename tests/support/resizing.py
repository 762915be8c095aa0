"""Provides the filter of resizing as a formula, in double precision."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def weights_of(
    size: int, count: int, *, start: float = 0.0, extent: float | None = None
) -> NDArray[np.float64]:
    """Return the weights (count, size) of Lanczos with three lobes, row by row."""
    ratio = (size if extent is None else extent) / count
    width = max(ratio, 1.0)
    weights = np.zeros((count, size))
    for i in range(count):
        centre = start + (i + 0.5) * ratio
        for k in range(size):
            x = (k + 0.5 - centre) / width
            if abs(x) < 3:
                weights[i, k] = np.sinc(x) * np.sinc(x / 3)
    return weights / weights.sum(axis=1, keepdims=True)
