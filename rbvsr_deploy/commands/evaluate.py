"""``rbvsr-eval``: scores of videos, with and without truth."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rbvsr_deploy.commands.edge import JSON, PATH, VERBOSE, VERSION, edge

if TYPE_CHECKING:
    from rbvsr_deploy.training.evaluate import Evaluation
    from rbvsr_deploy.training.metrics.base import Scorer

__all__ = ["evaluate"]


@dataclass(frozen=True)
class _Preset:
    """A protocol of published figures."""

    metrics: tuple[str, ...]
    frames: tuple[int, ...]
    border: int


_PRESETS = {"videolq": _Preset(("niqe", "brisque", "nrqm", "pi"), (0, 50, 99), 4)}
_BORDER = 4

_COLUMNS = 4
"""Metrics side by side in a table, so that it fits a terminal of 80 columns."""


def _metrics(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    """Names of metrics, each once."""
    from rbvsr_deploy.training.metrics.catalogue import METRICS

    names = None if value is None else [name.strip() for name in value.split(",")]
    for name in names or ():
        if name not in METRICS:
            raise click.BadParameter(f"{name!r} is no metric: choose among {', '.join(METRICS)}")
    return None if names is None else list(dict.fromkeys(names))


def _frames(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    """Numbers of frames; none are all."""
    if value is None or value == "all":
        return None if value is None else []
    numbers = value.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise click.BadParameter(f"{value!r}: give numbers such as 0,50,99 (0 is the first) or all")
    return sorted({int(number) for number in numbers})


@click.command(context_settings={"show_default": True})
@click.argument("results", type=PATH, required=False)
@click.option("--truth", type=PATH, help="What the results should be, in the same layout.")
@click.option(
    "--input",
    "inputs",
    type=PATH,
    help="The low-quality inputs, in the same layout: enlarged by bicubic interpolation they are "
    "the baseline.",
)
@click.option(
    "--engine",
    "engine_path",
    type=PATH,
    help="Bundle or checkpoint that makes the results of --input; RESULTS is left out.",
)
@click.option("--device", default="auto", help="Of the engine, as in rbvsr-run.")
@click.option(
    "--metrics",
    metavar="NAME,...",
    callback=_metrics,
    help="What to compute, such as psnr_y,niqe; the worst and the best frame are chosen by the "
    "first.  [default: whatever fits, see docs/evaluation.md]",
)
@click.option(
    "--preset",
    type=click.Choice(sorted(_PRESETS)),
    help="Metrics, frames and border of published figures; what is given of these three goes "
    "before it.",
)
@click.option(
    "--frames", metavar="N,...|all", callback=_frames, help="Which frames.  [default: all]"
)
@click.option(
    "--border",
    type=click.IntRange(min=0),
    help=f"Pixels left out at each side.  [default: {_BORDER}]",
)
@click.option(
    "--baseline/--no-baseline", default=True, help="Score the enlarged inputs too, where given."
)
@click.option(
    "--niqe-parameters",
    type=PATH,
    help="modelparameters.mat or niqe_pris_params.npz.  [default: of an installed mmagic or "
    "basicsr]",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="Folder for scores.json, plots over the frames, and the worst and the best frame.",
)
@click.option("--overwrite", is_flag=True, help="The output folder may hold something already.")
@JSON
@VERBOSE
@VERSION
def evaluate(
    results: Path | None,
    truth: Path | None,
    inputs: Path | None,
    engine_path: Path | None,
    device: str,
    metrics: list[str] | None,
    preset: str | None,
    frames: list[int] | None,
    border: int | None,
    baseline: bool,
    niqe_parameters: Path | None,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Score upscaled videos, with the truth and without.

    RESULTS is a video, a folder of frames, or a folder of several of those; with --truth and
    --input, sequences of the same names belong together. The score of a sequence is the mean over
    its frames, the score of a set the mean over its sequences.
    """
    if (results is None) == (engine_path is None):
        raise click.UsageError("give either RESULTS or --engine, which makes them of --input")
    if engine_path is not None and inputs is None:
        raise click.UsageError("--engine makes the results of --input: give it too")
    chosen = _PRESETS.get(preset or "")
    if chosen is not None:
        metrics = metrics or list(chosen.metrics)
        frames = list(chosen.frames) if frames is None else frames
        border = chosen.border if border is None else border
    border = _BORDER if border is None else border
    numbers = frames or None
    names = _wanted(metrics, truth=truth is not None, every_frame=numbers is None)
    with edge(verbose=verbose), ExitStack() as stack:
        from rbvsr_deploy.batch import output_folder
        from rbvsr_deploy.progress import FramesDisplay
        from rbvsr_deploy.training.evaluate import evaluate as evaluate_items
        from rbvsr_deploy.training.score_report import (
            check_report_folder,
            scores_as_json,
            write_report,
        )
        from rbvsr_deploy.training.sequences import check_items, pair_up

        items = pair_up(results, truth=truth, inputs=inputs)
        scorers, missing = _open_metrics(names, niqe_parameters)
        least, why = _least_size(scorers)
        check_items(items, border=border, least=least, why=why)
        if output is not None:
            check_report_folder(output, overwrite=overwrite)
            stack.enter_context(output_folder(output))
        upscaler = None
        if engine_path is not None:
            from rbvsr_deploy.engines import open_engine
            from rbvsr_deploy.upscaler import Upscaler
            from rbvsr_deploy.video import frame_size

            first = items[0].inputs
            assert first is not None
            engine = stack.enter_context(
                open_engine(
                    engine_path,
                    device=device,
                    size=lambda: frame_size(first),
                    report=lambda line: click.echo(line, err=True),
                )
            )
            click.echo(f"Engine: {engine.describe()}", err=True)
            upscaler = stack.enter_context(Upscaler(engine))
        with FramesDisplay(len(items)) as progress:
            evaluation = evaluate_items(
                items,
                scorers,
                border=border,
                frames=numbers,
                baseline=baseline,
                upscaler=upscaler,
                progress=progress,
            )
        scores = scores_as_json(
            evaluation,
            settings={
                "preset": preset,
                "frames": numbers or "all",
                "border": border,
                "truth": truth is not None,
            },
            missing=missing,
        )
        if output is not None:
            write_report(output, evaluation, scores)
    if as_json:
        click.echo(json.dumps(scores, indent=1))
    else:
        _show(evaluation, missing)


