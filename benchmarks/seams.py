"""Measures whether splitting a scene shows: outputs made in chunks against the whole scene at once.

There are three ways to split. ``window``: the device holds the backward states of one chunk at a
time, as happens when memory is short; this changes nothing. ``continued``: ``--max-scene``, whose
chunks pass on the forward state and look some frames ahead. ``independent``: every chunk on its
own, as the published script does (``--max_seq_len``).

Two figures are measured: the mean absolute difference from the whole scene; and the mean absolute
difference between consecutive outputs across chunk borders, divided by that within chunks. The
second needs no reference, but depends on the motion in the clip, so the ratio of the whole scene is
reported next to it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
from common import Frames, difference, environment, parse_size, read_clip, upscale
from numpy.typing import NDArray

from rbvsr_deploy.engines import Engine, open_engine
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE
from rbvsr_deploy.runtime import stream
from rbvsr_deploy.runtime.memory_plan import MemoryPlan, choose_plan
from rbvsr_deploy.runtime.settings import CONTINUATION_LOOKAHEAD, Settings

WAYS = ("window", "continued", "independent")


def in_windows(
    engine: Engine, images: NDArray[np.uint8], settings: Settings, *, chunk: int
) -> tuple[Frames, MemoryPlan]:
    """Upscale the whole scene with the states of one chunk and half as many frames in memory; also
    return the plan that was used.
    """
    plans = []

    def little(*args: Any, **options: Any) -> MemoryPlan:
        plan = choose_plan(*args, **options)
        plans.append(dataclasses.replace(plan, window=chunk, in_memory=chunk // 2))
        return plans[-1]

    with mock.patch.object(stream, "choose_plan", little):
        outputs = upscale(engine, images, settings)
    return outputs, plans[-1]


def compare(outputs: Frames, whole: Frames, *, chunk: int) -> dict[str, Any]:
    """Return differences in levels, by frame and at borders, and the ratio between neighbours."""
    by_frame = [float(np.mean(difference(*pair))) for pair in zip(outputs, whole, strict=True)]
    steps = [float(np.mean(difference(*pair))) for pair in itertools.pairwise(outputs)]
    starts = range(chunk, len(outputs), chunk)  # the first frames of all chunks but the first
    borders = {start - 1 for start in starts} | set(starts)
    at_border = [d for i, d in enumerate(by_frame) if i in borders]
    elsewhere = [d for i, d in enumerate(by_frame) if i not in borders]
    across = [step for i, step in enumerate(steps) if i + 1 in starts]
    within = [step for i, step in enumerate(steps) if i + 1 not in starts]
    return {
        "at_borders": float(np.mean(at_border)),
        "elsewhere": float(np.mean(elsewhere)),
        "largest": max(by_frame),
        "step_ratio": float(np.mean(across) / np.mean(within)),
        "by_frame": by_frame,
    }


@click.command()
@click.argument("video", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--engine", "model", default=DEFAULT_BUNDLE, type=click.Path(path_type=Path))
@click.option("--device", default="auto", show_default=True)
@click.option("--size", default="160x90", show_default=True, help="Width x height of the input.")
@click.option("--frames", default=120, show_default=True)
@click.option("--chunk", default=16, show_default=True, help="Frames at a time.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="JSON file to write.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="PNG file to write.")
def main(
    video: Path,
    model: Path,
    device: str,
    size: str,
    frames: int,
    chunk: int,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Measure how visible chunk borders are in VIDEO, which must begin with a single scene."""
    if not 1 < chunk < frames:
        raise click.UsageError("--chunk must be at least 2 and less than --frames")
    engine = open_engine(model, device=device)
    images = read_clip(video, frames=frames, size=parse_size(size))
    # The number of cleaning passes is decided per scene: fix it, or chunks could differ in it.
    at_once = Settings(max_scene=frames, cleanings=1)
    whole = upscale(engine, images, at_once)
    windowed, plan = in_windows(engine, images, at_once, chunk=chunk)
    ways = {
        "window": windowed,
        "continued": upscale(engine, images, Settings(max_scene=chunk, cleanings=1)),
        "independent": upscale(engine, images, at_once, cuts=range(chunk, frames, chunk)),
    }
    result: dict[str, Any] = {
        **environment(engine),
        "video": video.name,
        "size": size,
        "frames": frames,
        "chunk": chunk,
        "window_plan": dataclasses.asdict(plan),
        "continued_with_lookahead": CONTINUATION_LOOKAHEAD,
        "whole_step_ratio": compare(whole, whole, chunk=chunk)["step_ratio"],
        "ways": {way: compare(outputs, whole, chunk=chunk) for way, outputs in ways.items()},
    }
    show(result)
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if plot_path is not None:
        plot(result, plot_path)


def show(result: dict[str, Any]) -> None:
    """Print a table, one line per way."""
    print(f"{result['engine']}; {result['frames']} frames, {result['chunk']} at a time")
    print(f"{'levels of 255':>14}{'at borders':>12}{'elsewhere':>12}{'largest':>12}{'steps':>9}")
    print(f"{'whole':>14}{'':>36}{result['whole_step_ratio']:>9.3f}")
    for way, figures in result["ways"].items():
        cells = (figures[key] for key in ("at_borders", "elsewhere", "largest"))
        print(
            f"{way:>14}"
            + "".join(f"{cell:>12.4f}" for cell in cells)
            + f"{figures['step_ratio']:>9.3f}"
        )
    print("steps: change between consecutive frames across borders / within chunks")


def plot(result: dict[str, Any], path: Path) -> None:
    """Difference against frame number, one line per way."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    labels = {
        "window": "windows of the exact propagation",
        "continued": f"--max-scene, {result['continued_with_lookahead']} frames ahead",
        "independent": "independent chunks (published script)",
    }
    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    for border in range(result["chunk"], result["frames"], result["chunk"]):
        axes.axvline(border - 0.5, color="lightgrey", linewidth=1)
    for way, style in zip(reversed(WAYS), ("-", "-", "--"), strict=True):
        figures = result["ways"][way]
        label = f"{labels[way]}: at most {figures['largest']:.2g}"
        axes.plot(figures["by_frame"], style, linewidth=1.8, label=label)
    axes.set_xlabel(f"frame (grey: borders of chunks of {result['chunk']})")
    axes.set_ylabel("mean absolute difference\nfrom the whole scene, levels of 255")
    axes.set_title(
        f"Effect of splitting a scene ({result['engine'].split(' by ')[0]}, {result['size']})"
    )
    axes.set_xlim(0, result["frames"] - 1)
    highest = max(figures["largest"] for figures in result["ways"].values())
    axes.set_ylim(0, 1.35 * highest or 1)  # room for the legend
    axes.grid(alpha=0.3, axis="y")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
