"""Tests the timing of single graphs on an engine whose calls may return early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rbvsr_deploy.bench.costs import GraphCosts
from rbvsr_deploy.bench.graph_timing import time_graphs
from rbvsr_deploy.bench.result import Ceilings
from rbvsr_deploy.bundle import open_bundle
from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.engines.tap import TappedEngine
from rbvsr_deploy.graphs import graph_names
from tests.bench.conftest import BRIEF


class WaitingEngine(TappedEngine):
    """Remembers whether the result of the last run was waited for."""

    waited = True
    runs = 0

    def download(self, array: Any) -> Any:
        self.waited = True
        values = super().download(array)
        assert values.size <= 3 * 4 * 24 * 32, "a whole image is copied to wait for it"
        return values


def test_results_are_waited_for_without_copying_them(
    tiny_checkpoint: Path, tiny_bundle: Path
) -> None:
    """On engines that may return early every run is waited for, by a row of the result, and the
    time until the call returns is reported next to the latency.
    """

    def on_run(graph: str, inputs: Mapping[str, Any], outputs: Sequence[Any]) -> None:
        assert engine.waited, graph
        engine.waited = False
        engine.runs += 1

    engine = WaitingEngine(open_engine(tiny_checkpoint, device="cpu"), on_run)
    none = Ceilings(matrix_flops=None, copy_bytes=None, method="none")
    with engine:
        results = time_graphs(
            engine,
            size=(24, 32),
            costs=GraphCosts(open_bundle(tiny_bundle)),
            ceilings=none,
            effort=BRIEF,
        )
        assert engine.waited
    names = graph_names(has_cleaning=True, optional=())
    assert list(results) == list(names)
    assert engine.runs >= (2 + BRIEF.graph_runs) * len(names)
    for result in results.values():
        assert result.enqueue_ms is not None
        assert result.enqueue_ms.count == result.latency_ms.count
        assert result.enqueue_ms.p50 <= result.latency_ms.p50
        assert result.attained.floor_ms is result.attained.matrix_share is None
