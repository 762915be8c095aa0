"""Times int8 against float16 on this machine's GPU, graph by graph, and keeps the faster engine.

int8 moves fewer bytes and multiplies faster, but rounding can take a kernel of its own before every
convolution. Which of the two is faster depends on the GPU and on the TensorRT.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rbvsr_deploy.bundle import Bundle
from rbvsr_deploy.bundle.engine_sets import EngineSet
from rbvsr_deploy.engines.base import Engine
from rbvsr_deploy.engines.tensorrt.build import BuildOptions, Progress, build_engine_set
from rbvsr_deploy.engines.tensorrt.unquantised import is_quantised, unquantised
from rbvsr_deploy.engines.tensorrt.values import open_engine_set
from rbvsr_deploy.errors import EngineError
from rbvsr_deploy.graphs import GRAPHS

if TYPE_CHECKING:
    from rbvsr_deploy.engines.cuda.driver import CudaDriver
    from rbvsr_deploy.engines.tensorrt.flavours import TensorRT

__all__ = ["keep_faster", "time_graphs"]

_RUNS, _ROUNDS, _SECONDS = 10, 20, 1.0
"""Runs between two looks at the clock; the most rounds of them; and the time after which no other
round begins.
"""

clock = time.perf_counter
"""Replaced in tests, whose GPU is a simulation."""


def keep_faster(
    tensorrt: TensorRT,
    driver: CudaDriver | None,
    bundle: Bundle,
    engine_set: EngineSet,
    plans: dict[str, bytes],
    *,
    options: BuildOptions | None = None,
    progress: Progress = lambda graph, phase, step, steps: None,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[EngineSet, dict[str, bytes]]:
    """Compile the int8 graphs of a bundle in float16 too, and replace int8 where it is slower.

    Args:
        tensorrt: the flavour that compiled the engines.
        driver: of this machine's GPU, which they were compiled for; ``None`` if they cannot run on
            this machine, so that nothing can be timed.
        bundle: contains the graphs.
        engine_set, plans: the engines, compiled from these graphs.
        options: of the builder.
        progress: called as the builder advances.
        report: called with one line per graph, or with the reason why int8 is not timed.

    Returns:
        The set with its times, and the engines to use.
    """
    quantised = [name for name, graph in bundle.graphs().items() if is_quantised(graph)]
    if not quantised:
        return engine_set, plans
    try:
        if driver is None:
            raise EngineError("no GPU of this machine runs these engines")
        float16_set, float16_plans = build_engine_set(
            tensorrt,
            replace(bundle.manifest, quantisation=None),
            {name: unquantised(bundle.graph(name)) for name in quantised},
            profile=engine_set.profile,
            compute_capability=engine_set.compute_capability,
            driver=driver,
            options=options,
            progress=progress,
        )
        times: dict[str, dict[str, float]] = {name: {} for name in quantised}
        for kind, engines in (("int8", plans), ("float16", {**plans, **float16_plans})):
            with open_engine_set(tensorrt, driver, bundle, engine_set, engines) as engine:
                for name, found in time_graphs(engine, engine_set, quantised).items():
                    times[name][kind] = round(found, 4)
    except EngineError as error:
        report(f"int8 is not timed against float16: {error}")
        return engine_set, plans
    timed = replace(engine_set, milliseconds=times)
    for line in timed.timings():
        report(line)
    slower = timed.in_float16
    layers = {**timed.layers, **{name: float16_set.layers[name] for name in slower}}
    return (
        replace(timed, layers=layers),
        {**plans, **{name: float16_plans[name] for name in slower}},
    )


def time_graphs(engine: Engine, engine_set: EngineSet, graphs: Collection[str]) -> dict[str, float]:
    """Return the milliseconds that a run of each graph takes, at the usual size and batch of an
    engine set: the least of several rounds, launched as when a scene is upscaled.
    """
    return {graph: 1000 * _seconds(engine, engine_set, graph) for graph in graphs}


def _seconds(engine: Engine, engine_set: EngineSet, graph: str) -> float:
    network, rng = engine.network, np.random.default_rng(0)
    shapes = engine_set.profile.shapes(
        GRAPHS[graph], channels=network.channels, head_channels=network.head_channels
    )
    arrays = {}
    for item in GRAPHS[graph].inputs:
        _, usual, _ = shapes[item.name]
        values: Any = rng.random(usual, np.float32)
        arrays[item.name] = engine.upload(values.astype(item.numpy_dtype(network.precision)))
    outputs = engine.run(graph, **arrays)

    def wait() -> None:
        engine.download(engine.rows(outputs[0], 0, 1))  # the whole would time the copy

    def run() -> float:
        start = clock()
        for _ in range(_RUNS):
            engine.run(graph, into=outputs, **arrays)
        wait()
        return (clock() - start) / _RUNS

    wait()
    least, begun = math.inf, clock()
    for _ in range(_ROUNDS):
        least = min(least, run())
        if clock() - begun > _SECONDS:
            break
    return least
