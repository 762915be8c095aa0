"""Measures milliseconds per frame of every graph, for one or several bundles and checkpoints.

The models are measured alternately, so that a machine that slows down slows all of them, and are
compared with the first. A frame costs one ``ingest``, ``clean``, ``backward``, ``forward``,
``reconstruct`` and ``emit``, and two ``flow``.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import environment, parse_size

from rbvsr_deploy.engines import Engine, open_engine
from rbvsr_deploy.graphs import GRAPHS, SCALE, graph_names

PER_FRAME = {name: 2 if name == "flow" else 1 for name in GRAPHS}


def inputs(engine: Engine, graph: str, *, height: int, width: int) -> dict[str, Any]:
    """Make random arrays of a graph's shapes on the engine's device; flow of a few pixels."""
    sizes = {"N": 1, "C": engine.network.channels, "H": height, "W": width}
    sizes |= {"4H": SCALE * height, "4W": SCALE * width}
    rng = np.random.default_rng(0)
    arrays = {}
    for item in GRAPHS[graph].inputs:
        shape = tuple(sizes[s] if isinstance(s, str) else s for s in item.shape)
        dtype = item.numpy_dtype(engine.network.precision)
        values = rng.random(shape) * (255 if dtype == "uint8" else 1)
        arrays[item.name] = engine.upload(
            (3 * values if item.name == "flow" else values).astype(dtype)
        )
    return arrays


def measure(engine: Engine, graph: str, arrays: dict[str, Any]) -> float:
    """Return the milliseconds of one run, including the download of its result."""
    start = time.perf_counter()
    outputs = engine.run(graph, **arrays)
    engine.download(outputs[-1])
    return 1000 * (time.perf_counter() - start)


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--size", default="320x180", show_default=True, help="Width x height of the input.")
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--repeats", default=7, show_default=True, help="Runs per graph, after one warm-up run."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    models: tuple[Path, ...], size: str, device: str, repeats: int, json_path: Path | None
) -> None:
    """Measure MODELS (bundles or checkpoints) graph by graph."""
    width, height = parse_size(size)
    engines = [open_engine(model, device=device) for model in models]
    result: dict[str, Any] = {
        **environment(),
        "size": size,
        "repeats": repeats,
        "models": [{"engine": str(engine.describe()), "milliseconds": {}} for engine in engines],
    }
    for graph in GRAPHS:
        runs = [
            (engine, inputs(engine, graph, height=height, width=width))
            if graph in graph_names(has_cleaning=engine.network.has_cleaning)
            else None
            for engine in engines
        ]
        times: list[list[float]] = [[] for _ in engines]
        for repeat in range(repeats + 1):
            for run, figures in zip(runs, times, strict=True):
                if run is not None:
                    took = measure(run[0], graph, run[1])
                    figures += [took] * (repeat > 0)
        for entry, figures in zip(result["models"], times, strict=True):
            if figures:
                entry["milliseconds"][graph] = round(statistics.median(figures), 2)
    show(result)
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1), encoding="utf-8")


def show(result: dict[str, Any]) -> None:
    """Print a table: one line per graph, one column per model, then totals per frame and ratios."""
    for number, model in enumerate(result["models"], start=1):
        model["per_frame"] = round(
            sum(PER_FRAME[graph] * took for graph, took in model["milliseconds"].items()), 2
        )
        print(f"{number}: {model['engine']}")
    first = result["models"][0]["per_frame"]
    print(
        f"{'ms at ' + result['size']:>16}"
        + "".join(f"{n + 1:>10}" for n in range(len(result["models"])))
    )
    for graph in GRAPHS:
        cells = (model["milliseconds"].get(graph) for model in result["models"])
        print(f"{graph:>16}" + "".join(f"{'-' if cell is None else cell:>10}" for cell in cells))
    for label, divisor in (("per frame", 1.0), ("ratio", first)):
        figures = (model["per_frame"] / divisor for model in result["models"])
        print(f"{label:>16}" + "".join(f"{figure:>10.2f}" for figure in figures))


if __name__ == "__main__":
    main()
