"""Measures the error of a bounded lookahead, ``--lookahead N``, relative to the whole scene.

There are two parts. The first compares outputs with a lookahead of N frames to outputs that use the
whole clip. It measures the first frames of a clip that continues long after them, so that every one
of them loses some of its future, and the same frames for every N. Only every few frames are
computed, which gives the same outputs as ``Settings(lookahead=N)``; a test checks that.

The second part measures scenes longer than ``--max-scene P``, processed in chunks whose backward
branch starts L frames after each chunk (the warm-up): the error of the last output of a chunk,
which sees the least of the future, and of all others. The forward branch is exact in both, so the
last output of a chunk equals the one with a lookahead of L.

Clips must be single scenes. Cleaning is set to one pass: the number of passes is decided from the
available frames, which a lookahead also changes, and is not measured here.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
from common import Frames, difference, environment, parse_numbers, parse_size, read_clip, upscale
from numpy.typing import NDArray

from rbvsr_deploy.engines import Engine, open_engine
from rbvsr_deploy.engines.base import Array
from rbvsr_deploy.pixels import Image
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE
from rbvsr_deploy.runtime import settings as settings_module
from rbvsr_deploy.runtime.context import Context
from rbvsr_deploy.runtime.memory_plan import MemoryBudget, choose_plan
from rbvsr_deploy.runtime.propagation import propagate
from rbvsr_deploy.runtime.refinement import Cleaner
from rbvsr_deploy.runtime.scene_frames import SceneFrames
from rbvsr_deploy.runtime.settings import Settings


class Clip:
    """Holds the cleaned frames of a clip, to upscale any of them with any amount of future."""

    def __init__(self, engine: Engine, images: NDArray[np.uint8]) -> None:
        self._length = len(images)
        plan = choose_plan(
            engine.network,
            height=images.shape[1],
            width=images.shape[2],
            memory=engine.free_memory() // 2,
            longest=self._length,
            on_cpu=engine.describe().device == "cpu",
        )
        self._context = Context(
            engine,
            # Frames are used again and again, as with a bounded lookahead.
            Settings(lookahead=self._length, cleanings=1),
            size=(images.shape[1], images.shape[2]),
            budget=MemoryBudget(dataclasses.replace(plan, batch=1)),
        )
        self._frames = SceneFrames(self._context)
        cleaner = Cleaner(self._context, self._frames)
        for image in images:
            cleaner.push(image)
        cleaner.decide()

    def outputs(
        self, start: int, end: int, *, stop: int | None = None, forward_state: Array | None = None
    ) -> tuple[Frames, Array]:
        """Upscale some frames from those up to ``stop``; also return the forward state."""
        made = propagate(
            self._context,
            self._frames,
            start=start,
            end=end,
            stop=self._length if stop is None else min(stop, self._length),
            forward_state=forward_state,
        )
        pairs = list(made)
        return [output for output, _ in pairs], pairs[-1][1]


def by_lookahead(
    clip: Clip, lookaheads: list[int], *, measured: int, every: int
) -> dict[int, dict[int, Image]]:
    """Upscale every few of the first frames; return the outputs by lookahead and frame."""
    outputs: dict[int, dict[int, Image]] = {ahead: {} for ahead in lookaheads}
    state = None
    for i in range(measured):
        after = None
        for ahead in lookaheads if i % every == every - 1 else [0]:
            (output,), after = clip.outputs(i, i + 1, stop=i + 1 + ahead, forward_state=state)
            if i % every == every - 1:
                outputs[ahead][i] = output
        state = after
    return outputs


def errors(pairs: Iterable[tuple[Image, Image]]) -> dict[str, Any]:
    """Compare outputs with the exact ones: RMSE over all, RMSE of the worst one, and mean absolute
    difference, in levels; PSNR in dB, ``None`` where all are equal.
    """
    squares, means = [], []
    for output, exact in pairs:
        levels = difference(output, exact)
        squares.append(float(np.mean(np.square(levels))))
        means.append(float(np.mean(levels)))
    rmse = math.sqrt(float(np.mean(squares)))
    return {
        "frames": len(squares),
        "rmse": rmse,
        "worst_rmse": math.sqrt(max(squares)),
        "mean_difference": float(np.mean(means)),
        "psnr": 20 * math.log10(255 / rmse) if rmse else None,
    }


def joins(
    engine: Engine, images: NDArray[np.uint8], whole: Frames, *, chunk: int, warm_ups: list[int]
) -> dict[str, Any]:
    """Return errors of a scene processed in chunks, by warm-up; ``whole`` are the exact outputs."""
    settings = Settings(max_scene=chunk, cleanings=1)
    last = [i for i in range(chunk - 1, len(whole), chunk) if i < len(images) - 1]
    rest = [i for i in range(len(whole)) if i not in last]
    end = -(-len(whole) // chunk) * chunk
    result = {}
    for warm_up in warm_ups:
        with mock.patch.object(settings_module, "CONTINUATION_LOOKAHEAD", warm_up):
            outputs = upscale(engine, images[: end + warm_up], settings)
        result[str(warm_up)] = {
            "joins": errors((outputs[i], whole[i]) for i in last),
            "rest": errors((outputs[i], whole[i]) for i in rest),
        }
    return result


def mean(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Average the figures of all clips; the worst is the worst of all."""
    psnr = [f["psnr"] for f in figures]
    return {
        "rmse": float(np.mean([f["rmse"] for f in figures])),
        "worst_rmse": max(f["worst_rmse"] for f in figures),
        "mean_difference": float(np.mean([f["mean_difference"] for f in figures])),
        "psnr": None if None in psnr else float(np.mean(psnr)),
    }


