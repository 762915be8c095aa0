"""Predicts how long several workers take for a film, without running them.

The program cuts a film into units exactly as ``rbvsr-run --workers`` does, and hands them out in
the same order to workers that take the measured time for a frame. It says what the number of
workers is limited by. ``--check`` compares it with runs that ``cluster.py`` has measured.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import click

from rbvsr_deploy.cluster.scanning import PIECE
from rbvsr_deploy.cluster.units import units_of
from rbvsr_deploy.runtime.scenes import read_scene_list
from rbvsr_deploy.runtime.stream import Settings

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)


@dataclass(frozen=True)
class Costs:
    """Holds what was measured; times in seconds, sizes in bytes."""

    frame: float
    """Time of a worker for a frame: of the slowest of decoder, network and encoder."""
    unit: float = 0.0
    """Time of a worker for a unit on top: opening input and output, seeking, flushing."""
    coordinator: float = 0.02
    """Time of the coordinator for a unit, one after the other."""
    start: float = 0.0
    """Time until the workers are ready."""
    scenes: float = 0.0
    """Time of a worker per frame for finding the scenes."""
    join: float = 0.0
    """Time per frame for joining the segments to the output."""
    size: float = 0.0
    """Bytes per frame that are read and written."""
    storage: float = float("inf")
    """Bytes per second that the storage moves for all workers together."""
    processor: float = 0.0
    """Processor time of a worker per frame: decoding, encoding, copying, and the network if it
    runs there."""
    cores: float = float("inf")
    """Processors that all workers share."""


@dataclass(frozen=True)
class Prediction:
    """Holds what the model says about a number of workers."""

    workers: int
    seconds: float
    """Time from the start to the output."""
    shared: float
    """Part of it in which the workers are at work."""
    efficiency: float
    """Time of the frames alone, divided by ``shared`` times the number of workers."""
    limit: str
    """What takes most of the shared time, whatever the number of workers."""


def predict(units: Sequence[int], costs: Costs, workers: int) -> Prediction:
    """Return the time for units of these lengths in frames.

    All workers share storage and processors evenly: a frame takes at least as long as its bytes and
    its processor time do then.
    """
    frames = sum(units)
    busy = min(workers, len(units))
    frame = max(
        costs.frame, costs.size * busy / costs.storage, costs.processor * busy / costs.cores
    )
    free = [0.0] * workers
    coordinator = last = 0.0
    for length in sorted(units, reverse=True):
        # A free worker waits for the coordinator, which hands units out one after the other.
        begin = max(heapq.heappop(free), coordinator)
        coordinator = begin + costs.coordinator
        end = coordinator + costs.unit + length * frame
        last = max(last, end)
        heapq.heappush(free, end)
    shared, readers = last, max(1, min(workers, frames // PIECE))
    bounds = {
        "the number of workers": (frames * costs.frame + len(units) * costs.unit) / workers,
        "the longest unit": costs.unit + max(units) * costs.frame,
        "the coordinator": len(units) * costs.coordinator,
        "the storage": frames * costs.size / costs.storage,
        "the processors": frames * costs.processor / costs.cores,
    }
    return Prediction(
        workers,
        seconds=costs.start + frames * (costs.scenes / readers + costs.join) + shared,
        shared=shared,
        efficiency=frames * costs.frame / (shared * workers),
        limit=max(bounds, key=lambda name: bounds[name]),
    )


def lengths_of(path: Path, frames: int) -> list[int]:
    """Return the lengths of the units of a film whose scenes are listed."""
    units = units_of(frames, read_scene_list(path), settings=Settings())
    return [unit.frames for unit in units]


def measured_costs(run: dict[str, Any]) -> Costs:
    """Return the costs that a run with one worker has measured; see ``cluster.py``."""
    frames = run["frames"]
    frame = run["seconds_of_workers"]["network"] / frames
    shared = run["seconds"] - run["seconds_to_join"]
    return Costs(
        frame=frame,
        unit=max(0.0, (shared - frames * frame) / run["units"]),
        coordinator=run["coordinator_share_of_a_core"] * run["seconds"] / run["units"],
        start=run["seconds_to_start"],
        scenes=run["seconds_for_scenes"] / frames,
        join=run["seconds_to_join"] / frames,
        processor=run["processor_seconds_of_workers"] / frames,
        cores=os.cpu_count() or 1,
    )


def check(path: Path) -> list[dict[str, Any]]:
    """Compare the model with measured runs, of which the first has one worker."""
    measured = json.loads(path.read_text(encoding="utf-8"))
    costs = measured_costs(measured["runs"][0])
    found = []
    for run in measured["runs"]:
        edges = [0, *accumulate(run["lengths"])]
        units = units_of(edges[-1], edges[1:-1], settings=Settings())
        shared = predict([unit.frames for unit in units], costs, run["workers"]).shared
        shared += run["frames"] * costs.join
        found.append(
            {
                "workers": run["workers"],
                "measured_seconds": run["seconds"],
                "predicted_seconds": shared,
                "error": shared / run["seconds"] - 1,
            }
        )
    return found


@click.command()
@click.argument("scene_lists", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--frames", type=int, help="Frames of each film.  [default: the last scene's start]")
@click.option("--frame", default=0.05, show_default=True, help="Seconds per frame of a worker.")
@click.option("--unit", default=0.5, show_default=True, help="Seconds per unit on top.")
@click.option("--coordinator", default=0.02, show_default=True, help="Its seconds per unit.")
@click.option("--start", default=10.0, show_default=True, help="Seconds to start the workers.")
@click.option("--scenes", default=0.005, show_default=True, help="Seconds per frame to find cuts.")
@click.option("--join", default=0.0005, show_default=True, help="Seconds per frame to join.")
@click.option("--size", default=60e3, show_default=True, help="Bytes read and written per frame.")
@click.option("--storage", default=1e9, show_default=True, help="Bytes per second for all.")
@click.option("--processor", default=0.0, show_default=True, help="Processor seconds per frame.")
@click.option("--cores", default=float("inf"), show_default=True, help="Processors for all.")
@click.option(
    "--check", "runs", type=click.Path(exists=True, path_type=Path), help="Measured runs."
)
@click.option("--json", "result", type=click.Path(path_type=Path), help="File for the figures.")
def main(
    scene_lists: tuple[Path, ...],
    frames: int | None,
    runs: Path | None,
    result: Path | None,
    **costs: float,
) -> None:
    """Predict times for films whose scenes are listed, and for 1 to 1000 workers."""
    found: dict[str, Any] = {"costs": costs, "films": {}}
    if runs is not None:
        found["check"] = check(runs)
        for row in found["check"]:
            click.echo(
                f"{row['workers']} workers: measured {row['measured_seconds']:.1f} s, predicted "
                f"{row['predicted_seconds']:.1f} s ({row['error']:+.1%})"
            )
    for path in scene_lists:
        number = frames or read_scene_list(path)[-1] + 1
        units = lengths_of(path, number)
        predictions = [predict(units, Costs(**costs), count) for count in COUNTS]
        found["films"][path.stem] = {
            "frames": number,
            "units": len(units),
            "longest_unit": max(units),
            "predictions": [vars(prediction) for prediction in predictions],
        }
        click.echo(f"{path.stem}: {number} frames, {len(units)} units of at most {max(units)}")
        for prediction in predictions:
            click.echo(
                f"{prediction.workers:6} workers: {prediction.seconds / 3600:8.3f} h, efficiency "
                f"{prediction.efficiency:.0%}, limited by {prediction.limit}"
            )
    if result is not None:
        result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
