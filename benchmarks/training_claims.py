"""Measures the paper's claims about training, on a network and a run of any size.

``cleaning`` trains twice, with and without the cleaning loss. ``length`` trains with a fixed number
of frames per iteration, split into many short clips or a few long ones. ``refinement`` upscales
real footage with fixed numbers of cleaning passes and with dynamic refinement. Trainings of one
call differ in nothing else: they share recipe, seeds and iterations, each in its own folder, where
the same command resumes after an interruption. They are measured on the same held-out clips, whose
frames all differ.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import msgspec
import numpy as np
import torch
from common import environment, parse_numbers
from numpy.typing import NDArray
from torch import Tensor

from rbvsr_deploy.checkpoint import load_checkpoint
from rbvsr_deploy.commands._common import command_errors
from rbvsr_deploy.commands._progress import TrainingDisplay
from rbvsr_deploy.engines import Engine, open_engine
from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.model import PUBLISHED, RealBasicVSR
from rbvsr_deploy.pixels import Image, eight_bits
from rbvsr_deploy.runtime.stream import SceneRecord, Settings, Stream
from rbvsr_deploy.training.clips import to_frames
from rbvsr_deploy.training.config import TrainingConfig, load_config
from rbvsr_deploy.training.data.sources import find_sources
from rbvsr_deploy.training.data.training_set import Sample, SourceConfig, TrainingSet
from rbvsr_deploy.training.evaluation.metrics.base import CroppedImage, ScoredFrame, Scorer, luma
from rbvsr_deploy.training.evaluation.metrics.catalogue import METRICS, open_metrics
from rbvsr_deploy.training.evaluation.metrics.fidelity import psnr
from rbvsr_deploy.training.evaluation.metrics.resize import enlarge
from rbvsr_deploy.training.evaluation.sequences import find_sequences
from rbvsr_deploy.training.losses import cleaning_target
from rbvsr_deploy.training.run import train
from rbvsr_deploy.video import open_source

BORDER = 4
HELD_OUT_SEED, HELD_OUT_STREAM = 0, 2
PUBLISHED_ITERATIONS = 300_000

TITLES = {
    "cleaned_psnr_y": "PSNR (Y) of cleaned frames, dB",
    "residue": "change by cleaning, levels of 255",
    "cleanings": "cleanings",
    **{name: metric.title for name, metric in METRICS.items()},
}

Images = NDArray[np.uint8]
Scores = dict[str, "float | None"]
Rows = dict[str, dict[str, Scores]]
"""Scores by variant, then by clip or sequence, then by measure."""


# --------------------------------------------------------------------------------------- trainings


def sources_of(folders: Iterable[Path]) -> list[SourceConfig]:
    """List the training sources in some folders."""
    return [source for folder in folders for source in find_sources(folder)]


def train_all(
    configs: dict[str, dict[int, TrainingConfig]], runs: Path, device: str
) -> dict[str, dict[int, Path]]:
    """Train or resume each, in a folder of its name and seed; return the averaged generators."""
    models: dict[str, dict[int, Path]] = {}
    for name, of_seeds in configs.items():
        models[name] = {}
        for seed, config in of_seeds.items():
            output = runs / f"{name}-seed{seed}"
            print(output, flush=True)
            with TrainingDisplay() as display:
                models[name][seed] = train(config, output=output, device=device, on_step=display)
    return models


def label_of(recipe: str, config: TrainingConfig, device: str) -> str:
    """Describe what was trained, so that its figures are not taken for more than they are."""
    parameters = sum(p.numel() for p in RealBasicVSR(config.network).parameters())
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    text = f"{Path(recipe).stem}, {parameters:,} parameters, {device.upper()}"
    text += f", {config.iterations:,} iterations"
    small, short = config.network != PUBLISHED, config.iterations < PUBLISHED_ITERATIONS
    what = ["a small model"] * small + ["a short run"] * short
    return f"{text}: {' and '.join(what)}" if what else text


def held_out_clips(
    config: TrainingConfig, sources: Sequence[SourceConfig], *, count: int, length: int, crop: int
) -> list[Sample]:
    """Make clips degraded as in training, but with a fixed degradation per clip."""
    data = msgspec.structs.replace(
        config.data, sources=tuple(sources), length=length, crop=crop, stochastic=False
    )
    clips = TrainingSet(data, config.degradation, seed=HELD_OUT_SEED)
    clips.check()
    return [clips.sample(index, stream=HELD_OUT_STREAM) for index in range(count)]


@torch.inference_mode()
def measure(
    models: dict[str, dict[int, Path]], clips: Sequence[Sample], scorers: dict[str, Scorer]
) -> Rows:
    """Score every model of every seed on every clip, with one cleaning pass, and bicubic."""
    rows: Rows = {"bicubic": {}}
    for number, clip in enumerate(clips):
        large = np.stack([enlarge(image, SCALE) for image in clip.degraded])
        rows["bicubic"][f"clip {number}"] = clip_scores(clip, clip.degraded, large, scorers)
    for name, of_seeds in models.items():
        rows[name] = {}
        for seed, path in of_seeds.items():
            network = load_checkpoint(path).model.eval()
            for number, clip in enumerate(clips):
                degraded = to_frames(torch.from_numpy(clip.degraded), torch.device("cpu"))[None]
                cleaned = network.refine(degraded, cleanings=1)
                output = network.propagate(cleaned)
                scores = clip_scores(clip, to_images(cleaned[0]), to_images(output[0]), scorers)
                residue = 255.0 * float((cleaned - degraded).abs().mean())
                rows[name][f"seed {seed}, clip {number}"] = {**scores, "residue": residue}
    return rows


def clip_scores(
    clip: Sample, cleaned: Images, outputs: Images, scorers: dict[str, Scorer]
) -> Scores:
    """Average scores over the frames: of the outputs against the target of training, which is the
    sharpened ground truth, and of the cleaned frames against the target reduced to their size.
    """
    target = to_frames(torch.from_numpy(clip.sharpened), torch.device("cpu"))[None]
    reduced = cleaning_target(target)
    inner = slice(BORDER // SCALE, -(BORDER // SCALE))
    pairs = zip(cleaned[:, inner, inner], to_images(reduced[0])[:, inner, inner], strict=True)
    shown = [
        ScoredFrame(CroppedImage(output, border=BORDER), CroppedImage(truth, border=BORDER))
        for output, truth in zip(outputs, clip.sharpened, strict=True)
    ]
    scores = {name: mean(scorer(frame) for frame in shown) for name, scorer in scorers.items()}
    return {**scores, "cleaned_psnr_y": fmean(psnr(luma(one), luma(other)) for one, other in pairs)}


def to_images(frames: Tensor) -> Images:
    """Convert (T, 3, H, W) in [0, 1] to (T, H, W, 3) uint8."""
    rounded = frames.clamp(0.0, 1.0).mul(255.0).round().byte()
    return np.ascontiguousarray(rounded.permute(0, 2, 3, 1).numpy())


def mean(values: Iterable[float | None]) -> float | None:
    """Average the values that are defined."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


