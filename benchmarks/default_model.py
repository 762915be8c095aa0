"""Whether a model is fit to be the default one: every bar, on footage that training never saw.

Three sets of clips. ``moderate``: inputs degraded from ground truth as in training, by fixed seeds;
``clean``: the same ground truth, reduced and nothing else; ``real``: clips as they are, without
ground truth. Each set is enlarged by bicubic interpolation, by the teacher (frame by frame, on
``moderate`` alone) and by every model, and what they make is kept as PNG files to be looked at.
A ``long`` set of 300 frames shows whether outputs drift, and one run under ONNX Runtime compares
the speed with the teacher's.

A bar is a figure and its limit. Figures of a set are means over its clips; ratios are ratios of
such means.
"""

from __future__ import annotations

import io
import itertools
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
from numpy.typing import NDArray

from rbvsr_deploy.export.to_bundle import export_bundle
from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.pixels import eight_bits
from rbvsr_deploy.training.data.sources import SourceConfig
from rbvsr_deploy.training.data.training_set import DataConfig, TrainingSet
from rbvsr_deploy.training.degradations.config import CLEAN, MODERATE
from rbvsr_deploy.training.evaluation.degraded_inputs import degrade_items
from rbvsr_deploy.training.evaluation.evaluate import RESULTS, evaluate
from rbvsr_deploy.training.evaluation.metrics.catalogue import open_metrics
from rbvsr_deploy.training.evaluation.metrics.resize import enlarge
from rbvsr_deploy.training.evaluation.sequences import Item, find_sequences
from rbvsr_deploy.training.teacher import Teacher, load_teacher
from rbvsr_deploy.upscaler import Upscaler
from rbvsr_deploy.video import open_source
from rbvsr_deploy.video.images import write_image

Image = NDArray[np.uint8]
Method = Callable[[list[Image]], Iterable[Image]]
Scores = dict[str, Any]

SEED = 2026
BORDER = 4
METRICS = {
    "moderate": ("lpips", "niqe", "brisque", "psnr_y", "tof", "warping_error"),
    "clean": ("lpips", "psnr_y"),
    "real": ("niqe", "brisque"),
}
LONG, SETTLED = 300, 16
"""Frames of a long clip, and how many at both ends may still change."""


# ------------------------------------------------------------------------------------------- clips


