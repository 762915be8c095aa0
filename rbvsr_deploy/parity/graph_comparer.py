"""Compares single graphs of two engines on equal inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines import Engine
from rbvsr_deploy.engines.base import Array
from rbvsr_deploy.errors import DeviceMemoryError, EngineError
from rbvsr_deploy.graphs import GRAPHS, graph_names
from rbvsr_deploy.parity.comparison import GraphErrors
from rbvsr_deploy.parity.differences import ErrorSum

__all__ = ["GraphComparer"]


class GraphComparer:
    """Compares single graphs on the reference's inputs, one item of a batch at a time.

    Args:
        reference: the engine whose runs are repeated.
        other: the engine that repeats them.
        every: number of items between two comparisons of a graph.
    """

    def __init__(self, reference: Engine, other: Engine, *, every: int) -> None:
        self._reference = reference
        self._other = other
        self._every = every
        self._items: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._sums = {
            name: {
                item.name: ErrorSum(peak=255.0 if item.dtype == "uint8" else None)
                for item in GRAPHS[name].outputs
            }
            for name in graph_names(has_cleaning=reference.network.has_cleaning)
        }

    def add(self, graph: str, arrays: Mapping[str, Array], outputs: Sequence[Array]) -> None:
        """Take a run that the reference has finished, and repeat it if one is due."""
        spec = GRAPHS[graph]
        self._items[graph] += int(arrays[spec.inputs[0].name].shape[0])
        if self._items[graph] // self._every < self._calls[graph] + 1:
            return
        self._calls[graph] += 1
        inputs = {}
        for item in spec.inputs:
            values = self._first(self._reference, arrays[item.name])
            with np.errstate(over="ignore"):
                values = values.astype(item.numpy_dtype(self._other.network.precision))
            inputs[item.name] = self._other.upload(values)
        try:
            results = self._other.run(graph, **inputs)
        except DeviceMemoryError as error:
            # Of another type: the reference's stream would take it for its own and shrink its plan.
            raise EngineError(f"comparing one whole frame, {error}") from error
        for item, want, got in zip(spec.outputs, outputs, results, strict=True):
            self._sums[graph][item.name].add(
                self._first(self._reference, want), self._other.download(got)
            )

    def figures(self) -> dict[str, GraphErrors]:
        """Return the errors of the graphs that were compared."""
        return {
            name: GraphErrors(
                self._calls[name], {output: total.figures() for output, total in sums.items()}
            )
            for name, sums in self._sums.items()
            if self._calls[name]
        }

    @staticmethod
    def _first(engine: Engine, array: Array) -> NDArray[Any]:
        return engine.download(engine.slice(array, 0, 1))
