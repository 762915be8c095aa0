"""``rbvsr-run``: videos, pictures and folders four times larger."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from rbvsr_deploy.commands.edge import JSON, PATH, VERBOSE, VERSION, edge, memory_size, show

if TYPE_CHECKING:
    from rbvsr_deploy.batch import Failure
    from rbvsr_deploy.preview import Preview
    from rbvsr_deploy.refinement import RefineScope
    from rbvsr_deploy.upscale_file import Summary
    from rbvsr_deploy.video import Alpha

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
    "no_audio": "--no-audio",
    "no_subtitles": "--no-subtitles",
}

_SLOWEST, _FASTEST = Fraction(1, 1000), Fraction(1000)

# Plain seconds, or below 60 where minutes come before, and those below 60 where hours do.
_TIME = re.compile(r"(?:(?:(\d+):(?=[0-5]?\d:))?(\d+):(?=[0-5]?\d(?:\.|$)))?(\d+(?:\.\d*)?|\.\d+)")


def _lookahead(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """A number of frames, or "all", which is ``None``."""
    if value == "all":
        return None
    if value.isdecimal():
        return int(value)
    raise click.BadParameter(f"{value!r} is neither a number of frames, 0 or more, nor 'all'")


def _rate(ctx: click.Context, param: click.Parameter, value: str | None) -> Fraction | None:
    """Frames per second, as a decimal number or a fraction."""
    if value is None:
        return None
    try:
        rate = Fraction(value)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not _SLOWEST <= rate <= _FASTEST:
        raise click.BadParameter(
            f"{value!r} is no rate: give a number such as 24, 23.976 or 30000/1001, from "
            f"{_SLOWEST} to {_FASTEST}"
        )
    return rate.limit_denominator(1001)


def _time(ctx: click.Context, param: click.Parameter, value: str | None) -> Fraction | None:
    """Seconds, from a number of them or hours, minutes and seconds."""
    if value is None:
        return None
    found = _TIME.fullmatch(value)
    if found is None:
        raise click.BadParameter(
            f"{value!r} is no time: give seconds such as 12.5, or minutes and seconds or hours too "
            "as in 1:02:03.25"
        )
    hours, minutes, seconds = (Fraction(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds


@click.command(context_settings={"show_default": True})
@click.argument("inputs", metavar="INPUT...", type=PATH, nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="Video, picture or folder to write; of several inputs, the folder for all; - for y4m on "
    "standard output.  "
    "[default: <name>_x4 beside INPUT]",
)
@click.option(
    "--engine",
    "engine_path",
    type=PATH,
    help="Bundle made by rbvsr-export, or a checkpoint to run in torch.  [default: the compact "
    "model for CPUs]",
)
@click.option(
    "--device",
    default="auto",
    help="auto (the best there is), tensorrt, cuda, cpu, or the name of an ONNX Runtime execution "
    "provider.",
)
@click.option(
    "--fps",
    metavar="RATE",
    callback=_rate,
    help="Frames per second of a video made of a folder, such as 24 or 30000/1001.  [default: 25]",
)
@click.option(
    "--start",
    metavar="TIME",
    callback=_time,
    help="Begin with the first frame at this time: seconds such as 12.5, or [H:]MM:SS such as "
    "1:02:03.25, counted from the input's first frame.",
)
@click.option(
    "--end", metavar="TIME", callback=_time, help="End before the first frame at this time."
)
@click.option("--frames", metavar="N", type=click.IntRange(min=1), help="End after so many frames.")
@click.option(
    "--strict",
    is_flag=True,
    help="Stop where a video is damaged, instead of leaving out what cannot be decoded.",
)
@click.option(
    "--deinterlace",
    is_flag=True,
    help="Make whole frames of a video's fields: where frames are marked as interlaced, else of "
    "all.",
)
@click.option(
    "--decoder",
    metavar="NAME",
    help="Decode a video on a device such as cuda, or with another decoder of FFmpeg's.",
)
@click.option(
    "--alpha",
    type=click.Choice(["drop", "keep", "refuse"]),
    default="drop",
    help="What becomes of opacity; kept, it is enlarged without the network.",
)
@click.option(
    "--codec",
    help="Encoder of a video.  [default: libx264, or libvpx-vp9 for .webm; for more than 8 bits "
    "libx265, or libsvtav1 for .webm; prores_ks, ffv1 and dnxhd for inputs of these]",
)
@click.option(
    "--crf", type=float, help="Quality of a video, smaller is better.  [default: 18 for libx264]"
)
@click.option(
    "--pix-fmt",
    help="Pixel format of a video.  [default: yuv420p, or yuv420p10le for more than 8 bits]",
)
@click.option("--no-audio", is_flag=True, help="Leave out the sound of a video.")
@click.option("--no-subtitles", is_flag=True, help="Leave out the subtitles of a video.")
@click.option(
    "--refine-threshold",
    type=click.FloatRange(min=0),
    help="Clean again while the mean change is at or above this many of 255 levels.  [default: "
    "the model's own]",
)
@click.option(
    "--cleanings", type=click.IntRange(min=0), help="Fixed number of cleaning passes instead."
)
@click.option(
    "--before-after",
    type=PATH,
    help="Also write a picture of the middle frame, bicubic beside result.",
)
@click.option(
    "--compare",
    metavar="PAGE.html",
    type=PATH,
    help="Also write a page with some frames before and after, and the figures of the run.",
)
@click.option(
    "--preview",
    metavar="N",
    type=click.IntRange(1, 100),
    help="Write no video, but a page with N pictures from all over the input before and after, and "
    "how long all of it would take: what --compare names, or <name>_x4.html beside INPUT.",
)
@click.option(
    "--refine-scope",
    type=click.Choice(["scene", "frame"]),
    default="scene",
    help="Whether a whole scene or each frame decides how often it is cleaned.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    callback=memory_size,
    help="How much of the device's memory to use, such as 4GiB.  [default: half of what is free]",
)
@click.option(
    "--lookahead",
    metavar="N|all",
    default="all",
    callback=_lookahead,
    help="How many future frames each frame draws on, or all of its scene. With N, the first "
    "picture comes out after N + 1 frames, and every frame costs N + 1 backward steps.",
)
@click.option(
    "--max-scene",
    type=click.IntRange(min=1),
    help="Longer scenes are worked on in parts of so many frames.  [default: 300]",
)
@click.option(
    "--scene-cuts/--no-scene-cuts", default=True, help="Look for cuts, where a new scene begins."
)
@click.option(
    "--scene-list",
    type=PATH,
    help="Text file of the frames at which scenes begin, one per line: read if it exists, else "
    "written. With --start, frames are counted from there.",
)
@click.option(
    "--keep-job", is_flag=True, help="Keep the job folder with the encoded parts after success."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@JSON
@VERBOSE
@VERSION
def run(
    inputs: tuple[Path, ...],
    output: Path | None,
    engine_path: Path | None,
    device: str,
    memory: int | None,
    lookahead: int | None,
    max_scene: int | None,
    refine_threshold: float | None,
    refine_scope: RefineScope,
    cleanings: int | None,
    fps: Fraction | None,
    start: Fraction | None,
    end: Fraction | None,
    frames: int | None,
    strict: bool,
    deinterlace: bool,
    alpha: Alpha,
    decoder: str | None,
    codec: str | None,
    crf: float | None,
    pix_fmt: str | None,
    no_audio: bool,
    no_subtitles: bool,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Upscale a video, a picture or a folder of pictures by four, or several of them.

    Sound, subtitles and time stamps of a video are kept. A run that was stopped is continued by the
    same command. With several inputs, one that fails does not stop the others. - is a y4m on
    standard input.
    """
    preview = options["preview"]
    if preview is not None:
        _check_preview(click.get_current_context())
    _check_pipes(inputs, output, as_json=as_json, keep_job=options["keep_job"])
    for name, option in _ABOUT_ONE_INPUT.items():
        if len(inputs) > 1 and options[name] is not None:
            raise click.UsageError(
                f"{option} is about one input, and there are {len(inputs)}: "
                "leave it out, or give one at a time"
            )
    del options["preview"]
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
        from rbvsr_deploy.stream import MAX_SCENE, Settings
        from rbvsr_deploy.upscale_file import upscale_file
        from rbvsr_deploy.video import ReadOptions, WriteOptions, default_output

        settings = Settings(
            lookahead=lookahead,
            max_scene=max_scene or MAX_SCENE,
            refine_threshold=refine_threshold,
            refine_scope=refine_scope,
            cleanings=cleanings,
            memory=memory,
        )
        reading = ReadOptions(
            fps=fps,
            start=start,
            end=end,
            frames=frames,
            strict=strict,
            deinterlace=deinterlace,
            alpha=alpha,
            decoder=decoder,
        )
        writing = WriteOptions(
            codec=codec, crf=crf, pix_fmt=pix_fmt, audio=not no_audio, subtitles=not no_subtitles
        )

        def report(line: str) -> None:
            click.echo(line, err=True)

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
                    report=report,
                    **options,
                )

        several = len(inputs) > 1
        outputs = outputs_for(inputs, output) if several else [output or default_output(inputs[0])]
        with CompileDisplay() as compiling:
            engine = open_engine(
                engine_path or DEFAULT_BUNDLE,
                device=device,
                size=lambda: first_frame_size(inputs, reading),
                report=report,
                progress=compiling,
            )
        with engine:
            report(f"Engine: {engine.describe()}")
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
                        report=report,
                    )
                _show_preview(shown, as_json=as_json)
                return
            if several:
                with output_folder(output):
                    results = upscale_each(inputs, outputs, upscale=upscale, report=report)
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
    from rbvsr_deploy.preview import show_duration

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