def write_frames(folder: Path, images: Iterable[Image]) -> Path:
    """A folder of numbered PNG files."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        write_image(folder / f"{number:08}.png", image=image)
    return folder


def read_frames(path: Path, *, count: int | None = None) -> Iterator[Image]:
    """The first frames of a video or folder."""
    with open_source(path) as source:
        for frame in itertools.islice(source, count):
            yield eight_bits(frame.image)


def middle(image: Image, size: tuple[int, int]) -> Image:
    """The middle of an image, at most as large as a width and height, sides multiples of 4."""
    sides = [
        min(s, most) // SCALE * SCALE for s, most in zip(image.shape[:2], size[::-1], strict=True)
    ]
    top, left = ((s - kept) // 2 for s, kept in zip(image.shape[:2], sides, strict=True))
    return np.ascontiguousarray(image[top : top + sides[0], left : left + sides[1]])


def cut(paths: Iterable[Path], folder: Path, *, count: int, size: tuple[int, int]) -> None:
    """The first frames of every clip at some paths, cut to a size."""
    for path in paths:
        for name, clip in find_sequences(path).items():
            write_frames(folder / name, (middle(i, size) for i in read_frames(clip, count=count)))


def film(photos: Path, folder: Path, *, clips: int, count: int, side: int) -> None:
    """Photographs under the synthetic camera of the training."""
    source = SourceConfig(kind="photos", path=str(photos), reduction=2)
    data = DataConfig(sources=(source,), length=count, crop=side // SCALE, stochastic=False)
    camera = TrainingSet(data, CLEAN, seed=SEED)
    for number in range(clips):
        write_frames(folder / f"photo_{number}", camera.sample(number).truth)


def make_sets(
    folder: Path,
    *,
    truth: tuple[Path, ...],
    photos: Path | None,
    photo_clips: int,
    real: tuple[Path, ...],
    count: int,
    size: tuple[int, int],
) -> None:
    """Truth and inputs of every set, in a folder that does not exist."""
    cut(truth, folder / "truth", count=count, size=size)
    if photos is not None:
        film(photos, folder / "truth", clips=photo_clips, count=count, side=min(size))
    items = [Item(path.name, None, truth=path) for path in sorted((folder / "truth").iterdir())]
    for name, degradation in (("moderate", MODERATE), ("clean", CLEAN)):
        (folder / name).mkdir()
        degrade_items(items, folder / name, degradation, seed=SEED)
    cut(real, folder / "real", count=count, size=(size[0] // SCALE, size[1] // SCALE))


# ----------------------------------------------------------------------------------------- methods


def bicubic(images: list[Image]) -> Iterator[Image]:
    """Every frame enlarged for itself."""
    return (enlarge(image, SCALE) for image in images)


def taught(teacher: Teacher) -> Method:
    """The teacher, frame by frame."""
    return lambda images: (teacher.upscale(image[None])[0] for image in images)


def upscaled(upscaler: Upscaler, *, single: bool) -> Method:
    """A model on a clip, or on every frame for itself."""

    def method(images: list[Image]) -> Iterator[Image]:
        for part in ([i] for i in images) if single else (images,):
            yield from map(eight_bits, upscaler.frames(part))

    return method


def score(folder: Path, method: Method, results: Path, sets: Iterable[str]) -> Scores:
    """Scores of what a method makes of sets, each a mean over its clips and of every clip."""
    scores: Scores = {}
    shutil.rmtree(results, ignore_errors=True)  # of an earlier run
    for name in sets:
        items = []
        for inputs in sorted((folder / name).iterdir()):
            images = list(read_frames(inputs))
            made = write_frames(results / name / inputs.name, method(images))
            truth = None if name == "real" else folder / "truth" / inputs.name
            items.append(Item(inputs.name, made, truth=truth, inputs=inputs))
        scorers, missing = open_metrics(METRICS[name])
        if missing:
            raise click.ClickException("; ".join(f"{k}: {v}" for k, v in missing.items()))
        found = evaluate(items, scorers, border=BORDER, baseline=False)
        scores[name] = {
            metric: {
                "mean": found.mean(RESULTS, metric),
                "clips": {k: v.mean(metric) for k, v in found.scores[RESULTS].items()},
            }
            for metric in METRICS[name]
        }
        if name == "real":
            scores[name]["colour"] = {"clips": {i.name: colour_shift(i) for i in items}}
    return scores


def colour_shift(item: Item) -> float:
    """Largest difference of the mean over all frames, of the three channels, in levels."""
    assert item.results is not None
    assert item.inputs is not None
    means = [
        np.mean([image.mean(axis=(0, 1)) for image in read_frames(path)], axis=0)
        for path in (item.results, item.inputs)
    ]
    return float(np.abs(means[0] - means[1]).max())


# -------------------------------------------------------------------------------------------- long


def long_clips(photo: Image) -> dict[str, Callable[[int], Image]]:
    """The frame of each clip at a time, (48, 64, 3)."""
    still = cv2.resize(photo, (64, 48), interpolation=cv2.INTER_AREA)
    return {
        "noise": lambda t: np.random.default_rng(t).integers(0, 256, (48, 64, 3), np.uint8),
        "black": lambda t: np.zeros((48, 64, 3), np.uint8),
        "white": lambda t: np.full((48, 64, 3), 255, np.uint8),
        "flat": lambda t: np.full((48, 64, 3), (180, 90, 60), np.uint8),
        "still": lambda t: np.asarray(still, np.uint8),
    }


def run_long(upscaler: Upscaler, photo: Image) -> Scores:
    """Of every long clip, in levels: how far the mean of an output is from that of its input
    (``offset``), how much it changes from the first to the last tenth (``drift``), and how much an
    output differs from the one before it, on average over its pixels, at most (``step``), both ends
    left out.
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
        tenth, of_frame = LONG // 10, np.stack(means)
        scores[name] = {
            "offset": float(np.abs(of_frame - inputs).max()),
            "drift": float(np.abs(of_frame[:tenth].mean(0) - of_frame[-tenth:].mean(0)).max()),
            "step": max(steps[SETTLED:-SETTLED]),
        }
    return scores


# ------------------------------------------------------------------------------------------- speed


