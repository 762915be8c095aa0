"""Measures the whole: the command with its decoder and encoder, the network inside it, and the
published size against PyTorch.

``command`` runs ``rbvsr-run`` from several source trees or environments, ``network`` compares the
network's time inside a run with that of its graphs alone, and ``published`` compares the published
size with eager PyTorch. What is compared takes turns, and the shortest of the runs counts, so that
a machine that slows down slows all alike. The processor time is given too: on a machine that others
use as well, it is the more reliable figure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import environment, parse_size, read_clip, shortest, upscale, upscaled_frames

from rbvsr_deploy.bench.graph_timing import RUNS_PER_FRAME, graph_inputs
from rbvsr_deploy.engines import Engine, open_engine
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE
from rbvsr_deploy.runtime.stream import Settings

SAMPLE = Path(__file__).parents[1] / "tests" / "data" / "sample.mp4"
COMMAND = "from rbvsr_deploy.commands.run import run; run()"

JSON = click.option("--json", "json_path", type=click.Path(path_type=Path), help="File to write.")
CLIP = click.option("--clip", default=SAMPLE, type=click.Path(path_type=Path, exists=True))
SIZE = click.option("--size", default="320x180", show_default=True, help="Width x height.")


@click.group()
def main() -> None:
    """Measure from end to end."""


def child(
    arguments: list[str], *, tree: Path | None = None, folder: Path | None = None
) -> dict[str, Any]:
    """Run a process in a folder and return its time, processor time, peak memory and standard
    output.
    """
    variables = dict(os.environ)
    if tree is not None:
        variables["PYTHONPATH"] = str(tree)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            arguments, env=variables, cwd=folder, stdout=output, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        output.seek(0)
        errors.seek(0)
        if status != 0:
            raise click.ClickException(errors.read().decode()[-2000:])
        return {
            "seconds": round(wall, 3),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
            "peak_mib": round(usage.ru_maxrss / 1024),
            "output": output.read().decode(),
        }


def finish(result: dict[str, Any], json_path: Path | None) -> None:
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1), encoding="utf-8")


# ------------------------------------------------------------------------------------ command


@main.command()
@click.argument("environments", nargs=-1, required=True)
@CLIP
@click.option("--repeats", default=3, show_default=True)
@JSON
def command(
    environments: tuple[str, ...], clip: Path, repeats: int, json_path: Path | None
) -> None:
    """Run rbvsr-run in ENVIRONMENTS, each NAME=PYTHON or NAME=PYTHON,TREE[,OPTION...], in turns.

    PYTHON is an interpreter, TREE a checkout whose rbvsr_deploy is run with it; options are passed
    to rbvsr-run. Ratios are to the first.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    parsed: dict[str, tuple[str, Path | None, list[str]]] = {}
    for text in environments:
        name, _, rest = text.partition("=")
        python, *more = rest.split(",")
        # Not in the folder of this checkout, which Python would search first.
        parsed[name] = python, Path(more[0]).resolve() if more and more[0] else None, more[1:]
        runs[name] = []
    for _ in range(repeats):
        for name, (python, tree, options) in parsed.items():
            with tempfile.TemporaryDirectory() as folder:
                output = str(Path(folder, "out.mp4"))
                run = child(
                    [python, "-c", COMMAND, str(clip.resolve()), "-o", output, "--json", *options],
                    tree=tree,
                    folder=Path(folder),
                )
            summary = json.loads(run.pop("output"))
            runs[name].append({**run, "frames": summary["frames"], "stages": summary["seconds"]})
    first = next(iter(runs.values()))
    print(f"{'':>16}{'fps':>8}{'ratio':>8}{'cpu s':>8}{'ratio':>8}{'MiB':>8}{'network':>9}")
    for name, made in runs.items():
        seconds, cpu = shortest(made, "seconds"), shortest(made, "cpu_seconds")
        network = min(run["stages"]["network"] for run in made)
        print(
            f"{name:>16}{made[0]['frames'] / seconds:>8.2f}"
            f"{shortest(first, 'seconds') / seconds:>8.2f}{cpu:>8.1f}"
            f"{shortest(first, 'cpu_seconds') / cpu:>8.2f}"
            f"{max(run['peak_mib'] for run in made):>8}{network / seconds:>9.1%}"
        )
    finish({**environment(), "clip": clip.name, "runs": runs}, json_path)


# ------------------------------------------------------------------------------------ network


