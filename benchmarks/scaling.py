"""Measures time and memory against length, size, window, batch and threads, one at a time.

Each point is measured in a process of its own, so that it has its own peak of memory, on a
synthetic scene. CPU time is recorded too: it is steadier than elapsed time while other programs
run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import click
import msgspec
from common import environment, parse_numbers, parse_size

from rbvsr_deploy.bench.clips import synthetic_clip
from rbvsr_deploy.bench.counting import CountingEngine
from rbvsr_deploy.bench.machine import Load, PeakMemory, allowed_processors
from rbvsr_deploy.bench.timing import spread
from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE
from rbvsr_deploy.runtime import stream
from rbvsr_deploy.runtime.memory_plan import MemoryPlan
from rbvsr_deploy.upscaler import Upscaler


@dataclass(frozen=True)
class Point:
    """One combination of parameters."""

    frames: int
    width: int
    height: int
    window: int
    batch: int
    threads: int


def measure(point: Point, model: Path, device: str, repeats: int) -> dict[str, Any]:
    """Upscale a scene in this process; return medians per frame and the peak of memory."""
    if sys.platform == "linux":  # before the engine starts its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: point.threads])
    clip = synthetic_clip(point.frames, width=point.width, height=point.height)
    plan = MemoryPlan(
        window=point.window, batch=point.batch, band=point.height, in_memory=point.frames
    )
    seconds, networks, cpu = [], [], []
    with (
        CountingEngine(open_engine(model, device=device)) as engine,
        mock.patch.object(stream, "choose_plan", return_value=plan),
        Upscaler(engine, cleanings=1) as upscaler,
    ):
        peak = PeakMemory()
        for repeat in range(repeats + 1):  # the first one warms up
            before, start, used = engine.counts.seconds, time.perf_counter(), time.process_time()
            for _ in upscaler.frames(clip):
                pass
            if repeat or repeats == 0:
                seconds.append((time.perf_counter() - start) / point.frames)
                cpu.append((time.process_time() - used) / point.frames)
                networks.append((engine.counts.seconds - before) / point.frames)
    return {
        **asdict(point),
        "ms_per_frame": 1000 * statistics.median(seconds),
        "network_ms_per_frame": 1000 * statistics.median(networks),
        "cpu_ms_per_frame": 1000 * statistics.median(cpu),
        "spread": spread(seconds),
        "peak_host_bytes": peak.bytes(),
    }


def points(
    base: Point,
    *,
    frames: list[int],
    sizes: list[tuple[int, int]],
    windows: list[int],
    batches: list[int],
    threads: list[int],
) -> Iterator[tuple[str, Point]]:
    """Yield what to measure: every axis by itself, all else as in the base."""
    for n in frames:
        yield "frames", replace(base, frames=n, window=n)
    for width, height in sizes:
        yield "size", replace(base, width=width, height=height)
    for n in windows:
        yield "window", replace(base, window=min(n, base.frames))
    for n in batches:
        yield "batch", replace(base, batch=n)
    for n in threads:
        yield "threads", replace(base, threads=n)


@click.command()
@click.option("--engine", "model", default=DEFAULT_BUNDLE, type=click.Path(path_type=Path))
@click.option("--device", default="auto", show_default=True)
@click.option("--size", default="160x90", show_default=True, help="Size of the other axes.")
@click.option("--length", default=16, show_default=True, help="Frames of the other axes.")
@click.option("--frames", default="4,8,16,32,64", show_default=True)
@click.option("--sizes", default="96x54,160x90,320x180,640x360", show_default=True)
@click.option("--windows", default="1,2,4,8,16", show_default=True)
@click.option("--batches", default="1,2,4", show_default=True)
@click.option("--threads", help="Numbers of cores.  [default: powers of two up to all]")
@click.option("--repeats", default=3, show_default=True, help="After one scene to warm up.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="JSON file to write.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="PNG file to write.")
def main(
    model: Path,
    device: str,
    size: str,
    length: int,
    frames: str,
    sizes: str,
    windows: str,
    batches: str,
    threads: str | None,
    repeats: int,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Measure how time and memory grow."""
    cores, (width, height) = allowed_processors(), parse_size(size)
    base = Point(frames=length, width=width, height=height, window=length, batch=1, threads=cores)
    powers = ",".join(str(2**n) for n in range(cores.bit_length()))
    chosen = points(
        base,
        frames=parse_numbers(frames),
        sizes=[parse_size(text) for text in sizes.split(",")],
        windows=parse_numbers(windows),
        batches=parse_numbers(batches),
        threads=parse_numbers(threads or powers),
    )
    load, spawn = Load(), multiprocessing.get_context("spawn")
    with open_engine(model, device=device) as engine:
        result: dict[str, Any] = {**environment(engine), "repeats": repeats, "points": []}
    for axis, point in chosen:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            figures = pool.submit(measure, point, model, device, repeats).result()
        result["points"].append({"axis": axis, **figures})
        print(
            f"{axis:>8} {name(axis, figures):>8}: {figures['ms_per_frame']:8.1f} ms, "
            f"{figures['cpu_ms_per_frame']:8.1f} ms of CPU per frame, "
            f"{(figures['peak_host_bytes'] or 0) / 2**20:6.0f} MiB",
            flush=True,
        )
        worst = max(p["spread"] for p in result["points"])
        result["calm"] = msgspec.structs.asdict(load.judge(spread=worst))
        if json_path is not None:
            json_path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("; ".join(result["calm"]["reasons"]) or "the machine was calm")
    if plot_path is not None:
        plot(result, plot_path)


def name(axis: str, figures: dict[str, Any]) -> str:
    """Return the value of a point on its axis."""
    if axis == "size":
        return f"{figures['width']}x{figures['height']}"
    return str(figures[axis])


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw time and memory, one column per axis."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    axes_names = list(dict.fromkeys(p["axis"] for p in result["points"]))
    figure, grid = pyplot.subplots(
        2, len(axes_names), figsize=(12, 5.2), layout="constrained", squeeze=False
    )
    for column, axis in enumerate(axes_names):
        found = [p for p in result["points"] if p["axis"] == axis]
        labels = [name(axis, p) for p in found]
        top, bottom = grid[:, column]
        top.plot(labels, [p["ms_per_frame"] for p in found], "o-", label="elapsed")
        top.plot(labels, [p["cpu_ms_per_frame"] for p in found], "s--", label="CPU")
        memory = [(p["peak_host_bytes"] or float("nan")) / 2**20 for p in found]
        bottom.plot(labels, memory, "o-", color="C2")
        bottom.set_xlabel(axis)
        for part in (top, bottom):
            part.set_ylim(bottom=0, top=1.12 * part.dataLim.ymax)
            part.grid(alpha=0.3)
            part.tick_params(axis="x", rotation=30 if axis == "size" else 0)
    grid[0, 0].set_ylabel("ms per frame")
    grid[1, 0].set_ylabel("peak memory, MiB")
    grid[0, 0].legend(loc="lower right")
    calm = "" if result["calm"]["calm"] else "; the machine was not calm"
    figure.suptitle(f"{result['engine'].split(' (')[0]}, {result['processors']} cores{calm}")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
