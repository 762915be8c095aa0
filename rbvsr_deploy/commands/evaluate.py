"""``rbvsr-eval``: scores videos, with or without ground truth."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from rbvsr_deploy.commands._common import (
    JSON,
    PATH,
    VERBOSE,
    VERSION,
    Count,
    command_errors,
    report,
    require,
    show,
    show_json,
)
from rbvsr_deploy.commands._run_options import (
    DEVICE,
    NETWORK,
    SCENE_CUTS,
    TRUST_ENGINES,
    SectionedCommand,
)

if TYPE_CHECKING:
    from rich.table import Table

    from rbvsr_deploy.training.evaluation.evaluate import Evaluation
    from rbvsr_deploy.upscaler import Upscaler

__all__ = ["evaluate"]


@dataclass(frozen=True)
class _Preset:
    """The protocol of published figures."""

    metrics: tuple[str, ...]
    frames: tuple[int, ...]
    border: int


_PRESETS = {"videolq": _Preset(("niqe", "brisque", "nrqm", "pi"), (0, 50, 99), 4)}
_BORDER = 4

_COLUMNS = 4
"""Metrics per table, so that it fits a terminal of 80 columns."""


def _metrics(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    """Parse names of metrics, without repetitions."""
    from rbvsr_deploy.training.evaluation.metrics.catalogue import METRICS

    names = None if value is None else [name.strip() for name in value.split(",")]
    for name in names or ():
        if name == "dover":
            raise click.BadParameter(
                "dover is not available in any package: score the results with its authors' "
                "program, github.com/VQAssessment/DOVER"
            )
        if name not in METRICS:
            raise click.BadParameter(f"{name!r} is not a metric: use {', '.join(METRICS)}")
    return None if names is None else list(dict.fromkeys(names))


def _frames(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    """Parse frame numbers, or "all" into an empty list."""
    if value is None or value == "all":
        return None if value is None else []
    numbers = value.split(",")
    if not all(re.fullmatch(r"\s*\d{1,9}\s*", number) for number in numbers):
        raise click.BadParameter(
            f"{value!r} is not valid: use frame numbers from 0 on, such as 0,50,99, or all"
        )
    return sorted({int(number) for number in numbers})


_SEQUENCES = (
    click.Option(
        ["--truth"], type=PATH, help="Ground truth of the results, in the same layout as RESULTS."
    ),
    click.Option(
        ["--input", "inputs"],
        type=PATH,
        help="Low-quality inputs, in the same layout; upscaled bicubically, they are the baseline.",
    ),
    click.Option(
        ["--degrade"],
        type=click.Choice(["published", "moderate", "clean"]),
        help="Synthesise the inputs for --engine from --truth with a degradation used in training, "
        "drawn for each sequence.",
    ),
    click.Option(
        ["--seed"],
        metavar="N",
        type=Count(0, 2**32 - 1),
        default=0,
        help="Seed of --degrade; the same seed makes the same inputs.",
    ),
)

_ENGINE = (
    click.Option(
        ["--engine", "engine_path"],
        type=PATH,
        help="Bundle or checkpoint that upscales the inputs, in place of RESULTS.",
    ),
    DEVICE,
    TRUST_ENGINES,
    *NETWORK,
    SCENE_CUTS,
)

_SCORES = (
    click.Option(
        ["--metrics"],
        metavar="NAME,...",
        callback=_metrics,
        help="Metrics to compute, such as psnr_y,niqe; the first one selects the best and the "
        "worst frame.  [default: all that apply, see docs/evaluation.md]",
    ),
    click.Option(
        ["--preset"],
        type=click.Choice(sorted(_PRESETS)),
        help="Use the metrics, frames and border of published figures; options for these take "
        "precedence.",
    ),
    click.Option(
        ["--only-frames", "frames"],
        metavar="N,...|all",
        callback=_frames,
        help="Score only these frames, counted from 0.  [default: all]",
    ),
    click.Option(
        ["--border"],
        metavar="PIXELS",
        type=Count(0, 2**16),
        help=f"Exclude this many pixels at each side.  [default: {_BORDER}]",
    ),
    click.Option(
        ["--baseline/--no-baseline"],
        default=True,
        help="Also score the bicubically upscaled inputs, if there are any.",
    ),
    click.Option(
        ["--niqe-parameters"],
        metavar="FILE",
        type=PATH,
        help="Parameters of NIQE, modelparameters.mat or niqe_pris_params.npz.  [default: those of "
        "an installed mmagic or basicsr]",
    ),
)

_REPORT = (
    click.Option(
        ["-o", "--output"],
        type=PATH,
        metavar="FOLDER",
        help="Folder for scores.json, plots over the frames, and the best and the worst frame.",
    ),
    click.Option(["--overwrite"], is_flag=True, help="Allow an output folder that is not empty."),
)

_SECTIONS = {
    "Sequences": _SEQUENCES,
    "Engine": _ENGINE,
    "Scores": _SCORES,
    "Report": _REPORT,
}


@click.command(cls=SectionedCommand, sections=_SECTIONS, context_settings={"show_default": True})
@click.argument("results", type=PATH, required=False)
@JSON
@VERBOSE
@VERSION
def evaluate(
    results: Path | None,
    truth: Path | None,
    inputs: Path | None,
    degrade: str | None,
    seed: int,
    engine_path: Path | None,
    device: str,
    trust_engines: bool,
    scene_cuts: bool,
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
    **network: Any,
) -> None:
    """Score upscaled videos, with or without ground truth.

    RESULTS is a video, an image folder, or a folder of several of these. Sequences of --truth and
    --input are matched with it by name. The score of a sequence is the mean over its frames, the
    score of a set the mean over its sequences.
    """
    _check_usage(click.get_current_context())
    chosen = _PRESETS.get(preset or "")
    if chosen is not None:
        metrics = metrics or list(chosen.metrics)
        frames = list(chosen.frames) if frames is None else frames
        border = chosen.border if border is None else border
    border = _BORDER if border is None else border
    numbers = frames or None
    names = _wanted(metrics, truth=truth is not None, every_frame=numbers is None)
    with command_errors(verbose=verbose), ExitStack() as stack:
        from rbvsr_deploy.commands._progress import FramesDisplay
        from rbvsr_deploy.errors import RbvsrError
        from rbvsr_deploy.jobs.batch import output_folder
        from rbvsr_deploy.training.evaluation.evaluate import evaluate as evaluate_items
        from rbvsr_deploy.training.evaluation.metrics.catalogue import open_metrics
        from rbvsr_deploy.training.evaluation.score_report import (
            check_report_folder,
            scores_as_json,
            write_report,
        )
        from rbvsr_deploy.training.evaluation.sequences import check_items, pair_up

        items = pair_up(results, truth=truth, inputs=inputs)
        size = check_items(items, border=border)
        scorers, missing = open_metrics(names, size=size, niqe_parameters=niqe_parameters)
        if not scorers:
            name, reason = next(iter(missing.items()))
            raise RbvsrError(f"none of the metrics can be computed; {name}: {reason}")
        if output is not None:
            check_report_folder(output, overwrite=overwrite)
            stack.enter_context(output_folder(output))
        if degrade is not None:
            require("msgspec", extra="train", purpose="--degrade")
            from rbvsr_deploy.training.evaluation.degraded_inputs import DEGRADATIONS, degrade_items

            folder = Path(stack.enter_context(TemporaryDirectory(prefix="rbvsr-eval-")))
            with FramesDisplay(len(items)) as progress:
                items = degrade_items(
                    items, folder, DEGRADATIONS[degrade], seed=seed, progress=progress
                )
        upscaler = None
        if engine_path is not None:
            first = items[0].inputs
            assert first is not None  # _check_usage
            upscaler = stack.enter_context(
                _upscaler(
                    engine_path,
                    first,
                    device=device,
                    trust_engines=trust_engines,
                    scene_cuts=scene_cuts,
                    **network,
                )
            )
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
                "degrade": degrade,
                "seed": None if degrade is None else seed,
                "engine": None if engine_path is None else engine_path.name,
                **({} if engine_path is None else {"scene_cuts": scene_cuts, **network}),
            },
            missing=missing,
        )
        if output is not None:
            write_report(output, evaluation, scores)
        if as_json:
            show_json(scores)
        else:
            _show(evaluation, missing)


def _check_usage(ctx: click.Context) -> None:
    """Raise click.UsageError for options that cannot be combined."""
    given = {
        name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if ("results" in given) == ("engine_path" in given):
        raise click.UsageError("use either RESULTS or --engine, which makes them from the inputs")
    if "engine_path" not in given:
        for option in _ENGINE:
            if option.name in given:
                raise click.UsageError(f"{option.opts[0]} needs --engine: use both or neither")
        if "degrade" in given:
            raise click.UsageError("--degrade makes inputs for --engine: use both or neither")
    elif ("inputs" in given) == ("degrade" in given):
        raise click.UsageError(
            "--engine needs inputs to upscale: use either --input, or --truth and --degrade, which "
            "makes them"
        )
    if "degrade" in given and "truth" not in given:
        raise click.UsageError("--degrade makes the inputs from the ground truth: use --truth too")
    if "seed" in given and "degrade" not in given:
        raise click.UsageError("--seed needs --degrade: use both or neither")


@contextmanager
def _upscaler(
    path: Path, first: Path, *, device: str, trust_engines: bool, **settings: Any
) -> Iterator[Upscaler]:
    """Open the engine that upscales the inputs, given the path of the first one."""
    from rbvsr_deploy.engines import open_engine
    from rbvsr_deploy.upscaler import Upscaler
    from rbvsr_deploy.video import frame_size

    with open_engine(
        path,
        device=device,
        size=lambda: frame_size(first),
        trust_engines=trust_engines,
        report=report,
    ) as engine:
        report(f"Engine: {engine.describe()}")
        with Upscaler(engine, **settings) as upscaler:
            yield upscaler


def _wanted(metrics: list[str] | None, *, truth: bool, every_frame: bool) -> list[str]:
    """Return the names of the metrics to compute; raise click.UsageError for those that do not
    apply.
    """
    from rbvsr_deploy.training.evaluation.metrics.catalogue import METRICS, default_metrics

    for name in metrics or ():
        if METRICS[name].needs_truth and not truth:
            raise click.UsageError(f"{name} needs ground truth: use --truth, or leave {name} out")
        if METRICS[name].needs_every_frame and not every_frame:
            raise click.UsageError(f"{name} needs successive frames: use --only-frames all")
    return metrics or default_metrics(truth=truth, every_frame=every_frame)


def _show(evaluation: Evaluation, missing: dict[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    from rbvsr_deploy.training.evaluation.evaluate import RESULTS
    from rbvsr_deploy.training.evaluation.metrics.catalogue import METRICS

    sequences = evaluation.scores[RESULTS]
    count = sum(len(scores.frames) for scores in sequences.values())
    table = Table(
        title=f"{len(sequences)} sequence{'s' * (len(sequences) != 1)}, {count} "
        f"frame{'s' * (count != 1)}"
    )
    table.add_column("metric")
    table.add_column("better")
    for method in evaluation.scores:
        table.add_column(method, justify="right")
    for name in evaluation.metrics:
        means = (evaluation.mean(method, name) for method in evaluation.scores)
        table.add_row(METRICS[name].title, METRICS[name].better, *map(_number, means))
    _show_table(table)
    for name, reason in missing.items():
        show(f"{METRICS[name].title} is not computed: {reason}")
    if len(sequences) == 1:
        return
    for start in range(0, len(evaluation.metrics), _COLUMNS):
        names = evaluation.metrics[start : start + _COLUMNS]
        table = Table(title="results by sequence")
        table.add_column("sequence", overflow="fold")
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        for sequence, scores in sequences.items():
            table.add_row(Text(sequence), *(_number(scores.mean(name)) for name in names))
        _show_table(table)


def _show_table(table: Table) -> None:
    from rich.console import Console

    console = Console()
    with console.capture() as capture:
        console.print(table)
    show(capture.get().removesuffix("\n"))


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"
