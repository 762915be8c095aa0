"""Provides an engine that reports every run of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from numpy.typing import NDArray

from rbvsr_deploy.engines.base import Array, Description, Engine

__all__ = ["OnRun", "TappedEngine"]

OnRun = Callable[[str, Mapping[str, Array], Sequence[Array]], None]
"""Called after a run with the graph's name, its inputs by name, and its outputs."""


class TappedEngine(Engine):
    """Passes all calls to another engine and reports each run of a graph.

    Args:
        engine: runs the graphs; closed together with this one.
        on_run: called after each run; may read the arrays through ``engine``.
    """

    def __init__(self, engine: Engine, on_run: OnRun) -> None:
        self.network = engine.network
        self.asynchronous = engine.asynchronous  # type: ignore[misc]
        self._engine = engine
        self._on_run = on_run

    def run(
        self, graph: str, *, into: Sequence[Array] | None = None, **arrays: Array
    ) -> tuple[Array, ...]:
        outputs = self._engine.run(graph, into=into, **arrays)
        self._on_run(graph, arrays, outputs)
        return outputs

    def empty(self, shape: tuple[int, ...], *, dtype: str) -> Array:
        return self._engine.empty(shape, dtype=dtype)

    def zeros(self, shape: tuple[int, ...], *, dtype: str) -> Array:
        return self._engine.zeros(shape, dtype=dtype)

    def slice(self, array: Array, start: int, stop: int) -> Array:
        return self._engine.slice(array, start, stop)

    def held(self) -> AbstractContextManager[None]:
        return self._engine.held()

    def copy(self, array: Array, *, into: Array, graph: str | None = None) -> None:
        self._engine.copy(array, into=into, graph=graph)

    def rows(self, array: Array, top: int, bottom: int) -> Array:
        return self._engine.rows(array, top, bottom)

    def join(self, arrays: Sequence[Array]) -> Array | None:
        return self._engine.join(arrays)

    def most_at_once(self, height: int, width: int) -> tuple[int, int] | None:
        return self._engine.most_at_once(height, width)

    def upload(self, array: NDArray[Any]) -> Array:
        return self._engine.upload(array)

    def download(self, array: Array) -> NDArray[Any]:
        return self._engine.download(array)

    def begin_download(self, array: Array) -> Callable[[], NDArray[Any]]:
        return self._engine.begin_download(array)

    def free_memory(self) -> int:
        return self._engine.free_memory()

    def describe(self) -> Description:
        return self._engine.describe()

    def close(self) -> None:
        self._engine.close()