def _wanted(metrics: list[str] | None, *, truth: bool, every_frame: bool) -> list[str]:
    """Names of the metrics to compute; raises click.UsageError for what does not go together."""
    from rbvsr_deploy.training.metrics.catalogue import METRICS, default_metrics

    for name in metrics or ():
        if METRICS[name].needs_truth and not truth:
            raise click.UsageError(f"{name} needs the truth: give --truth, or leave {name} out")
        if METRICS[name].needs_every_frame and not every_frame:
            raise click.UsageError(f"{name} looks at successive frames: give --frames all")
    return metrics or default_metrics(truth=truth, every_frame=every_frame)


def _open_metrics(
    names: list[str], niqe_parameters: Path | None
) -> tuple[dict[str, Scorer], dict[str, str]]:
    """The metrics that can be computed, and why the others cannot."""
    from rbvsr_deploy.errors import RbvsrError
    from rbvsr_deploy.training.metrics.base import MetricUnavailableError
    from rbvsr_deploy.training.metrics.catalogue import open_metric

    scorers, missing = {}, {}
    for name in names:
        try:
            scorers[name] = open_metric(name, niqe_parameters=niqe_parameters)
        except MetricUnavailableError as error:
            missing[name] = str(error)
    if not scorers:
        name, reason = next(iter(missing.items()))
        raise RbvsrError(f"none of the metrics can be computed; {name}: {reason}")
    return scorers, missing


def _least_size(scorers: dict[str, Scorer]) -> tuple[tuple[int, int], str]:
    """The size that the most demanding metric needs, and its name."""
    from rbvsr_deploy.training.metrics.catalogue import METRICS

    name = max(scorers, key=lambda name: METRICS[name].least_size)
    return METRICS[name].least_size, name


def _show(evaluation: Evaluation, missing: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from rbvsr_deploy.training.evaluate import RESULTS
    from rbvsr_deploy.training.metrics.catalogue import METRICS

    console = Console()
    sequences = evaluation.scores[RESULTS]
    count = sum(len(scores.frames) for scores in sequences.values())
    table = Table(
        title=f"{len(sequences)} sequence{'s' * (len(sequences) != 1)}, {count} "
        f"frame{'s' * (count != 1)}; means over sequences of means over frames"
    )
    table.add_column("metric")
    table.add_column("better")
    for method in evaluation.scores:
        table.add_column(method, justify="right")
    if missing:
        table.add_column("not computed", overflow="fold")
    for name in evaluation.metrics:
        better = "higher" if METRICS[name].higher_is_better else "lower"
        means = (evaluation.mean(method, name) for method in evaluation.scores)
        table.add_row(METRICS[name].title, better, *map(_number, means))
    for name, reason in missing.items():
        better = "higher" if METRICS[name].higher_is_better else "lower"
        table.add_row(METRICS[name].title, better, *("-" for _ in evaluation.scores), reason)
    console.print(table)
    if len(sequences) == 1:
        return
    for start in range(0, len(evaluation.metrics), _COLUMNS):
        names = evaluation.metrics[start : start + _COLUMNS]
        table = Table(title="results by sequence")
        table.add_column("sequence", overflow="fold")
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        for sequence, scores in sequences.items():
            table.add_row(sequence, *(_number(scores.mean(name)) for name in names))
        console.print(table)


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"
