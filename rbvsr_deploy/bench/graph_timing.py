"""Times the graphs of a bundle one by one."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from rbvsr_deploy.bench.ceilings import compare_with_ceilings
from rbvsr_deploy.bench.costs import Cost, GraphCosts
from rbvsr_deploy.bench.result import Ceilings, Counted, GraphResult, Times
from rbvsr_deploy.bench.timing import Effort, repeat, summarise
from rbvsr_deploy.engines.base import Array, Engine
from rbvsr_deploy.graphs import GRAPHS, graph_names, named_sizes

__all__ = ["RUNS_PER_FRAME", "counted", "graph_inputs", "time_graphs"]

RUNS_PER_FRAME = {
    name: 2 if name == "flow" else 1 for name in graph_names(has_cleaning=True, optional=())
}
"""Runs of each graph per frame of a scene that is propagated at once and cleaned once."""


def time_graphs(
    engine: Engine,
    *,
    size: tuple[int, int],
    costs: GraphCosts,
    ceilings: Ceilings,
    effort: Effort,
) -> dict[str, GraphResult]:
    """Time each graph of the network on one frame, after two runs to warm up.

    Args:
        engine: runs them.
        size: H and W of the frame.
        costs: of the engine's bundle.
        ceilings: of the engine's device.
        effort: how long to measure.
    """
    results = {}
    for name in graph_names(has_cleaning=engine.network.has_cleaning, optional=()):
        arrays = graph_inputs(engine, name, height=size[0], width=size[1])
        latency, enqueued = _time_graph(engine, name, arrays, effort)
        cost = costs.of(name, [tuple(arrays[item.name].shape) for item in GRAPHS[name].inputs])
        results[name] = GraphResult(
            runs_per_frame=RUNS_PER_FRAME[name],
            latency_ms=latency,
            enqueue_ms=enqueued,
            counted=counted(cost),
            attained=compare_with_ceilings(cost, latency.p50 / 1000, ceilings),
        )
    return results


def graph_inputs(engine: Engine, graph: str, *, height: int, width: int) -> dict[str, Array]:
    """Make random arrays of a graph's shapes on the engine's device, for one frame; the flow is a
    few pixels.
    """
    sizes = named_sizes(1, height, width, channels=engine.network.channels)
    rng = np.random.default_rng(0)
    arrays = {}
    for item in GRAPHS[graph].inputs:
        shape = tuple(sizes[s] if isinstance(s, str) else s for s in item.shape)
        dtype = item.numpy_dtype(engine.network.precision)
        values = rng.random(shape, np.float32) * (255 if dtype == "uint8" else 1)
        arrays[item.name] = engine.upload(
            (3 * values if item.name == "flow" else values).astype(dtype)
        )
    return arrays


def _time_graph(
    engine: Engine, graph: str, arrays: dict[str, Array], effort: Effort
) -> tuple[Times, Times | None]:
    """Return the latency, and the time until the call returns if that is earlier."""
    synchronous = engine.describe().engine == "onnxruntime"
    enqueued: list[float] = []

    def run() -> float:
        start = time.perf_counter()
        outputs = engine.run(graph, **arrays)
        enqueued.append(time.perf_counter() - start)
        if not synchronous:
            _wait(engine, outputs)
        return time.perf_counter() - start

    for _ in range(2):
        run()
    enqueued.clear()
    seconds, _ = repeat(run, least_runs=effort.graph_runs, least_seconds=effort.graph_seconds)
    return summarise(seconds), None if synchronous else summarise(enqueued)


def counted(cost: Cost, *, frames: int = 1) -> Counted:
    """Return what was counted, per frame."""
    return Counted(
        flops=cost.flops / frames,
        bytes=cost.bytes / frames,
        least_bytes=cost.least_bytes / frames,
        nodes=cost.nodes / frames,
    )


def _wait(engine: Engine, outputs: Sequence[Array]) -> None:
    """Wait for a graph by downloading a row of its output: the whole would time the copy."""
    first = outputs[0]
    engine.download(engine.rows(first, 0, 1) if len(first.shape) == 4 else first)
