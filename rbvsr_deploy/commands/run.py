"""``rbvsr-run``: upscales videos, images and image folders."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from rbvsr_deploy.commands._common import (
    JSON,
    PATH,
    VERBOSE,
    VERSION,
    command_errors,
    report,
    show,
    show_json,
)
from rbvsr_deploy.commands._run_options import (
    ARGUMENTS,
    NETWORK,
    READING,
    SECTIONS,
    SIZES,
    WRITING,
    SectionedCommand,
    values_of,
)

if TYPE_CHECKING:
    from rbvsr_deploy.jobs.batch import Failure, Skipped
    from rbvsr_deploy.jobs.preview import Preview
    from rbvsr_deploy.jobs.summary import Summary

__all__ = ["run"]

_FOR_ONE_INPUT = {
    "before_after": "--before-after",
    "page": "--report",
    "scene_list": "--scene-list",
    "preview": "--preview",
}
_NOT_FOR_PREVIEWS = {
    "output": "-o",
    "before_after": "--before-after",
    "scene_list": "--scene-list",
    "keep_job": "--keep-job",
    "codec": "--codec",
    "crf": "--crf",
    "pix_fmt": "--pix-fmt",
    "audio": "--no-audio",
    "subtitles": "--no-subtitles",
}
# Options that are passed to upscale_file unchanged.
_PASSED_ON = ("scene_cuts", "scene_list", "before_after", "overwrite", "keep_job")


@click.command(cls=SectionedCommand, sections=SECTIONS, context_settings={"show_default": True})
@click.argument("inputs", metavar="INPUT...", type=PATH, nargs=-1, required=True)
@JSON
@VERBOSE
@VERSION
def run(
    inputs: tuple[Path, ...],
    output: str | None,
    engine_path: Path | None,
    device: str,
    trust_engines: bool,
    preview: int | None,
    workers: int | None,
    cluster: str | None,
    sheet: bool,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Upscale a video, image or image folder.

    Audio, subtitles and timestamps of a video are kept. An interrupted run resumes with the same
    command. Of several inputs, each is upscaled even if another one fails. INPUT may be - for y4m
    on standard input.
    """
    _check_usage(click.get_current_context())
    with command_errors(verbose=verbose):
        from rbvsr_deploy.cluster.film import has_shared_work
        from rbvsr_deploy.commands._progress import CompileDisplay, ProgressDisplay
        from rbvsr_deploy.engines import open_engine
        from rbvsr_deploy.jobs.batch import (
            first_frame_size,
            output_folder,
            output_for,
            outputs_for,
            upscale_each,
            was_finished,
            without_own_outputs,
        )
        from rbvsr_deploy.jobs.contact_sheet import write_contact_sheet
        from rbvsr_deploy.jobs.preview import write_preview
        from rbvsr_deploy.jobs.upscale_file import upscale_file
        from rbvsr_deploy.pretrained import DEFAULT_BUNDLE
        from rbvsr_deploy.runtime.output_size import OutputSize
        from rbvsr_deploy.runtime.settings import LIVE_LOOKAHEAD, Settings
        from rbvsr_deploy.video import ReadOptions, WriteOptions

        settings = Settings(**values_of(NETWORK, options))
        if options["live"]:
            settings = dataclasses.replace(settings, lookahead=LIVE_LOOKAHEAD)
        size = OutputSize(**values_of(SIZES, options))
        reading = ReadOptions(**values_of(READING, options))
        writing = WriteOptions(**values_of(WRITING, options))
        others = {name: options[name] for name in _PASSED_ON}

        def upscale(path: Path, target: Path) -> Summary:
            with ProgressDisplay() as progress:
                return upscale_file(
                    path,
                    target,
                    engine=engine,
                    settings=settings,
                    size=size,
                    reading=reading,
                    writing=writing,
                    page=options["page"],
                    progress=progress,
                    report=report,
                    **others,
                )

        def is_finished(path: Path, target: Path) -> bool:
            return not options["overwrite"] and was_finished(path, target, reading, size)

        several = len(inputs) > 1
        paths = list(inputs)
        left_out: list[Skipped] = []
        if several:
            folder = None if output is None else Path(output)
            paths, left_out = without_own_outputs(inputs, folder, ending=size.ending)
            outputs = outputs_for(paths, folder, ending=size.ending)
            for skipped in left_out:
                report(f"Left out: {skipped.input}: {skipped.skipped}")
        else:
            target, folder = output_for(inputs[0], output, ending=size.ending)
            outputs = [target]
        if preview is None and (workers or cluster or (not several and has_shared_work(target))):
            from rbvsr_deploy.cluster.messages import Setup
            from rbvsr_deploy.commands._workers import run_shared

            model = Path(engine_path or DEFAULT_BUNDLE).absolute()
            frame = first_frame_size(paths, reading) if device != "cpu" else None
            with output_folder(folder):
                results = run_shared(
                    paths,
                    outputs,
                    setup=Setup(model, device, trust_engines, settings, size=frame),
                    workers=workers,
                    cluster=cluster,
                    allow_mixed_engines=options["allow_mixed_engines"],
                    stage=options["stage"],
                    size=size,
                    reading=reading,
                    writing=writing,
                    page=options["page"],
                    **others,
                )
            _show_all(results, left_out, several=several, as_json=as_json)
            return
        with CompileDisplay() as compiling:
            engine = open_engine(
                engine_path or DEFAULT_BUNDLE,
                device=device,
                trust_engines=trust_engines,
                size=lambda: first_frame_size(paths, reading),
                report=report,
                progress=compiling,
            )
        with engine:
            report(f"Engine: {engine.describe()}")
            if preview is not None:
                page = options["page"] or outputs[0].with_suffix(".html")
                with ProgressDisplay() as progress:
                    shown: dict[str, Any] = {
                        "count": preview,
                        "engine": engine,
                        "settings": settings,
                        "size": size,
                        "scene_cuts": options["scene_cuts"],
                        "reading": reading,
                        "overwrite": options["overwrite"],
                        "progress": progress,
                    }
                    if sheet:
                        images = write_contact_sheet(
                            inputs[0], page, command=_command_with, **shown
                        )
                    else:
                        written = write_preview(inputs[0], page, report=report, **shown)
                if not sheet:
                    _show_preview(written, as_json=as_json)
                elif as_json:
                    show_json({"page": str(page), "images": images})
                else:
                    show(f"{page}: {images} images")
                return
            with output_folder(folder):
                if several:
                    results = upscale_each(
                        paths, outputs, upscale=upscale, report=report, is_finished=is_finished
                    )
                else:
                    results = [upscale(paths[0], outputs[0])]
        _show_all(results, left_out, several=several, as_json=as_json, err=output == "-")


