"""``rbvsr-run``: a video, a picture or a folder four times larger."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rbvsr_deploy.commands.edge import JSON, PATH, VERBOSE, VERSION, edge, memory_size

if TYPE_CHECKING:
    from rbvsr_deploy.refinement import RefineScope
    from rbvsr_deploy.upscale_file import Summary

__all__ = ["run"]


def _lookahead(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """A number of frames, or "all", which is ``None``."""
    if value == "all":
        return None
    if value.isdecimal():
        return int(value)
    raise click.BadParameter(f"{value!r} is neither a number of frames, 0 or more, nor 'all'")


@click.command(context_settings={"show_default": True})
@click.argument("input", type=PATH)
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="Video, picture or folder to write.  [default: <name>_x4 beside INPUT]",
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
@click.option("--codec", help="Encoder of a video.  [default: libx264; libvpx-vp9 for .webm]")
@click.option(
    "--crf", type=float, help="Quality of a video, smaller is better.  [default: 18 for libx264]"
)
@click.option("--pix-fmt", help="Pixel format of a video.  [default: yuv420p]")
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
    "written.",
)
@click.option(
    "--keep-job", is_flag=True, help="Keep the job folder with the encoded parts after success."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@JSON
@VERBOSE
@VERSION
def run(
    input: Path,
    output: Path | None,
    engine_path: Path | None,
    device: str,
    memory: int | None,
    lookahead: int | None,
    max_scene: int | None,
    refine_threshold: float | None,
    refine_scope: RefineScope,
    cleanings: int | None,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Upscale a video, a picture or a folder of pictures by four.

    Sound, subtitles and time stamps of a video are kept. A run that was stopped is continued by the
    same command.
    """
    with edge(verbose=verbose):
        from rbvsr_deploy.engines import open_engine
        from rbvsr_deploy.models import DEFAULT_BUNDLE
        from rbvsr_deploy.progress import CompileDisplay, ProgressDisplay
        from rbvsr_deploy.stream import MAX_SCENE, Settings
        from rbvsr_deploy.upscale_file import upscale_file
        from rbvsr_deploy.video import default_output, frame_size

        settings = Settings(
            lookahead=lookahead,
            max_scene=max_scene or MAX_SCENE,
            refine_threshold=refine_threshold,
            refine_scope=refine_scope,
            cleanings=cleanings,
            memory=memory,
        )
        with CompileDisplay() as compiling:
            engine = open_engine(
                engine_path or DEFAULT_BUNDLE,
                device=device,
                size=lambda: frame_size(input),
                report=lambda line: click.echo(line, err=True),
                progress=compiling,
            )
        with engine:
            click.echo(f"Engine: {engine.describe()}", err=True)
            with ProgressDisplay() as progress:
                summary = upscale_file(
                    input,
                    output or default_output(input),
                    engine=engine,
                    settings=settings,
                    progress=progress,
                    report=lambda line: click.echo(line, err=True),
                    **options,
                )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(summary), indent=1))
    else:
        _show_summary(summary)


def _show_summary(summary: Summary) -> None:
    total = summary.seconds["total"]
    scenes = summary.scenes
    least, most = (f(scene.cleanings for scene in scenes) for f in (min, max))
    times = f"{least}" if least == most else f"{least} to {most}"
    made = summary.frames - summary.resumed_frames
    click.echo(
        f"{summary.output}: {summary.frames} frames of {summary.width}x{summary.height} in "
        f"{len(scenes)} scene{'s' * (len(scenes) != 1)}, cleaned {times} "
        f"time{'s' * (times != '1')}; {made} frames in {total:.1f} s ({made / total:.2f} frames/s)"
    )
