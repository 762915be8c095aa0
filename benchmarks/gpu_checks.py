"""The parts of ``first_hour.py`` that need the engines: values, batches, repetition and speed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import environment, parse_size, upscale

from rbvsr_deploy.bench.graph_timing import graph_inputs
from rbvsr_deploy.engines import Engine, open_engine
from rbvsr_deploy.engines.base import Array
from rbvsr_deploy.graphs import GRAPHS
from rbvsr_deploy.pixels import psnr_of
from rbvsr_deploy.runtime.stream import Settings

PATH = click.Path(path_type=Path)
JSON = click.option("--json", "json_path", type=PATH, help="JSON file to write.")
SIZE = click.option("--size", default="320x180", show_default=True, help="Width x height.")
LEAST_PSNR = 45.0
"""PSNR of a graph's output in float16 on random inputs, which are harder than a clip."""


@click.group()
def main() -> None:
    """Check engines on this machine's GPU."""


def clip(frames: int, size: tuple[int, int]) -> Any:
    """Return random frames that move: (T, H, W, 3)."""
    width, height = size
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (height, width + frames, 3), np.uint8)
    return np.stack([wide[:, t : t + width] for t in range(frames)])


def finish(result: dict[str, Any], json_path: Path | None, *, failures: list[str]) -> None:
    """Print and write a result, and fail if something is wrong."""
    result = {**result, "failures": failures}
    print(json.dumps(result, indent=1))
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if failures:
        sys.exit(1)


@main.command()
@click.argument("bundle", type=PATH)
def publish(bundle: Path) -> None:
    """Export the published size with random weights in float16 to BUNDLE."""
    import torch
    from safetensors.torch import save_file

    from rbvsr_deploy.export.to_bundle import export_bundle
    from rbvsr_deploy.model import RealBasicVSR, RealBasicVSRConfig

    torch.manual_seed(0)
    checkpoint = bundle.with_suffix(".safetensors")
    model = RealBasicVSR(RealBasicVSRConfig())
    save_file(model.state_dict(), checkpoint, metadata={"provenance": "random weights"})
    export_bundle(checkpoint, bundle, precision="float16")


@main.command()
@click.argument("bundle", type=PATH)
@SIZE
@JSON
def values(bundle: Path, size: str, json_path: Path | None) -> None:
    """Compare every graph of BUNDLE on the GPU with ONNX Runtime on the CPU."""
    width, height = parse_size(size)
    figures, failures = {}, []
    with (
        open_engine(bundle, device="tensorrt", size=lambda: (height, width)) as engine,
        open_engine(bundle, device="cpu") as reference,
    ):
        for graph in engine.network.graphs:
            given = graph_inputs(reference, graph, height=height, width=width)
            arrays = {name: engine.upload(reference.download(a)) for name, a in given.items()}
            pairs = zip(engine.run(graph, **arrays), reference.run(graph, **given), strict=True)
            for item, (got, want) in zip(GRAPHS[graph].outputs, pairs, strict=True):
                found = compared(engine.download(got), reference.download(want))
                figures[f"{graph} {item.name}"] = found
                if not found["psnr"] >= LEAST_PSNR:
                    failures.append(f"'{item.name}' of graph '{graph}'")
        result = {**environment(engine), "size": size, "outputs": figures}
    finish(result, json_path, failures=failures)


def compared(got: Any, want: Any) -> dict[str, float]:
    """Return PSNR, largest difference and largest value of an output."""
    difference = np.abs(got.astype(np.float64) - want.astype(np.float64))
    peak = max(1.0, float(np.abs(want.astype(np.float64)).max()))
    if not np.isfinite(difference).all():
        return {"psnr": -1.0, "max_difference": -1.0, "peak": peak}
    psnr = psnr_of(float((difference**2).mean()), peak=peak, most=200.0)
    return {
        "psnr": round(float(psnr), 1),
        "max_difference": float(f"{difference.max():.3g}"),
        "peak": float(f"{peak:.3g}"),
    }


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--sizes", default="1280x720*4,1920x1080*2", show_default=True)
@click.option("--device", default="tensorrt", show_default=True)
@JSON
def batches(bundle: Path, sizes: str, device: str, json_path: Path | None) -> None:
    """Run graphs of BUNDLE on several frames at once and one by one, and compare bit by bit."""
    figures, failures = {}, []
    for text in sizes.split(","):
        size, _, count = text.partition("*")
        width, height = parse_size(size)
        shape = (height, width)
        with open_engine(bundle, device=device, size=lambda shape=shape: shape) as engine:  # type: ignore[misc]
            for graph in ("clean", "reconstruct"):
                differing = _differing(engine, graph, shape=shape, count=int(count))
                figures[f"{graph} {text}"] = differing
                if differing:
                    failures.append(f"graph '{graph}' at {text}")
    finish({**environment(), "differing values": figures}, json_path, failures=failures)