def measure(
    engine: Engine,
    images: NDArray[np.uint8],
    *,
    lookaheads: list[int],
    measured: int,
    every: int,
    max_scene: int,
    warm_ups: list[int],
    float16: Engine | None,
) -> dict[str, Any]:
    """Measure everything about one clip."""
    clip = Clip(engine, images)
    whole, _ = clip.outputs(0, measured)
    result: dict[str, Any] = {
        "lookahead": {
            str(ahead): errors((output, whole[i]) for i, output in outputs.items())
            for ahead, outputs in by_lookahead(
                clip, lookaheads, measured=measured, every=every
            ).items()
        }
    }
    if max_scene:
        result["continuation"] = joins(engine, images, whole, chunk=max_scene, warm_ups=warm_ups)
    if float16 is not None:
        halves, _ = Clip(float16, images).outputs(0, measured)
        result["float16"] = errors(zip(halves, whole, strict=True))
    return result


@click.command()
@click.argument(
    "videos", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option("--engine", "model", default=DEFAULT_BUNDLE, type=click.Path(path_type=Path))
@click.option("--device", default="auto", show_default=True)
@click.option("--size", default="160x90", show_default=True, help="Width x height of the input.")
@click.option("--frames", default=128, show_default=True, help="Length of the scene.")
@click.option(
    "--measured", default=56, show_default=True, help="Number of its first frames to measure."
)
@click.option("--every", default=4, show_default=True, help="Measure every N-th frame.")
@click.option("--lookaheads", default="0,1,2,4,8,16,32", show_default=True)
@click.option(
    "--max-scene", default=0, show_default=True, help="Length of chunks; 0: skip this part."
)
@click.option("--warm-ups", default="0,4,16,32", show_default=True)
@click.option(
    "--float16", type=click.Path(path_type=Path), help="The same model in float16, to compare."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="JSON file to write.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="PNG file to write.")
def main(
    videos: tuple[Path, ...],
    model: Path,
    device: str,
    size: str,
    frames: int,
    measured: int,
    every: int,
    lookaheads: str,
    max_scene: int,
    warm_ups: str,
    float16: Path | None,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Measure the error of a bounded lookahead on VIDEOS, each a single scene."""
    if not 0 < every <= measured < frames:
        raise click.UsageError(
            "--every must be at most --measured, and --measured less than --frames"
        )
    engine = open_engine(model, device=device)
    half = None if float16 is None else open_engine(float16, device=device)
    result: dict[str, Any] = {
        **environment(engine),
        "size": size,
        "frames": frames,
        "measured": measured,
        "every": every,
        "max_scene": max_scene,
        "clips": {},
    }
    for video in videos:
        result["clips"][video.stem] = measure(
            engine,
            read_clip(video, frames=frames, size=parse_size(size)),
            lookaheads=parse_numbers(lookaheads),
            measured=measured,
            every=every,
            max_scene=max_scene,
            warm_ups=parse_numbers(warm_ups),
            float16=half,
        )
        print(f"measured {video.name}", flush=True)
        summarize(result)
        if json_path is not None:
            json_path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    show(result)
    if plot_path is not None:
        plot(result, plot_path)


def summarize(result: dict[str, Any]) -> None:
    """Add the means over the clips, and whether the error decreases with every step of N."""
    clips = list(result["clips"].values())
    result["mean"] = {
        "lookahead": {
            ahead: mean([clip["lookahead"][ahead] for clip in clips])
            for ahead in clips[0]["lookahead"]
        }
    }
    if "continuation" in clips[0]:
        result["mean"]["continuation"] = {
            warm_up: {
                where: mean([clip["continuation"][warm_up][where] for clip in clips])
                for where in ("joins", "rest")
            }
            for warm_up in clips[0]["continuation"]
        }
    if "float16" in clips[0]:
        result["mean"]["float16"] = mean([clip["float16"] for clip in clips])
    for entry in (*clips, result["mean"]):
        for error in ("rmse", "mean_difference"):
            curve = [figures[error] for figures in entry["lookahead"].values()]
            entry[f"{error}_falls"] = all(
                later <= earlier for earlier, later in itertools.pairwise(curve)
            )


def show(result: dict[str, Any]) -> None:
    """Print errors in levels by lookahead, one column per clip, then those at joins."""
    columns = {**result["clips"], "mean": result["mean"]}
    print(result["engine"])
    for error, title in (("rmse", "RMSE, levels"), ("mean_difference", "mean difference")):
        print(f"{title:>16}" + "".join(f"{name[:14]:>15}" for name in columns))
        for ahead in result["mean"]["lookahead"]:
            cells = (entry["lookahead"][ahead][error] for entry in columns.values())
            print(f"{'lookahead ' + ahead:>16}" + "".join(f"{cell:>15.3f}" for cell in cells))
        for warm_up in result["mean"].get("continuation", ()):
            for where in ("joins", "rest"):
                cells = (entry["continuation"][warm_up][where][error] for entry in columns.values())
                label = f"L {warm_up}, {where}"
                print(f"{label:>16}" + "".join(f"{cell:>15.3f}" for cell in cells))
        if "float16" in result["mean"]:
            cells = (entry["float16"][error] for entry in columns.values())
            print(f"{'float16':>16}" + "".join(f"{cell:>15.3f}" for cell in cells))
        answers = ("yes" if entry[f"{error}_falls"] else "NO" for entry in columns.values())
        print(f"{'always falls':>16}" + "".join(f"{answer:>15}" for answer in answers))


def plot(result: dict[str, Any], path: Path) -> None:
    """PSNR against lookahead, one line per clip and the mean."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, entry in {**result["clips"], "mean": result["mean"]}.items():
        points = [
            (int(ahead), figures["psnr"])
            for ahead, figures in entry["lookahead"].items()
            if figures["psnr"] is not None
        ]
        look: dict[str, Any] = {"color": "black", "linewidth": 2.5} if name == "mean" else {}
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, **look)
    if "float16" in result["mean"] and result["mean"]["float16"]["psnr"] is not None:
        level = result["mean"]["float16"]["psnr"]
        axes.axhline(level, color="grey", linestyle="--", label="float16, whole scene (mean)")
    lookaheads = [int(ahead) for ahead in result["mean"]["lookahead"]]
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xticks(lookaheads, labels=[str(ahead) for ahead in lookaheads])
    axes.set_xlim(left=lookaheads[0] - 0.2)
    axes.minorticks_off()
    axes.set_xlabel("lookahead N: number of future frames used")
    axes.set_ylabel("PSNR against the whole scene, dB (higher is closer)")
    axes.set_title(
        f"Error of a bounded lookahead ({result['engine'].split(' by ')[0]}, {result['size']})"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
