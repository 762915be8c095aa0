"""Tests the engine that reports every run of a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rbvsr_deploy.engines.tap import TappedEngine
from rbvsr_deploy.graphs import GRAPHS
from rbvsr_deploy.runtime.stream import Settings, Stream
from tests.support.engine_doubles import ArithmeticEngine


def test_a_tapped_engine_runs_as_the_other() -> None:
    """A stream gives the same images, every run is reported with its inputs and outputs, and both
    are closed together.
    """
    runs: Counter[str] = Counter()

    def on_run(graph: str, inputs: Mapping[str, Any], outputs: Sequence[Any]) -> None:
        assert list(inputs) == [item.name for item in GRAPHS[graph].inputs]
        assert len(outputs) == len(GRAPHS[graph].outputs)
        assert not np.isnan(outputs[0]).any()
        runs[graph] += len(next(iter(inputs.values())))

    def images(engine: Any) -> list[Any]:
        with Stream(engine, Settings(memory=3000), size=(1, 1)) as stream:
            clip = [np.full((1, 1, 3), 7 * i % 31, np.uint8) for i in range(40)]
            frames = [u for frame in clip for u in stream.push(frame)] + list(stream.flush())
        return [frame.image for frame in frames]

    engine = ArithmeticEngine()
    with TappedEngine(engine, on_run) as tapped:
        np.testing.assert_array_equal(images(tapped), images(ArithmeticEngine()))
        assert (tapped.network, tapped.describe()) == (engine.network, engine.describe())
        assert tapped.free_memory() == engine.free_memory()
    assert engine.closed
    assert runs == engine.items
