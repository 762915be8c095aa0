"""Provides an engine that counts what the runtime asks of it, and the time spent in it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.bench.costs import Cost, GraphCosts
from rbvsr_deploy.engines.base import Array, Engine
from rbvsr_deploy.engines.tap import TappedEngine
from rbvsr_deploy.graphs import GRAPHS

__all__ = ["CountingEngine", "Counts"]


@dataclass
class Counts:
    """Counts the calls of an engine."""

    runs: Counter[tuple[str, tuple[tuple[int, ...], ...]]] = field(default_factory=Counter)
    """Runs by graph and shapes of its inputs, in the contract's order."""
    allocations: int = 0
    """Arrays made on the device: requested, uploaded, copied, or made for the outputs of a graph.
    """
    allocated_bytes: int = 0
    uploads: int = 0
    uploaded_bytes: int = 0
    downloads: int = 0
    downloaded_bytes: int = 0
    device_copies: int = 0
    """Copies from device to device (bands of rows)."""
    device_copied_bytes: int = 0
    seconds: float = 0.0
    """Time that the caller spent in the engine, including the wait for results."""

    @property
    def launches(self) -> Counter[str]:
        """Runs of each graph."""
        launches: Counter[str] = Counter()
        for (graph, _), runs in self.runs.items():
            launches[graph] += runs
        return launches

    def cost(self, costs: GraphCosts) -> Cost:
        """Return the cost of all runs together."""
        total = Cost(0, 0, 0, 0)
        for (graph, shapes), runs in self.runs.items():
            one = costs.of(graph, shapes)
            total += Cost(
                runs * one.flops, runs * one.bytes, runs * one.least_bytes, runs * one.nodes
            )
        return total


class CountingEngine(TappedEngine):
    """Passes all calls to another engine and counts them in ``counts``, which may be replaced.

    Args:
        engine: runs the graphs; closed together with this one.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, lambda graph, inputs, outputs: None)
        self.counts = Counts()

    def run(
        self, graph: str, *, into: Sequence[Array] | None = None, **arrays: Array
    ) -> tuple[Array, ...]:
        spec = GRAPHS[graph]
        shapes = {item.name: tuple(arrays[item.name].shape) for item in spec.inputs}
        self.counts.runs[graph, tuple(shapes.values())] += 1
        if into is None:
            made = spec.output_shapes(shapes, channels=self.network.channels)
            for item, shape in zip(spec.outputs, made, strict=True):
                self._allocated(shape, item.numpy_dtype(self.network.precision))
        with self._timed():
            return super().run(graph, into=into, **arrays)

    def empty(self, shape: tuple[int, ...], *, dtype: str) -> Array:
        self._allocated(shape, dtype)
        with self._timed():
            return super().empty(shape, dtype=dtype)

    def zeros(self, shape: tuple[int, ...], *, dtype: str) -> Array:
        self._allocated(shape, dtype)
        with self._timed():
            return super().zeros(shape, dtype=dtype)

    def rows(self, array: Array, top: int, bottom: int) -> Array:
        n, channels, _, width = array.shape
        shape = (n, channels, bottom - top, width)
        self._allocated(shape, self.network.precision)
        self.counts.device_copies += 1
        self.counts.device_copied_bytes += _bytes(shape, self.network.precision)
        with self._timed():
            return super().rows(array, top, bottom)

    def upload(self, array: NDArray[Any]) -> Array:
        self._allocated(array.shape, array.dtype.name)
        self.counts.uploads += 1
        self.counts.uploaded_bytes += array.nbytes
        with self._timed():
            return super().upload(array)

    def download(self, array: Array) -> NDArray[Any]:
        with self._timed():
            values = super().download(array)
        return self._downloaded(values)

    def begin_download(self, array: Array) -> Callable[[], NDArray[Any]]:
        with self._timed():
            begun = super().begin_download(array)

        def finish() -> NDArray[Any]:
            with self._timed():
                values = begun()
            return self._downloaded(values)

        return finish

    def _downloaded(self, values: NDArray[Any]) -> NDArray[Any]:
        self.counts.downloads += 1
        self.counts.downloaded_bytes += values.nbytes
        return values

    def _allocated(self, shape: tuple[int, ...], dtype: str) -> None:
        self.counts.allocations += 1
        self.counts.allocated_bytes += _bytes(shape, dtype)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.counts.seconds += time.perf_counter() - start


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize
