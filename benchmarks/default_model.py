"""Measures candidates for the default model on held-out footage, and checks them against bars.

The clips are those of :mod:`held_out`. Bicubic interpolation, the teacher (frame by frame, on
``moderate`` only) and every model upscale each set, and their outputs are kept as PNG files for
inspection. Clips of 300 frames show whether outputs drift, and a run under ONNX Runtime compares
the speed with the teacher's.

A bar is a figure with a limit. Figures of a set are means over its clips; ratios are ratios of
such means.
"""

from __future__ import annotations

import io
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import cv2
import msgspec
import numpy as np
from common import environment, parse_size
from held_out import make_sets, read_frames, write_frames
from numpy.typing import NDArray

from rbvsr_deploy.export.to_bundle import export_bundle
from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.pixels import eight_bits
from rbvsr_deploy.training.evaluation.evaluate import RESULTS, evaluate
from rbvsr_deploy.training.evaluation.metrics.catalogue import open_metrics
from rbvsr_deploy.training.evaluation.metrics.resize import enlarge
from rbvsr_deploy.training.evaluation.sequences import Item, check_items
from rbvsr_deploy.training.teacher import Teacher, load_teacher
from rbvsr_deploy.upscaler import Upscaler

Image = NDArray[np.uint8]
Method = Callable[[list[Image]], Iterable[Image]]
Scores = dict[str, Any]

BORDER = 4
METRICS = {
    "moderate": ("lpips", "niqe", "brisque", "psnr_y", "tof", "warping_error"),
    "clean": ("lpips", "psnr_y"),
    "real": ("niqe", "brisque"),
}
LONG, SETTLED = 300, 16
"""Frames of a long clip, and frames at either end in which outputs may still change."""


# ----------------------------------------------------------------------------------------- methods


def bicubic(images: list[Image]) -> Iterator[Image]:
    """Enlarge every frame by bicubic interpolation."""
    return (enlarge(image, SCALE) for image in images)


def by_teacher(teacher: Teacher) -> Method:
    """Return a method that upscales frame by frame with the teacher."""
    return lambda images: (teacher.upscale(image[None])[0] for image in images)


def by_model(upscaler: Upscaler, *, single: bool) -> Method:
    """Return a method that upscales with a model, the clip as a whole or every frame separately."""

    def method(images: list[Image]) -> Iterator[Image]:
        for part in ([i] for i in images) if single else (images,):
            yield from map(eight_bits, upscaler.frames(part))

    return method


def score(folder: Path, method: Method, results: Path, sets: Iterable[str]) -> Scores:
    """Upscale sets by a method and return their scores, per clip and as means over the clips."""
    scores: Scores = {}
    shutil.rmtree(results, ignore_errors=True)  # from an earlier run
    for name in sets:
        items = []
        for inputs in sorted((folder / name).iterdir()):
            images = list(read_frames(inputs))
            made = write_frames(results / name / inputs.name, method(images))
            truth = None if name == "real" else folder / "truth" / inputs.name
            items.append(Item(inputs.name, made, truth=truth, inputs=inputs))
        scorers, missing = open_metrics(METRICS[name], size=check_items(items, border=BORDER))
        for metric, reason in missing.items():
            click.echo(f"without {metric}: {reason}", err=True)
        found = evaluate(items, scorers, border=BORDER, baseline=False)
        scores[name] = {
            metric: {
                "mean": found.mean(RESULTS, metric),
                "clips": {k: v.mean(metric) for k, v in found.scores[RESULTS].items()},
            }
            for metric in scorers
        }
        if name == "real":
            scores[name]["colour"] = {"clips": {i.name: colour_shift(i) for i in items}}
    return scores


def colour_shift(item: Item) -> float:
    """Return the largest difference between the channel means of a clip's outputs and inputs, in
    levels.
    """
    assert item.results is not None
    assert item.inputs is not None
    means = [
        np.mean([image.mean(axis=(0, 1)) for image in read_frames(path)], axis=0)
        for path in (item.results, item.inputs)
    ]
    return float(np.abs(means[0] - means[1]).max())


# -------------------------------------------------------------------------------------------- long


def long_clips(photo: Image) -> dict[str, Callable[[int], Image]]:
    """Return a function per clip that gives its frame at a time, (48, 64, 3)."""
    still = cv2.resize(photo, (64, 48), interpolation=cv2.INTER_AREA)
    return {
        "noise": lambda t: np.random.default_rng(t).integers(0, 256, (48, 64, 3), np.uint8),
        "black": lambda t: np.zeros((48, 64, 3), np.uint8),
        "white": lambda t: np.full((48, 64, 3), 255, np.uint8),
        "flat": lambda t: np.full((48, 64, 3), (180, 90, 60), np.uint8),
        "still": lambda t: np.asarray(still, np.uint8),
    }


def run_long(upscaler: Upscaler, photo: Image) -> Scores:
    """Upscale the long clips and measure drift, in levels.

    ``offset`` is the largest difference between the channel means of an output and its input,
    ``drift`` the change of that difference from the first to the last tenth, and ``step`` the
    largest mean difference between consecutive outputs, except at both ends.
    """
    scores = {}
    for name, frame in long_clips(photo).items():
        means, steps, before = [], [], None
        for now in upscaler.frames(frame(t) for t in range(LONG)):
            means.append(now.mean(axis=(0, 1)))
            if before is not None:
                steps.append(float(np.abs(now.astype(np.int16) - before).mean()))
            before = now.astype(np.int16)
        inputs = np.stack([frame(t).mean(axis=(0, 1)) for t in range(LONG)])
        tenth, offsets = LONG // 10, np.stack(means) - inputs
        scores[name] = {
            "offset": float(np.abs(offsets).max()),
            "drift": float(np.abs(offsets[:tenth].mean(0) - offsets[-tenth:].mean(0)).max()),
            "step": max(steps[SETTLED:-SETTLED]),
        }
    return scores


# ------------------------------------------------------------------------------------------- speed


def speed(upscaler: Upscaler, teacher: Teacher, images: list[Image], *, repeats: int) -> Scores:
    """Measure the ratio of a model's frame rate to the teacher's, both under ONNX Runtime with its
    default number of threads, in alternating runs: by wall-clock time, and by processor time, which
    depends less on other work on the machine.
    """
    session = teacher_session(teacher, images[0])

    def run_teacher() -> None:
        for image in images:
            frame = image.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
            (output,) = session.run(None, {"frames": frame})
            np.rint(output.clip(0, 1) * 255).astype(np.uint8)

    def run_model() -> None:
        list(upscaler.frames(images))

    runs = {"teacher": run_teacher, "model": run_model}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            clock, processor = time.perf_counter(), time.process_time()
            run()
            took = (time.perf_counter() - clock, time.process_time() - processor)
            times[name] += [took] * (repeat > 0)
    by_clock, by_processor = (
        {name: statistics.median(t[i] for t in took) / len(images) for name, took in times.items()}
        for i in (0, 1)
    )
    return {
        "milliseconds": {name: round(1000 * seconds, 1) for name, seconds in by_clock.items()},
        "times": by_clock["teacher"] / by_clock["model"],
        "times_by_processor": by_processor["teacher"] / by_processor["model"],
    }


def teacher_session(teacher: Teacher, image: Image) -> Any:
    """Open the teacher in ONNX Runtime for images of one size."""
    import onnxruntime
    import torch

    content = io.BytesIO()
    torch.onnx.export(
        teacher,
        (torch.zeros(1, 3, *image.shape[:2]),),
        content,  # type: ignore[arg-type]
        input_names=["frames"],
        dynamo=False,
    )
    return onnxruntime.InferenceSession(content.getvalue(), providers=["CPUExecutionProvider"])


# -------------------------------------------------------------------------------------------- bars


def bars(scores: Scores, bicubic: Scores, teacher: Scores | None) -> list[Scores]:
    """Return every bar that has a figure, with its limit and whether it is met."""
    found: list[Scores] = []

    def bar(
        against: str, what: str, figure: float | None, *, most: float, least: bool = False
    ) -> None:
        if figure is None:
            return
        met = figure >= most if least else figure <= most
        limit = f"{'>=' if least else '<='} {most:g}"
        found.append(
            {"against": against, "what": what, "figure": figure, "limit": limit, "met": met}
        )

    def ratio(other: Scores, part: str, metric: str) -> float | None:
        if metric not in scores[part]:
            return None
        return float(scores[part][metric]["mean"] / other[part][metric]["mean"])

    def gain(part: str) -> float:
        return float(scores[part]["psnr_y"]["mean"] - bicubic[part]["psnr_y"]["mean"])

    for metric, most in (("lpips", 0.65), ("niqe", 0.78), ("brisque", 0.78), ("tof", 1.0)):
        bar("bicubic, moderate", metric, ratio(bicubic, "moderate", metric), most=most)
    bar("bicubic, moderate", "psnr_y", gain("moderate"), most=-0.3, least=True)
    if teacher is not None:
        for metric, most in (("lpips", 1.05), ("warping_error", 0.6)):
            bar("teacher", metric, ratio(teacher, "moderate", metric), most=most)
    if "speed" in scores:
        bar("teacher", "frames per second", scores["speed"]["times"], most=4.0, least=True)
    bar("bicubic, clean", "lpips", ratio(bicubic, "clean", "lpips"), most=0.85)
    bar("bicubic, clean", "psnr_y", gain("clean"), most=-0.3, least=True)
    for metric in {"niqe", "brisque"} & scores.get("real", {}).keys():
        ours, theirs = (s["real"][metric]["clips"] for s in (scores, bicubic))
        better = sum(ours[k] < theirs[k] for k in ours) / len(ours)
        bar("bicubic, real", f"{metric}, share of clips", better, most=0.8, least=True)
    if "real" in scores:
        worst = max(scores["real"]["colour"]["clips"].values())
        bar("input, real", "mean colour, levels", worst, most=1.0)
    for name, figures in scores.get("long", {}).items():
        bar("input, long", f"{name}: mean, levels", figures["offset"], most=3.0)
        bar("input, long", f"{name}: drift, levels", figures["drift"], most=1.0)
        if name != "noise":
            bar("input, long", f"{name}: step, levels", figures["step"], most=0.5)
    return found


def show(name: str, scores: Scores, found: list[Scores]) -> None:
    """Print the figures of a method and its bars."""
    for part in METRICS:
        if part in scores:
            means = ((k, v["mean"]) for k, v in scores[part].items() if "mean" in v)
            figures = (f"{metric} {mean:.4f}" for metric, mean in means)
            print(f"{name:>12} {part:>9}: {', '.join(figures)}")
    for one in found:
        print(
            f"{'' if one['met'] else 'MISSED':>12} {one['against']:>18}  {one['what']:<28}"
            f"{one['figure']:8.3f}  {one['limit']}"
        )


# ----------------------------------------------------------------------------------------- program


def reused(path: Path, make: Callable[[], Scores]) -> Scores:
    """Read scores from a file, or compute them and write the file."""
    if not path.exists():
        path.write_bytes(msgspec.json.format(msgspec.json.encode(make()), indent=1))
    return dict(json.loads(path.read_text(encoding="utf-8")))


PATH = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("models", nargs=-1, type=PATH)
@click.option("--truth", multiple=True, type=PATH, help="Videos, or folders of frames.")
@click.option("--photos", type=PATH, help="Photographs for the synthetic camera.")
@click.option("--photo-clips", default=4, show_default=True)
@click.option("--real", multiple=True, type=PATH, help="Clips of low quality without ground truth.")
@click.option("--frames", "count", default=16, show_default=True, help="Frames per clip.")
@click.option("--size", default="640x480", show_default=True, help="Largest output size.")
@click.option("--teacher", "weights", type=PATH, help="ncnn .bin file of realesr-general-x4v3.")
@click.option("--mixed-with", type=PATH, help="A second .bin file, such as the -wdn variant.")
@click.option("--mixture", default=0.7, show_default=True, help="Share of the first file.")
@click.option("--single-frames", is_flag=True, help="Upscale every frame separately.")
@click.option("--long/--no-long", default=True, help="Run clips of 300 frames.")
@click.option("--repeats", default=3, show_default=True, help="Speed runs; 0 for none.")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for clips, results and scores. Existing clips, and the scores of bicubic "
    "interpolation and the teacher, are reused.",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="JSON file for the result."
)
def main(
    models: tuple[Path, ...],
    truth: tuple[Path, ...],
    photos: Path | None,
    photo_clips: int,
    real: tuple[Path, ...],
    count: int,
    size: str,
    weights: Path | None,
    mixed_with: Path | None,
    mixture: float,
    single_frames: bool,
    long: bool,
    repeats: int,
    output: Path,
    json_path: Path | None,
) -> None:
    """Measure MODELS, bundles or checkpoints, against bicubic interpolation and a teacher."""
    clips = output / "clips"
    if not clips.exists():
        make_sets(
            clips,
            truth=truth,
            photos=photos,
            photo_clips=photo_clips,
            real=real,
            count=count,
            size=parse_size(size),
        )
    sets = [name for name in METRICS if (clips / name).is_dir()]
    baseline = reused(
        output / "bicubic.json", lambda: score(clips, bicubic, output / "bicubic", sets)
    )
    show("bicubic", baseline, [])
    teacher, of_teacher = None, None
    if weights is not None:
        teacher = load_teacher(weights, other=mixed_with, share=mixture)
        method = by_teacher(teacher)
        of_teacher = reused(
            output / "teacher.json", lambda: score(clips, method, output / "teacher", ["moderate"])
        )
        show("teacher", of_teacher, [])
    images = list(read_frames(min((clips / "moderate").iterdir())))
    result: Scores = {**environment(), "bicubic": baseline, "teacher": of_teacher, "models": {}}
    for model in models:
        name = f"{model.absolute().parent.name}_{model.stem}"
        bundle = output / f"{name}.plan"
        if model.suffix == bundle.suffix:
            bundle = model
        else:
            export_bundle(model, bundle)
        with Upscaler(bundle, device="cpu") as upscaler:
            method = by_model(upscaler, single=single_frames)
            scores = score(clips, method, output / name, sets)
            if teacher is not None and repeats:
                scores["speed"] = speed(upscaler, teacher, images, repeats=repeats)
        if long:
            with Upscaler(bundle, device="cpu", scene_cuts=False) as upscaler:
                scores["long"] = run_long(upscaler, images[0])
        found = bars(scores, baseline, of_teacher)
        show(name, scores, found)
        result["models"][name] = {"scores": scores, "bars": found}
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
