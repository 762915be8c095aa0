"""Times the resizing of upscaled frames next to the graphs of the network, on a CPU.

The figures are processor time, the least of several rounds in which all graphs take turns, which
other work on the machine moves little. The last line is JSON.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import numpy as np

from rbvsr_deploy.bench.graph_timing import RUNS_PER_FRAME, graph_inputs
from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.graphs import SCALE, graph_names
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE
from rbvsr_deploy.resampling import Axis


@click.command()
@click.option("--engine", type=click.Path(path_type=Path), default=DEFAULT_BUNDLE)
@click.option("--size", type=(int, int), default=(320, 180), help="Width and height of a frame.")
@click.option("--rounds", type=click.IntRange(1), default=10)
def main(engine: Path, size: tuple[int, int], rounds: int) -> None:
    """Time the resizing to a few scales."""
    width, height = size
    with open_engine(engine, device="cpu") as opened:
        names = graph_names(has_cleaning=opened.network.has_cleaning, optional=())
        calls = {
            name: (name, graph_inputs(opened, name, height=height, width=width)) for name in names
        }
        picture = calls["emit"][1]["picture"]
        for scale in (1, 1.5, 2, 3):
            rows, columns = (
                Axis(SCALE * side, round(scale * side)).blocks(height=SCALE * side)
                for side in (height, width)
            )
            arrays = {"rows": rows.places, "row_weights": rows.weights}
            arrays |= {"columns": columns.places, "column_weights": columns.weights}
            calls[f"resize to scale {scale:g}"] = "resize", {"picture": picture, **arrays}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds + 1):
            for name, (graph, inputs) in calls.items():
                start = time.process_time()
                opened.run(graph, **inputs)
                seconds[name].append(time.process_time() - start)
    least = {name: 1000 * float(np.min(times[1:])) for name, times in seconds.items()}
    network = sum(RUNS_PER_FRAME[name] * least[name] for name in names)
    for name, milliseconds in least.items():
        print(f"{name:20} {milliseconds:8.1f} ms {100 * milliseconds / network:6.1f} %")
    print(json.dumps({"size": size, "network_ms": network, "milliseconds": least}))


if __name__ == "__main__":
    main()
