"""Computes the weights of the ``resize`` graph, and resizes with them on the host.

The filter is Lanczos with three lobes, widened where the frame gets smaller so that nothing
aliases, as in Pillow's ``Image.resize(..., LANCZOS)``. It is separable, so rows and columns have
weights of their own. Rows that are made from nearly the same rows form a block: one matrix product
computes a block, which costs little on any device, and the same on all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.graphs import REACH, SCALE, blocks_of

__all__ = ["Axis", "Blocks", "example_inputs", "resampled"]


@dataclass(frozen=True)
class Blocks:
    """Holds the weights of one axis in the form that the ``resize`` graph takes."""

    places: NDArray[np.int32]
    """(R, K): rows that each block is made from."""
    weights: NDArray[np.float32]
    """(R, P, K): their weights in each row of the block."""


class Axis:
    """Computes the weights of one axis.

    Args:
        size: rows (or columns) of the frame.
        count: rows of the resized frame.
        start: where the part that is shown begins, in rows of the frame.
        extent: length of that part in rows; all of them if ``None``.
    """

    def __init__(
        self, size: int, count: int, *, start: float = 0.0, extent: float | None = None
    ) -> None:
        self.count = count
        self._ratio = (size if extent is None else extent) / count
        width = max(self._ratio, 1.0)
        centres = start + (np.arange(count) + 0.5) * self._ratio
        self._first = np.maximum(0, (centres - REACH * width + 0.5).astype(np.int64))
        self._last = np.minimum(size, (centres + REACH * width + 0.5).astype(np.int64))
        places = self._first[:, None] + np.arange(int((self._last - self._first).max()))
        weights = _lanczos((places + 0.5 - centres[:, None]) / width)
        weights[places >= self._last[:, None]] = 0.0
        self._weights = weights / weights.sum(axis=1, keepdims=True)

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first row of the frame that the rows ``start`` to ``stop`` of the resized one
        are made from, and the one after the last.
        """
        return int(self._first[start]), int(self._last[stop - 1])

    def blocks(
        self, start: int = 0, stop: int | None = None, *, top: int = 0, height: int
    ) -> Blocks:
        """Return the weights of the rows ``start`` to ``stop`` of the resized frame, for an array
        that holds ``height`` rows of the frame from row ``top`` on. Unused rows at the end have no
        weights.
        """
        stop = self.count if stop is None else stop
        number, rows, taps = blocks_of(stop - start, ratio=self._ratio)
        places = np.empty((number, taps), np.int32)
        weights = np.zeros((number, rows, taps), np.float32)
        for block in range(number):
            own = range(start + block * rows, min(start + (block + 1) * rows, stop))
            first = self._first[own[0] if own else stop - 1]
            places[block] = np.clip(first - top + np.arange(taps), 0, height - 1)
            for row, i in enumerate(own):
                at, count = self._first[i] - first, self._last[i] - self._first[i]
                weights[block, row, at : at + count] = self._weights[i, :count]
        return Blocks(places, weights)


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < REACH, np.sinc(x) * np.sinc(x / REACH), 0.0)


def resampled(image: NDArray[Any], rows: Axis, columns: Axis) -> NDArray[Any]:
    """Resize an image on the host, as the graph does on the device.

    Args:
        image: (H, W, C) uint8 or uint16.
        rows, columns: weights of both axes.

    Returns:
        The resized image, (h, w, C) of the same dtype, rounded.
    """
    values = image.astype(np.float32)
    for axis in (rows, columns):
        blocks = axis.blocks(height=values.shape[0])
        gathered = values[blocks.places]  # (R, K, W, C)
        made = np.einsum("rpk,rkwc->rpwc", blocks.weights, gathered, optimize=True)
        values = made.reshape(-1, *made.shape[2:])[: axis.count].swapaxes(0, 1)
    most = np.iinfo(image.dtype).max
    return np.ascontiguousarray(np.rint(np.clip(values, 0, most)).astype(image.dtype))


def example_inputs(height: int, width: int) -> dict[str, NDArray[Any]]:
    """Return the inputs of ``resize`` that make frames of twice a size from those upscaled by four,
    with the sizes of :func:`rbvsr_deploy.graphs.named_sizes`; the picture is left out.
    """
    rows, columns = (
        Axis(SCALE * size, 2 * size).blocks(height=SCALE * size) for size in (height, width)
    )
    return {
        "rows": rows.places,
        "row_weights": rows.weights,
        "columns": columns.places,
        "column_weights": columns.weights,
    }