# -------------------------------------------------------------------------------------- refinement


def upscaled(stream: Stream, images: Iterable[Image]) -> Iterator[Image]:
    """Yield the outputs of a stream of images."""
    for image in images:
        yield from (output.image for output in stream.push(image))
    yield from (output.image for output in stream.flush())


def refine_sequence(
    engine: Engine,
    path: Path,
    settings: Settings,
    scorers: dict[str, Scorer],
    *,
    frames: int,
    every: int,
) -> tuple[Scores, SceneRecord]:
    """Score the first frames of a sequence as one scene; also return its cleaning decision."""
    records: list[SceneRecord] = []
    found: dict[str, list[float | None]] = {name: [] for name in scorers}
    with open_source(path) as source:
        images = (eight_bits(frame.image) for frame in itertools.islice(source, frames))
        first = next(images)
        with Stream(engine, settings, size=first.shape[:2], on_scene=records.append) as stream:
            outputs = upscaled(stream, itertools.chain([first], images))
            for number, output in enumerate(outputs):
                if number % every == 0:
                    shown = ScoredFrame(CroppedImage(eight_bits(output), border=BORDER))
                    for name, scorer in scorers.items():
                        found[name].append(scorer(shown))
    (record,) = records
    scores = {name: mean(values) for name, values in found.items()}
    return {**scores, "cleanings": float(record.cleanings)}, record


# ------------------------------------------------------------------------------------------ report