def _check_usage(ctx: click.Context) -> None:
    """Raise click.UsageError for options that cannot be combined."""
    options = ctx.params
    inputs, output = options["inputs"], options["output"]
    reads, writes = Path("-") in inputs, output == "-"
    sizes = [f"--{name}" for name in ("scale", "size", "height") if options[name] is not None]
    if len(sizes) > 1:
        raise click.UsageError(f"{' and '.join(sizes)} exclude each other: use one of them")
    if options["fit"] != "inside" and options["size"] is None:
        raise click.UsageError(f"--fit {options['fit']} needs --size: give one, or leave it out")
    if options["live"] and options["lookahead"] is not None:
        raise click.UsageError("--live sets the lookahead: leave --lookahead or --live out")
    if options["sheet"] and options["preview"] is None:
        raise click.UsageError("--sheet needs --preview N, which says how many frames it shows")
    if options["preview"] is not None:
        for name, option in _NOT_FOR_PREVIEWS.items():
            if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(
                    f"{option} cannot be combined with --preview, which only writes a page: leave "
                    "one of them out"
                )
        if reads:
            raise click.UsageError(
                "--preview cannot read from -, as it reads parts of its input twice: use a file"
            )
    shared = next((o for o in ("workers", "cluster") if options[o] is not None), None)
    if shared is not None and (reads or writes or options["preview"] is not None):
        other = "--preview" if options["preview"] is not None else "-"
        raise click.UsageError(f"--{shared} cannot be combined with {other}: leave one of them out")
    if options["stage"] and len(inputs) > 1:
        raise click.UsageError(f"--stage needs a single input, got {len(inputs)}: leave it out")
    if len(inputs) > 1 and (reads or writes):
        raise click.UsageError(f"- works with one input only, got {len(inputs)}: use it alone")
    if reads and output is None:
        raise click.UsageError("no name for the output can be derived from -: give -o FILE")
    if writes and options["as_json"]:
        raise click.UsageError("--json cannot be combined with -o -, which writes the video there")
    if writes and options["keep_job"]:
        raise click.UsageError("--keep-job cannot be combined with -o -, which has no job folder")
    if writes and sys.stdout is None:
        raise click.UsageError("standard output is closed: use -o with a file")
    for name, option in _FOR_ONE_INPUT.items():
        if len(inputs) > 1 and options[name] is not None:
            raise click.UsageError(
                f"{option} needs a single input, got {len(inputs)}: leave it out, or upscale one "
                "at a time"
            )