def speed(upscaler: Upscaler, teacher: Teacher, images: list[Image], *, repeats: int) -> Scores:
    """How many times more frames per second a model makes than the teacher, both under ONNX Runtime
    with its default number of threads, in turns: by the clock, and by processor time, which other
    work on the machine disturbs less.
    """
    session = teacher_session(teacher, images[0])

    def by_teacher() -> None:
        for image in images:
            frame = image.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
            (output,) = session.run(None, {"frames": frame})
            np.rint(output.clip(0, 1) * 255).astype(np.uint8)

    def by_model() -> None:
        list(upscaler.frames(images))

    runs = {"teacher": by_teacher, "model": by_model}
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
    """The teacher under ONNX Runtime, for images of one size."""
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
    """Every bar with its figure, its limit and whether it is met; without a teacher, only those
    against bicubic interpolation.
    """
    found: list[Scores] = []

    def bar(against: str, what: str, figure: float, *, most: float, least: bool = False) -> None:
        met = figure >= most if least else figure <= most
        limit = f"{'>=' if least else '<='} {most:g}"
        found.append(
            {"against": against, "what": what, "figure": figure, "limit": limit, "met": met}
        )

    def ratio(other: Scores, part: str, metric: str) -> float:
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
    for metric in ("niqe", "brisque") if "real" in scores else ():
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
    """Print the figures of a method, and its bars."""
    for part in METRICS:
        if part in scores:
            figures = (f"{metric} {scores[part][metric]['mean']:.4f}" for metric in METRICS[part])
            print(f"{name:>12} {part:>9}: {', '.join(figures)}")
    for one in found:
        print(
            f"{'' if one['met'] else 'MISSED':>12} {one['against']:>18}  {one['what']:<28}"
            f"{one['figure']:8.3f}  {one['limit']}"
        )


# ----------------------------------------------------------------------------------------- program


def reused(path: Path, make: Callable[[], Scores]) -> Scores:
    """Scores from a file, or made and written to it."""
    if not path.exists():
        path.write_bytes(msgspec.json.format(msgspec.json.encode(make()), indent=1))
    return dict(json.loads(path.read_text(encoding="utf-8")))


PATH = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("models", nargs=-1, type=PATH)
@click.option("--truth", multiple=True, type=PATH, help="Videos, or folders of frames.")
@click.option("--photos", type=PATH, help="Photographs, filmed by the synthetic camera.")
@click.option("--photo-clips", default=4, show_default=True)
@click.option("--real", multiple=True, type=PATH, help="Clips of low quality, without truth.")
@click.option("--frames", "count", default=16, show_default=True, help="Of every clip.")
@click.option("--size", default="640x480", show_default=True, help="Of outputs, at most.")
@click.option("--teacher", "weights", type=PATH, help="ncnn .bin file of realesr-general-x4v3.")
@click.option("--mixed-with", type=PATH, help="A second one, such as its twin -wdn.")
@click.option("--mixture", default=0.7, show_default=True, help="Share of the first.")
@click.option("--single-frames", is_flag=True, help="Models get every frame for itself.")
@click.option("--long/--no-long", default=True, help="Run clips of 300 frames.")
@click.option("--repeats", default=3, show_default=True, help="Of the speed; 0 leaves it out.")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for clips, results and scores. Its clips, and what bicubic interpolation and the "
    "teacher make of them, are used again.",
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
        method = taught(teacher)
        of_teacher = reused(
            output / "teacher.json", lambda: score(clips, method, output / "teacher", ["moderate"])
        )
        show("teacher", of_teacher, [])
    first = next(iter(sorted((clips / "moderate").iterdir())))
    images = list(read_frames(first))
    for model in models:
        name = f"{model.absolute().parent.name}_{model.stem}"
        bundle = output / f"{name}.plan"
        if model.suffix == bundle.suffix:
            bundle = model
        else:
            export_bundle(model, bundle)
        with Upscaler(bundle, device="cpu") as upscaler:
            method = upscaled(upscaler, single=single_frames)
            scores = score(clips, method, output / name, sets)
            if teacher is not None and repeats:
                scores["speed"] = speed(upscaler, teacher, images, repeats=repeats)
        if long:
            with Upscaler(bundle, device="cpu", scene_cuts=False) as upscaler:
                scores["long"] = run_long(upscaler, images[0])
        found = bars(scores, baseline, of_teacher)
        show(name, scores, found)
        result = {**environment(), "model": str(model), "scores": scores, "bars": found}
        (output / f"{name}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