def report(
    rows: Rows,
    *,
    label: str,
    details: dict[str, Any],
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Print a table; write JSON and a plot."""
    measures = list(dict.fromkeys(m for of in rows.values() for s in of.values() for m in s))
    means = {
        name: {m: mean(scores.get(m) for scores in items.values()) for m in measures}
        for name, items in rows.items()
    }
    print(f"\n{label}\n\n| | {' | '.join(TITLES[m] for m in measures)} |")
    print("|" + "---|" * (len(measures) + 1))
    for name, values in means.items():
        shown = ("" if value is None else f"{value:.3f}" for value in values.values())
        print(f"| {name} | {' | '.join(shown)} |")
    if json_path is not None:
        result = {**environment(), "label": label, **details, "means": means, "rows": rows}
        json_path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if plot_path is not None:
        plot(rows, means, measures, label, plot_path)


def plot(
    rows: Rows, means: dict[str, Scores], measures: Sequence[str], label: str, path: Path
) -> None:
    """Draw a panel per measure: clips or sequences as dots, their means as lines. Clips differ more
    than variants, so each is drawn as its difference from the first variant.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    first = next(iter(rows))
    size = (3.2 * len(measures) + 0.6, 4.2)
    figure, panels = plt.subplots(
        1, len(measures), figsize=size, layout="constrained", squeeze=False
    )
    for axes, measure_name in zip(panels[0], measures, strict=True):
        for place, items in enumerate(rows.values()):
            known = differences(items, rows[first], measure_name)
            axes.plot([place] * len(known), known, "o", color="#8aa1b1", markersize=4, alpha=0.7)
            if known:
                axes.hlines(fmean(known), place - 0.3, place + 0.3, color="#c8553d", linewidth=3)
        axes.set_xticks(range(len(rows)), rows, rotation=30, ha="right", fontsize=8)
        axes.set_xlim(-0.6, len(rows) - 0.4)
        title = TITLES[measure_name]
        if means[first][measure_name] is not None:
            title += f",\nmore than {first}"
            axes.axhline(0.0, color="#444444", linewidth=0.8)
        axes.set_title(title, fontsize=9)
        axes.grid(axis="y", alpha=0.3)
    figure.suptitle(f"{label}\nlines: means; dots: clips", fontsize=9)
    figure.savefig(path, dpi=120)


def differences(items: dict[str, Scores], first: dict[str, Scores], measure: str) -> list[float]:
    """Subtract the first variant's scores of the same clips, whatever the seed; return the scores
    themselves where the first variant has none.
    """
    found = []
    for name, scores in items.items():
        value, base = scores.get(measure), first[name.split(", ")[-1]].get(measure)
        if value is not None:
            found.append(value - (base or 0.0))
    return found


# ---------------------------------------------------------------------------------------- commands

Command = Callable[..., None]

PLACE = click.Path(path_type=Path)
EXISTING = click.Path(path_type=Path, exists=True)


def with_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


RESULT = with_options(
    click.option("--json", "json_path", type=PLACE, help="JSON file to write."),
    click.option("--plot", "plot_path", type=PLACE, help="PNG file to write."),
    click.option("--device", default="auto", show_default=True),
)
NIQE = click.option("--niqe-parameters", type=EXISTING, help="As for rbvsr-eval.")
TRAINING = with_options(
    click.argument("data", nargs=-1, required=True, type=EXISTING),
    click.option(
        "--held-out",
        multiple=True,
        required=True,
        type=EXISTING,
        help="Clips to measure on, not in DATA.",
    ),
    click.option("--runs", required=True, type=PLACE, help="Folder to hold the run folders."),
    click.option("--recipe", default="tiny-stage1", show_default=True),
    click.option("--iterations", default=2000, show_default=True),
    click.option("--seeds", default="0", show_default=True, help="Train once per seed."),
    click.option(
        "--set", "changes", multiple=True, metavar="KEY=VALUE", help="As for rbvsr-train."
    ),
    click.option("--clips", default=16, show_default=True, help="Number of held-out clips."),
    click.option("--clip-length", default=12, show_default=True, help="Their length in frames."),
    click.option(
        "--clip-crop", default=64, show_default=True, help="Side of their degraded frames."
    ),
)


@click.group()
def main() -> None:
    """Measure the paper's claims about training."""


@main.command()
@TRAINING
@NIQE
@RESULT
def cleaning(niqe_parameters: Path | None, **options: Any) -> None:
    """Train on DATA with the cleaning loss and without it."""
    variants = {
        "cleaning_loss": ["losses.cleaning_weight=1.0"],
        "no_cleaning_loss": ["losses.cleaning_weight=0.0"],
    }
    compare(variants, ("psnr_y", "niqe"), niqe_parameters=niqe_parameters, **options)


@main.command()
@TRAINING
@click.option("--shapes", default="12x2,6x4,3x8,2x12", show_default=True, help="Batch x length.")
@RESULT
def length(shapes: str, **options: Any) -> None:
    """Train on DATA with several clip lengths and the same number of frames per iteration.

    The stochastic scheme is off, as it would load a single frame for a clip of two.
    """
    try:
        pairs = [tuple(int(n) for n in shape.split("x")) for shape in shapes.split(",")]
        products = {batch * frames for batch, frames in pairs}
    except ValueError:
        raise click.BadParameter(
            f"{shapes!r} is not a list of batch x length: use for example 12x2,6x4"
        ) from None
    if len(products) > 1:
        raise click.BadParameter(f"{shapes!r}: batch times length must be equal for all")
    variants = {
        f"{batch}x{frames}": [f"batch={batch}", f"data.length={frames}", "data.stochastic=false"]
        for batch, frames in pairs
    }
    compare(variants, ("psnr_y",), niqe_parameters=None, **options)


def compare(
    variants: dict[str, list[str]],
    metrics: tuple[str, ...],
    *,
    niqe_parameters: Path | None,
    data: tuple[Path, ...],
    held_out: tuple[Path, ...],
    runs: Path,
    recipe: str,
    iterations: int,
    seeds: str,
    changes: tuple[str, ...],
    clips: int,
    clip_length: int,
    clip_crop: int,
    device: str,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Train all variants of a recipe and compare them."""
    with command_errors(verbose=False):
        common = [f"iterations={iterations}", *changes]
        sources = sources_of(data)
        configs = {
            name: {
                seed: load_config(recipe, changes=[*common, *own, f"seed={seed}"], sources=sources)
                for seed in parse_numbers(seeds)
            }
            for name, own in variants.items()
        }
        config = next(iter(next(iter(configs.values())).values()))
        samples = held_out_clips(
            config, sources_of(held_out), count=clips, length=clip_length, crop=clip_crop
        )
        side = SCALE * clip_crop - 2 * BORDER
        scorers, missing = open_metrics(metrics, size=(side, side), niqe_parameters=niqe_parameters)
        for name, reason in missing.items():
            print(f"without {name}: {reason}")
        rows = measure(train_all(configs, runs, device), samples, scorers)
    details = {
        "recipe": recipe,
        "iterations": config.iterations,
        "seeds": parse_numbers(seeds),
        "changes": list(changes),
        "variants": variants,
        "data": [path.name for path in data],
        "held_out": {
            "from": [path.name for path in held_out],
            "clips": clips,
            "length": clip_length,
            "crop": clip_crop,
        },
        "not_computed": missing,
    }
    label = label_of(recipe, config, device)
    report(rows, label=label, details=details, json_path=json_path, plot_path=plot_path)


@main.command()
@click.argument("model", type=EXISTING)
@click.argument("sequences", type=EXISTING)
@click.option(
    "--fixed", default="0,1,3", show_default=True, help="Fixed numbers of cleaning passes."
)
@click.option(
    "--thresholds", default="1,2,5", show_default=True, help="Thresholds of dynamic refinement."
)
@click.option(
    "--frames", default=100, show_default=True, help="Number of first frames of each sequence."
)
@click.option("--every", default=10, show_default=True, help="Score every N-th frame.")
@NIQE
@RESULT
def refinement(
    model: Path,
    sequences: Path,
    fixed: str,
    thresholds: str,
    frames: int,
    every: int,
    niqe_parameters: Path | None,
    device: str,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Clean real footage a fixed number of times, and as often as dynamic refinement decides.

    MODEL is a bundle or a checkpoint, SEQUENCES a folder of videos or image folders, each a single
    scene.
    """
    ways = {f"{n} fixed": Settings(cleanings=n) for n in parse_numbers(fixed)}
    try:
        levels = [float(level) for level in thresholds.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{thresholds!r} is not a list of numbers: use for example 1,2,5"
        ) from None
    ways |= {f"threshold {level:g}": Settings(refine_threshold=level) for level in levels}
    rows: Rows = {}
    residues: dict[str, dict[str, list[float]]] = {}
    with command_errors(verbose=False):
        scorers, missing = open_metrics(("niqe", "brisque"), niqe_parameters=niqe_parameters)
        for name, reason in missing.items():
            print(f"without {name}: {reason}")
        if not scorers:
            raise RbvsrError(f"neither NIQE nor BRISQUE can be computed: {missing['niqe']}")
        found = find_sequences(sequences)
        with open_engine(model, device=device) as engine:
            described = engine.describe()
            for way, settings in ways.items():
                rows[way], residues[way] = {}, {}
                for name, path in found.items():
                    scores, record = refine_sequence(
                        engine, path, settings, scorers, frames=frames, every=every
                    )
                    rows[way][name], residues[way][name] = scores, record.residues
                    print(f"{way}, {name}: {scores}", flush=True)
    details = {
        "engine": str(described),
        "frames": frames,
        "every": every,
        "residues": residues,
        "not_computed": missing,
    }
    label = f"{model.name} on {described.device}, real footage, sequences: {len(found)}"
    report(rows, label=label, details=details, json_path=json_path, plot_path=plot_path)


if __name__ == "__main__":
    main()
