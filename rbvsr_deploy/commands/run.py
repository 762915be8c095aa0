"""``rbvsr-run``: videos, pictures and folders four times larger."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from rbvsr_deploy.commands.edge import JSON, PATH, VERBOSE, VERSION, edge, say, show
from rbvsr_deploy.commands.run_options import (
    NETWORK,
    READING,
    SECTIONS,
    WRITING,
    SectionedCommand,
    values_of,
)

if TYPE_CHECKING:
    from rbvsr_deploy.batch import Failure
    from rbvsr_deploy.preview import Preview
    from rbvsr_deploy.upscale_file import Summary

__all__ = ["run"]

_ABOUT_ONE_INPUT = {
    "before_after": "--before-after",
    "compare": "--compare",
    "scene_list": "--scene-list",
    "preview": "--preview",
}
# What is about the output, of which a preview has none.
_NOT_OF_A_PREVIEW = {
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
# What upscale_file takes as it was given.
_PASSED_ON = ("scene_cuts", "scene_list", "before_after", "compare", "overwrite", "keep_job")


@click.command(cls=SectionedCommand, sections=SECTIONS, context_settings={"show_default": True})
@click.argument("inputs", metavar="INPUT...", type=PATH, nargs=-1, required=True)
@JSON
@VERBOSE
@VERSION
def run(
    inputs: tuple[Path, ...],
    output: Path | None,
    engine_path: Path | None,
    device: str,
    trust_engines: bool,
    preview: int | None,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Upscale a video, a picture or a folder of pictures by four, or several of them.

    Sound, subtitles and time stamps of a video are kept. A run that was stopped is continued by the
    same command. With several inputs, one that fails does not stop the others. - is a y4m on
    standard input.
    """
    if preview is not None:
        _check_preview(click.get_current_context())
    _check_pipes(inputs, output, as_json=as_json, keep_job=options["keep_job"])
    given = click.get_current_context().params
    for name, option in _ABOUT_ONE_INPUT.items():
        if len(inputs) > 1 and given[name] is not None:
            raise click.UsageError(
                f"{option} is about one input, and there are {len(inputs)}: "
                "leave it out, or give one at a time"
            )
    with edge(verbose=verbose):
        from rbvsr_deploy.batch import (
            Failure,
            first_frame_size,
            output_folder,
            outputs_for,
            upscale_each,
        )
        from rbvsr_deploy.engines import open_engine
        from rbvsr_deploy.models import DEFAULT_BUNDLE
        from rbvsr_deploy.preview import write_preview
        from rbvsr_deploy.progress import CompileDisplay, ProgressDisplay
        from rbvsr_deploy.stream import Settings
        from rbvsr_deploy.upscale_file import upscale_file
        from rbvsr_deploy.video import ReadOptions, WriteOptions, default_output

        settings = Settings(**values_of(NETWORK, options))
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
                    reading=reading,
                    writing=writing,
                    progress=progress,
                    report=say,
                    **others,
                )

        several = len(inputs) > 1
        outputs = outputs_for(inputs, output) if several else [output or default_output(inputs[0])]
        with CompileDisplay() as compiling:
            engine = open_engine(
                engine_path or DEFAULT_BUNDLE,
                device=device,
                trust_engines=trust_engines,
                size=lambda: first_frame_size(inputs, reading),
                report=say,
                progress=compiling,
            )
        with engine:
            say(f"Engine: {engine.describe()}")
            if preview is not None:
                with ProgressDisplay() as progress:
                    shown = write_preview(
                        inputs[0],
                        options["compare"] or outputs[0].with_suffix(".html"),
                        count=preview,
                        engine=engine,
                        settings=settings,
                        scene_cuts=options["scene_cuts"],
                        reading=reading,
                        overwrite=options["overwrite"],
                        progress=progress,
                        report=say,
                    )
                _show_preview(shown, as_json=as_json)
                return
            if several:
                with output_folder(output):
                    results = upscale_each(inputs, outputs, upscale=upscale, report=say)
            else:
                results = [upscale(inputs[0], outputs[0])]
    if as_json:
        listed = [dataclasses.asdict(result) for result in results]
        show(json.dumps(listed if several else listed[0], indent=1))
    else:
        # On standard output is the video, if it was asked for there.
        _show(results, err=output == Path("-"))
    if any(isinstance(result, Failure) for result in results):
        sys.exit(1)


def _check_pipes(
    inputs: Sequence[Path], output: Path | None, *, as_json: bool, keep_job: bool
) -> None:
    """Raises click.UsageError for what does not go together with "-"."""
    reads, writes = Path("-") in inputs, output == Path("-")
    if len(inputs) > 1 and (reads or writes):
        raise click.UsageError("- is for one input: give it without others")
    if reads and output is None:
        raise click.UsageError("standard input has no name to make another of: give -o")
    for wish, option in ((as_json, "--json"), (keep_job, "--keep-job")):
        if writes and wish:
            raise click.UsageError(f"{option} does not go with -o -, where the video goes")


def _check_preview(ctx: click.Context) -> None:
    """Raises click.UsageError for what does not go together with --preview."""
    for name, option in _NOT_OF_A_PREVIEW.items():
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{option} does not go with --preview, which writes a page only: leave one of them "
                "out"
            )
    if Path("-") in ctx.params["inputs"]:
        raise click.UsageError(
            "--preview goes back and forth in its input, which - does not allow: give a file"
        )


def _show_preview(preview: Preview, *, as_json: bool) -> None:
    from rbvsr_deploy.duration import show_duration

    if as_json:
        show(json.dumps(dataclasses.asdict(preview), indent=1))
        return
    count = len(preview.pictures)
    show(
        f"{preview.page}: {count} picture{'s' * (count != 1)} of {preview.width}x{preview.height}; "
        f"all {preview.frames} frames would take about {show_duration(preview.estimated_seconds)}"
    )


def _show(results: Sequence[Summary | Failure], *, err: bool) -> None:
    from rbvsr_deploy.batch import Failure

    failed = 0
    for result in results:
        if isinstance(result, Failure):
            failed += 1
            show(f"{result.input}: failed: {result.error}", err=err)
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
        f"time{'s' * (times != '1')}{_show_excerpt(summary)}{_show_damage(summary)}; "
        f"{made} frames in {total:.1f} s{rate}",
        err=err,
    )


def _show_damage(summary: Summary) -> str:
    """What of the input was damaged, for the line about the run."""
    lost, damaged = summary.lost_frames, summary.damaged_frames
    parts = [f"{lost} lost to damage"] * bool(lost) + [f"{damaged} damaged"] * bool(damaged)
    return "".join(f", {part}" for part in parts)


def _show_excerpt(summary: Summary) -> str:
    """Which part of the input it was, for the line about the run."""
    if summary.excerpt is None:
        return ""
    words = {"start": "from {:g} s", "end": "up to {:g} s", "frames": "{:g} frames at most"}
    parts = [words[name].format(value) for name, value in summary.excerpt.items()]
    return f", {', '.join(parts)}"