def _command_with(strength: float, denoise: float) -> str:
    """Return the running command without its preview, and with other amounts."""
    context = click.get_current_context()
    left_out = {"--preview": 1, "--sheet": 0, "--strength": 1, "--denoise": 1, "--report": 1}
    kept: list[str] = []
    rest = iter(context.meta[ARGUMENTS])
    for argument in rest:
        name, given, _ = argument.partition("=")
        if name not in (*left_out, "--json", "--overwrite"):
            kept.append(argument)
        elif left_out.get(name) and not given:
            next(rest, None)
    for name, amount in (("strength", strength), ("denoise", denoise)):
        if amount != 1:
            kept += [f"--{name}", f"{amount:g}"]
    return shlex.join(["rbvsr-run", *kept])


def _show_preview(preview: Preview, *, as_json: bool) -> None:
    from rbvsr_deploy.units import show_duration

    if as_json:
        show_json(dataclasses.asdict(preview))
        return
    count = len(preview.pictures)
    show(
        f"{preview.page}: {count} image{'s' * (count != 1)} of {preview.width}x{preview.height}; "
        f"all {preview.frames} frames would take about {show_duration(preview.estimated_seconds)}"
    )


def _show_all(
    results: Sequence[Summary | Failure | Skipped],
    left_out: Sequence[Skipped],
    *,
    several: bool,
    as_json: bool,
    err: bool = False,
) -> None:
    """Show all results, and exit with 1 if an input failed.

    Args:
        err: show text on standard error, as standard output carries the video.
    """
    from rbvsr_deploy.jobs.batch import Failure

    if as_json:
        listed = [dataclasses.asdict(result) for result in (*results, *left_out)]
        show_json(listed if several else listed[0])
    else:
        _show(results, err=err)
    if any(isinstance(result, Failure) for result in results):
        sys.exit(1)


def _show(results: Sequence[Summary | Failure | Skipped], *, err: bool) -> None:
    from rbvsr_deploy.jobs.batch import Failure, Skipped

    failed = 0
    for result in results:
        if isinstance(result, Failure):
            failed += 1
            show(f"{result.input}: failed: {result.error}", err=err)
        elif isinstance(result, Skipped):
            show(f"{result.input}: skipped: {result.skipped}", err=err)
        else:
            _show_summary(result, err=err)
    if failed:
        show(f"{failed} of {len(results)} inputs failed", err=err)


def _show_summary(summary: Summary, *, err: bool) -> None:
    total = summary.seconds["total"]
    scenes = summary.scenes
    least, most = (f(scene.cleanings for scene in scenes) for f in (min, max))
    times = f"{least}" if least == most else f"{least} to {most}"
    made = summary.frames - summary.resumed_frames
    rate = f" ({made / total:.2f} frames/s)" if made else ""
    show(
        f"{summary.output}: {summary.frames} frames of {summary.width}x{summary.height} in "
        f"{len(scenes)} scene{'s' * (len(scenes) != 1)}, cleaned {times} "
        f"time{'s' * (times != '1')}{_show_excerpt(summary)}{_show_damage(summary)}"
        f"{_show_changes(summary)}; "
        f"{made} frames in {total:.1f} s{rate}",
        err=err,
    )


def _show_damage(summary: Summary) -> str:
    """Describe the damage of the input, for the line about the run."""
    lost, damaged = summary.lost_frames, summary.damaged_frames
    parts = [f"{lost} lost to damage"] * bool(lost) + [f"{damaged} damaged"] * bool(damaged)
    return "".join(f", {part}" for part in parts)


def _show_changes(summary: Summary) -> str:
    """Count what was converted and dropped, for the line about the run; each is reported before."""
    counts = {"converted": len(summary.converted), "dropped": len(summary.dropped)}
    return "".join(f", {number} {name}" for name, number in counts.items() if number)


def _show_excerpt(summary: Summary) -> str:
    """Describe the excerpt of the input, for the line about the run."""
    if summary.excerpt is None:
        return ""
    plural = "s" * (summary.excerpt.get("frames") != 1)
    words = {
        "start": "from {:g} s",
        "end": "up to {:g} s",
        "frames": f"at most {{:g}} frame{plural}",
    }
    parts = [words[name].format(value) for name, value in summary.excerpt.items()]
    return f", {', '.join(parts)}"
