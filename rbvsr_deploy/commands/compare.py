"""``rbvsr-compare``: measures how far the results of two engines differ on a clip."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rbvsr_deploy.commands._common import (
    JSON,
    PATH,
    VERBOSE,
    VERSION,
    Command,
    Count,
    FloatRange,
    command_errors,
    memory_size,
    report,
    show,
    show_json,
)

if TYPE_CHECKING:
    from rbvsr_deploy.engines import Engine
    from rbvsr_deploy.parity.compare import Comparison
    from rbvsr_deploy.parity.differences import Errors

__all__ = ["compare"]


def _model(ctx: click.Context, param: click.Parameter, value: str) -> tuple[Path, str]:
    """Parse a model file and its device."""
    from rbvsr_deploy.parity.compare import parse_model

    try:
        return parse_model(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(cls=Command, context_settings={"show_default": True})
@click.argument("reference", metavar="A", callback=_model)
@click.argument("other", metavar="B", callback=_model)
@click.option(
    "--clip", type=PATH, required=True, help="Video, image or image folder to compare on."
)
@click.option(
    "--frames",
    metavar="N",
    type=Count(),
    default=30,
    help="Compare the first N frames.",
)
@click.option(
    "--cleanings",
    metavar="N",
    type=Count(0, 100),
    help="Run exactly N cleaning passes.  [default: A and B each decide dynamically]",
)
@click.option(
    "--memory",
    metavar="SIZE",
    callback=memory_size,
    help="Maximum device memory for each of the two, such as 4GiB.  [default: a quarter of what "
    "is free]",
)
@click.option(
    "--min-psnr",
    metavar="DB",
    type=FloatRange(min=0),
    help="Minimum PSNR over all frames, in dB.  [default: 50 if A or B is float16, 40 if either is "
    "int8]",
)
@click.option(
    "--max-difference",
    metavar="VALUE",
    type=FloatRange(min=0),
    help="Maximum difference of pixel values, which range from 0 to 1.  [default: 0.001 if A and B "
    "are float32]",
)
@click.option(
    "--worst",
    metavar="IMAGE",
    type=PATH,
    help="Also write an image of the frame with the lowest PSNR, with A, B and their amplified "
    "difference; an existing file is replaced.",
)
@click.option(
    "--trust-engines",
    is_flag=True,
    help="Run the compiled engines of A and B, which are machine code, even if someone else "
    "compiled them.",
)
@click.option(
    "--referee",
    is_flag=True,
    help="Let NVIDIA's Polygraphy load every compiled engine of bundle B, and compare it with the "
    "graphs of bundle A on recorded inputs, instead of running both through the toolkit.",
)
@JSON
@VERBOSE
@VERSION
def compare(
    reference: tuple[Path, str],
    other: tuple[Path, str],
    clip: Path,
    frames: int,
    cleanings: int | None,
    memory: int | None,
    min_psnr: float | None,
    max_difference: float | None,
    worst: Path | None,
    trust_engines: bool,
    referee: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Measure how far the results of two engines differ.

    A and B are bundles or checkpoints, with or without a device: model.plan, model.plan@cpu or
    model.pth@cuda (see --device of rbvsr-run). A is the reference. They are compared on the output
    of a clip and graph by graph; the exit code is 1 if B differs by more than the tolerance.
    """
    with command_errors(verbose=verbose):
        from rbvsr_deploy.commands._progress import CompileDisplay, ProgressDisplay
        from rbvsr_deploy.engines import open_engine
        from rbvsr_deploy.errors import RbvsrError
        from rbvsr_deploy.jobs.before_after import check_before_after
        from rbvsr_deploy.parity.compare import Tolerance, compare_engines
        from rbvsr_deploy.video import Source, open_source

        def opened(model: Path, device: str, source: Source) -> Engine:
            with CompileDisplay() as compiling:
                return open_engine(
                    model,
                    device=device,
                    trust_engines=trust_engines,
                    size=lambda: (source.height, source.width),
                    report=report,
                    progress=compiling,
                )

        if referee:
            _referee(reference[0], other[0], clip, frames, trust_engines, as_json)
            return
        if worst is not None:
            check_before_after(worst, overwrite=True, others={"input": clip})
        tolerance = None
        if min_psnr is not None or max_difference is not None:
            tolerance = Tolerance(min_psnr=min_psnr, max_difference=max_difference)
        with (
            open_source(clip) as source,
            opened(*reference, source) as a,
            opened(*other, source) as b,
            ProgressDisplay() as progress,
        ):
            result = compare_engines(
                a,
                b,
                source,
                frames=frames,
                cleanings=cleanings,
                memory=memory,
                tolerance=tolerance,
                worst=worst,
                progress=progress,
            )
        if as_json:
            show_json(dataclasses.asdict(result))
        else:
            _show(result)
        if result.failures:
            raise RbvsrError(
                f"{result.other.model} differs from {result.reference.model} by more than the "
                f"tolerance: {'; '.join(result.failures)}"
            )