def _differing(engine: Engine, graph: str, *, shape: tuple[int, int], count: int) -> int:
    """Return the number of values that differ between a batch and single frames."""
    height, width = shape
    one = graph_inputs(engine, graph, height=height, width=width)
    arrays: dict[str, Array] = {}
    for name, array in one.items():
        item = engine.download(array)
        arrays[name] = engine.upload(np.concatenate([np.roll(item, n, 3) for n in range(count)]))
    whole = engine.download(engine.run(graph, **arrays)[0])
    differing = 0
    for n in range(count):
        single = {name: engine.slice(array, n, n + 1) for name, array in arrays.items()}
        part = engine.download(engine.run(graph, **single)[0])
        differing += int((part != whole[n : n + 1]).sum())
    return differing


@main.command()
@click.argument("bundle", type=PATH)
@SIZE
@click.option("--frames", default=24, show_default=True)
@click.option("--device", default="tensorrt", show_default=True)
@JSON
def repeat(bundle: Path, size: str, frames: int, device: str, json_path: Path | None) -> None:
    """Upscale a clip twice with one engine, and compare byte by byte."""
    width, height = parse_size(size)
    images = clip(frames, (width, height))
    with open_engine(bundle, device=device, size=lambda: (height, width)) as engine:
        first, second = (upscale(engine, images, Settings()) for _ in range(2))
        result = environment(engine)
    different = [n for n, (a, b) in enumerate(zip(first, second, strict=True)) if (a != b).any()]
    failures = [f"frame {n}" for n in different[:10]]
    finish({**result, "differing frames": len(different)}, json_path, failures=failures)


@main.command()
@click.argument("bundle", type=PATH)
@SIZE
@click.option("--frames", default=300, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--device", default="tensorrt", show_default=True)
@JSON
def speed(
    bundle: Path, size: str, frames: int, repeats: int, device: str, json_path: Path | None
) -> None:
    """Measure milliseconds per frame of the whole network, and the host's CPU time of it."""
    width, height = parse_size(size)
    images = clip(frames, (width, height))
    runs = []
    with open_engine(bundle, device=device, size=lambda: (height, width)) as engine:
        upscale(engine, images[:24], Settings(cleanings=1))
        for _ in range(repeats):
            start = time.perf_counter(), time.thread_time()
            done = len(upscale(engine, images, Settings(cleanings=1)))
            took = time.perf_counter() - start[0], time.thread_time() - start[1]
            runs.append([round(1000 * t / done, 3) for t in took])
        result = environment(engine)
    best = min(runs)
    figures = {"milliseconds": best[0], "host milliseconds": best[1], "runs": runs}
    finish({**result, "size": size, "frames": frames, **figures}, json_path, failures=[])


@main.command()
@click.argument("folder", type=PATH)
@click.option("--clip", "sample", type=PATH, required=True)
@JSON
def int8(folder: Path, sample: Path, json_path: Path | None) -> None:
    """Time the compact model in int8 against float16, graph by graph."""
    export = "from rbvsr_deploy.commands.export import export; export()"
    bundles = {"float16": ["--fp16"], "int8": ["--int8", "--calibrate", str(sample)]}
    for name, options in bundles.items():
        path = folder / f"compact-{name}.plan"
        subprocess.run([sys.executable, "-c", export, *options, "-o", str(path)], check=True)
    bench = "from rbvsr_deploy.commands.bench import bench; bench()"
    results = {}
    for name in bundles:
        measured = folder / f"compact-{name}.bench.json"
        paths = ["--engine", str(folder / f"compact-{name}.plan"), "-o", str(measured)]
        options = ["--device", "tensorrt", "--quick", *paths]
        subprocess.run([sys.executable, "-c", bench, *options], check=True)
        results[name] = json.loads(measured.read_text(encoding="utf-8"))
    if json_path is not None:
        json_path.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
