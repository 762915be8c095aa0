"""Times what a size or a strength adds to the network, graph by graph, on a CPU.

The figures are processor time, the least of several rounds in which all graphs take turns: other
work on the machine moves them little.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
from common import environment, parse_size

from rbvsr_deploy.bench.graph_timing import RUNS_PER_FRAME, graph_inputs
from rbvsr_deploy.engines import Engine, open_engine
from rbvsr_deploy.graphs import SCALE, graph_names
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE
from rbvsr_deploy.resampling import Axis

SCALES = (1, 1.5, 2, 3, 8)  # 8: the largest that a size may ask for

Call = tuple[str, dict[str, Any]]


def calls_to_time(engine: Engine, *, width: int, height: int) -> dict[str, Call]:
    """Return graphs and their inputs by label: those of the network, of strength and of sizes."""
    network = graph_names(has_cleaning=engine.network.has_cleaning, optional=("mix", "blend"))
    calls = {
        name: (name, graph_inputs(engine, name, height=height, width=width)) for name in network
    }
    picture = calls["emit"][1]["picture"]
    for scale in SCALES:
        rows, columns = (
            Axis(SCALE * side, round(scale * side)).blocks(height=SCALE * side)
            for side in (height, width)
        )
        arrays = {"rows": rows.places, "row_weights": rows.weights}
        arrays |= {"columns": columns.places, "column_weights": columns.weights}
        uploaded = {name: engine.upload(array) for name, array in arrays.items()}
        calls[f"resize to scale {scale:g}"] = "resize", {"picture": picture, **uploaded}
    return calls


def least_milliseconds(engine: Engine, calls: dict[str, Call], *, rounds: int) -> dict[str, float]:
    """Return the processor time of each call; the first round warms up."""
    seconds: dict[str, list[float]] = {label: [] for label in calls}
    for _ in range(rounds + 1):
        for label, (graph, inputs) in calls.items():
            start = time.process_time()
            engine.run(graph, **inputs)
            seconds[label].append(time.process_time() - start)
    return {label: 1000 * min(times[1:]) for label, times in seconds.items()}


def added(milliseconds: dict[str, float]) -> dict[str, Any]:
    """Return the time of the network's graphs per frame, and what the others add to it."""
    network = sum(runs * milliseconds.get(name, 0) for name, runs in RUNS_PER_FRAME.items())
    graphs = {}
    for label, own in milliseconds.items():
        if label not in RUNS_PER_FRAME:
            replaced = milliseconds["emit"] if label.startswith("resize") else 0
            graphs[label] = {"ms": own, "added_share": (own - replaced) / network}
    return {"network_ms": network, "emit_ms": milliseconds["emit"], "graphs": graphs}


@click.command()
@click.option("--engine", "bundle", type=click.Path(path_type=Path), default=DEFAULT_BUNDLE)
@click.option("--sizes", default="320x180,640x360", help="Width and height of frames.")
@click.option("--rounds", type=click.IntRange(1), default=20)
@click.option("--json", "path", type=click.Path(path_type=Path), required=True)
def main(bundle: Path, sizes: str, rounds: int, path: Path) -> None:
    with open_engine(bundle, device="cpu") as engine:
        result: dict[str, Any] = {**environment(engine), "rounds": rounds, "sizes": {}}
        for size in sizes.split(","):
            width, height = parse_size(size)
            calls = calls_to_time(engine, width=width, height=height)
            figures = added(least_milliseconds(engine, calls, rounds=rounds))
            result["sizes"][size] = figures
            print(f"{size}: {figures['network_ms']:.1f} ms for the graphs of the network")
            for name, cost in figures["graphs"].items():
                share = f"{100 * cost['added_share']:.1f} %"
                print(f"    {name:20} {cost['ms']:6.1f} ms, adds {share}")
    path.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