def _referee(
    reference: Path, other: Path, clip: Path, frames: int, trust_engines: bool, as_json: bool
) -> None:
    """Show what Polygraphy finds, and fail if it finds a wrong engine."""
    from rbvsr_deploy.errors import RbvsrError
    from rbvsr_deploy.parity.referee import judge
    from rbvsr_deploy.video import open_source

    with open_source(clip) as source:
        verdicts = judge(reference, other, source, frames=frames, trust_engines=trust_engines)
    if as_json:
        show_json([dataclasses.asdict(verdict) for verdict in verdicts])
    for verdict in [] if as_json else verdicts:
        show(f"\n{verdict.name:30}{'calls':>6}{'max difference':>16}{'mean':>12}{'peak':>8}")
        for graph, outputs in verdict.graphs.items():
            for output, figures in outputs.items():
                show(
                    f"{graph + ' ' + output:30}{figures['calls']:>6}"
                    f"{figures['max_difference']:>16.3g}{figures['mean_difference']:>12.3g}"
                    f"{figures['peak']:>8.3g}" + ("" if figures["passed"] else "  too much")
                )
    for verdict in verdicts:
        if verdict.failures:
            raise RbvsrError(
                f"{verdict.name} differs from the graphs of {reference.name}: "
                f"{'; '.join(verdict.failures)}"
            )


def _show(result: Comparison) -> None:
    show(f"A     {result.reference}")
    show(f"B     {result.other}")
    show(f"clip  {result.clip}, {result.frames} frames of {result.width}x{result.height}")
    for scene in result.scenes:
        if scene.agree:
            continue
        changes = (", ".join(f"{value:.3f}" for value in side) for side in scene.residues)
        show(
            f"scene of {scene.frames} frames from frame {scene.first_frame}: A cleaned "
            f"{scene.cleanings[0]} times (mean changes {next(changes)} of 255), B "
            f"{scene.cleanings[1]} times ({next(changes)}); use --cleanings N for equal numbers"
        )
    show(f"\n{'':24}{'calls':>6}{'max difference':>16}{'peak':>8}{'PSNR (dB)':>11}")
    for name, graph in result.graphs.items():
        for output, errors in graph.outputs.items():
            _show_row(f"{name} {output}", graph.calls, errors)
    _show_row("all frames", result.frames, result.pictures)
    worst = result.per_frame[result.worst_frame]
    _show_row(f"worst frame, {worst.number}", 1, worst.errors)
    images = result.images
    values = sum(images.histogram.values())
    parts = (
        f"{levels}: {100 * count / values:.3g} %" for levels, count in images.histogram.items()
    )
    show(f"\nlevels of 255 by which values differ   {', '.join(parts)}")
    show(
        f"pixels that differ                     {images.differing_pixels} of {images.pixels}, by "
        f"at most {images.max_levels} levels"
    )


def _show_row(name: str, calls: int, errors: Errors) -> None:
    bad = f"  {errors.not_finite} NaN or infinite" if errors.not_finite else ""
    show(
        f"{name:24}{calls:>6}{errors.max_difference:>16.3g}{errors.peak:>8.3g}"
        f"{errors.psnr:>11.1f}{bad}"
    )