@main.command()
@click.argument("model", default=DEFAULT_BUNDLE, type=click.Path(path_type=Path))
@CLIP
@SIZE
@click.option("--frames", default=54, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--repeats", default=3, show_default=True)
@JSON
def network(
    model: Path,
    clip: Path,
    size: str,
    frames: int,
    device: str,
    repeats: int,
    json_path: Path | None,
) -> None:
    """Compare the network's time per frame inside a run with that of the graphs of MODEL alone."""
    width, height = parse_size(size)
    images = read_clip(clip, frames=frames, size=(width, height))
    result: dict[str, Any] = {**environment(), "size": size, "inside": [], "alone": []}
    with open_engine(model, device=device, size=lambda: (height, width)) as engine:
        result["engine"] = str(engine.describe())
        upscale(engine, images[:2], Settings(max_scene=frames))
        for _ in range(repeats):
            start, cpu = time.perf_counter(), time.process_time()
            upscale(engine, images, Settings(max_scene=frames))
            inside = (time.perf_counter() - start, time.process_time() - cpu)
            result["inside"].append([round(1000 * value / frames, 2) for value in inside])
            result["alone"].append(_alone(engine, height=height, width=width))
    print(result["engine"])
    for number, unit in enumerate(("ms", "ms of processor time")):
        inside_, alone = (min(row[number] for row in result[name]) for name in ("inside", "alone"))
        print(f"inside {inside_:.1f} {unit}, alone {alone:.1f}: ratio {inside_ / alone:.3f}")
    finish(result, json_path)


def measure(engine: Engine, graph: str, arrays: dict[str, Any]) -> float:
    """Return the milliseconds of one run, including the download of its result."""
    start = time.perf_counter()
    outputs = engine.run(graph, **arrays)
    engine.download(outputs[-1])
    return 1000 * (time.perf_counter() - start)


def _alone(engine: Engine, *, height: int, width: int, runs: int = 10) -> list[float]:
    """Return milliseconds and milliseconds of processor time of the graphs of one frame."""
    total = [0.0, 0.0]
    for graph, count in RUNS_PER_FRAME.items():
        if graph == "clean" and not engine.network.has_cleaning:
            continue
        arrays = graph_inputs(engine, graph, height=height, width=width)
        measure(engine, graph, arrays)
        cpu = time.process_time()
        took = [measure(engine, graph, arrays) for _ in range(runs)]
        total[0] += count * sorted(took)[runs // 2]
        total[1] += count * 1000 * (time.process_time() - cpu) / runs
    return [round(value, 2) for value in total]


# ---------------------------------------------------------------------------------- published


@main.command()
@CLIP
@SIZE
@click.option("--frames", default=60, show_default=True)
@click.option("--repeats", default=1, show_default=True)
@JSON
def published(clip: Path, size: str, frames: int, repeats: int, json_path: Path | None) -> None:
    """Compare the published size, with random weights, under ONNX Runtime and eager PyTorch."""
    import torch

    from rbvsr_deploy.export.to_bundle import export_bundle
    from rbvsr_deploy.model import PUBLISHED, RealBasicVSR

    width, height = parse_size(size)
    result: dict[str, Any] = {**environment(), "size": size, "frames": frames, "runs": {}}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        torch.manual_seed(0)
        torch.save(RealBasicVSR(PUBLISHED).state_dict(), place / "model.pth")
        export_bundle(place / "model.pth", place / "model.plan")
        images = read_clip(clip, frames=min(frames, 54), size=(width, height))
        np.save(place / "clip.npy", np.concatenate([images, images[::-1]])[:frames])
        runs: dict[str, list[dict[str, Any]]] = {"eager": [], "onnxruntime": []}
        for _ in range(repeats):
            for name, made in runs.items():
                made.append(child([sys.executable, __file__, "one", name, folder]))
                made[-1]["per_frame"] = float(made[-1].pop("output").split()[-1])
        outputs = [np.load(place / f"{name}.npy", mmap_mode="r") for name in runs]
        levels = max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(*outputs, strict=True))
    result |= {"runs": runs, "levels": levels}
    for name, made in runs.items():
        print(
            f"{name:>12}: {shortest(made, 'per_frame'):.3f} s per frame, "
            f"{shortest(made, 'cpu_seconds'):.1f} s of processor time in all, "
            f"{shortest(made, 'peak_mib'):.0f} MiB"
        )
    ratios = (
        shortest(runs["eager"], n) / shortest(runs["onnxruntime"], n)
        for n in ("per_frame", "cpu_seconds", "peak_mib")
    )
    print("ratios: time {:.2f}, processor time {:.2f}, memory {:.2f}".format(*ratios))
    print(f"largest difference: {levels} of 255 levels")
    finish(result, json_path)


@main.command(hidden=True)
@click.argument("name")
@click.argument("place", type=click.Path(path_type=Path))
def one(name: str, place: Path) -> None:
    """Upscale the clip of ``published`` in one process; print the seconds per frame."""
    images = np.load(place / "clip.npy")
    outputs = np.lib.format.open_memmap(
        place / f"{name}.npy",
        mode="w+",
        dtype=np.uint8,
        shape=(len(images), 4 * images.shape[1], 4 * images.shape[2], 3),
    )
    if name == "eager":
        took = _eager(images, outputs, place)
    else:
        with open_engine(place / "model.plan", device="cpu") as engine:
            upscale(engine, images[:1], Settings())
            start = time.perf_counter()
            made = upscaled_frames(engine, images, Settings(cleanings=1))
            for number, image in enumerate(made):
                outputs[number] = image
            took = time.perf_counter() - start
    print(took / len(images))


def _eager(images: Any, outputs: Any, place: Path) -> float:
    import torch

    from rbvsr_deploy.checkpoint import load_checkpoint

    model = load_checkpoint(place / "model.pth").model.eval()
    frames = torch.from_numpy(images).permute(0, 3, 1, 2)[None].float() / 255
    with torch.inference_mode():
        model(frames[:, :1])
        start = time.perf_counter()
        upscaled = model(frames, cleanings=1)[0]
        for number, image in enumerate(upscaled):
            outputs[number] = (image.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
