"""Resizes upscaled frames on the engine's device, before they are copied from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rbvsr_deploy.engines.base import Array, Engine, Network
from rbvsr_deploy.graphs import REACH, SCALE
from rbvsr_deploy.pixels import Image, sixteen_bit_images
from rbvsr_deploy.resampling import Blocks
from rbvsr_deploy.runtime.output_size import Target

__all__ = ["Band", "Resizer", "halo_of"]


@dataclass(frozen=True)
class Band:
    """Rows that are upscaled and resized at once."""

    start: int
    stop: int
    """Rows of the resized frame: from ``start`` up to ``stop``, excluding it."""
    upper: int
    lower: int
    """Rows of the input that they are made from."""


def halo_of(target: Target | None, network: Network) -> int:
    """Return the rows of the input that a band needs above and below its own."""
    if target is None:
        return network.halo
    ratio = float(SCALE * target.rows[1] / target.height)
    # Bands begin and end at whole rows of the output and of the input.
    return network.halo + math.ceil((REACH * max(ratio, 1.0) + ratio) / SCALE) + 1


class Resizer:
    """Resizes the frames of a stream.

    Args:
        engine: runs the graphs.
        target: size of the frames.
    """

    def __init__(self, engine: Engine, target: Target) -> None:
        self._engine = engine
        self._target = target
        self._rows, self._columns = target.axes()
        height, width = target.source
        self._height = SCALE * height
        columns = self._columns.blocks(height=SCALE * width)
        self._column_arrays = self._uploaded(columns, "columns", "column_weights")
        self._row_arrays: dict[Band, dict[str, Array]] = {}

    def bands(self, number: int) -> list[Band]:
        """Divide a frame into bands of about as many rows each; one band is the whole frame."""
        height, count = self._target.source[0], self._target.height
        if number == 1:
            return [Band(0, count, 0, height)]
        edges = [i * count // number for i in range(number + 1)]
        bands, halo = [], self._engine.network.halo
        for start, stop in pairwise(edges):
            if start < stop:
                top, bottom = self._rows.span(start, stop)
                upper, lower = top // SCALE - halo, -(-bottom // SCALE) + halo
                bands.append(Band(start, stop, max(0, upper), min(height, lower)))
        return bands

    def begin(self, picture: Array, band: Band, *, deep: bool) -> Callable[[], Image]:
        """Begin to resize a band of upscaled frames; the result waits for it.

        Args:
            picture: (N, 3, 4 (lower - upper), 4W), not clamped.
            band: the rows it holds.
            deep: make uint16 instead of uint8.

        Returns:
            A function to call once, which returns (N, stop - start, width, 3).
        """
        blocks, image = self._engine.run(
            "resize", picture=picture, **self._arrays_for(band), **self._column_arrays
        )
        rows, columns = band.stop - band.start, self._target.width
        if not deep:
            begun = self._engine.begin_download(image)
            return lambda: np.ascontiguousarray(begun()[:, :rows, :columns])
        begun = self._engine.begin_download(blocks)

        def finish() -> Image:
            values = begun()
            n, channels, *_, height = values.shape
            upright = values.reshape(n, channels, -1, height)[:, :, :columns, :rows].swapaxes(2, 3)
            return sixteen_bit_images(np.ascontiguousarray(upright))

        return finish

    def _arrays_for(self, band: Band) -> dict[str, Array]:
        arrays = self._row_arrays.get(band)
        if arrays is None:
            top = SCALE * band.upper
            height = SCALE * (band.lower - band.upper)
            blocks = self._rows.blocks(band.start, band.stop, top=top, height=height)
            arrays = self._row_arrays[band] = self._uploaded(blocks, "rows", "row_weights")
        return arrays

    def _uploaded(self, blocks: Blocks, places: str, weights: str) -> dict[str, Array]:
        upload = self._engine.upload
        return {places: upload(blocks.places), weights: upload(blocks.weights)}
