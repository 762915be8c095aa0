"""The commands ``rbvsr-run``, ``rbvsr-export`` and ``rbvsr-info``.

With ``progress.py`` the only file that knows click and rich: it parses, calls the library, shows,
and turns the library's errors into one line and an exit code: 0 done, 1 failed, 2 wrong usage, 130
stopped by Ctrl-C. Everything heavy is imported inside the command that needs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from rbvsr_deploy import __version__
from rbvsr_deploy.errors import MissingDependencyError, RbvsrError

if TYPE_CHECKING:
    from rbvsr_deploy.bundle import Manifest
    from rbvsr_deploy.refinement import RefineScope
    from rbvsr_deploy.upscale_file import Summary

__all__ = ["export", "info", "run"]

_PATH = click.Path(path_type=Path)
_VERSION = click.version_option(__version__, package_name="rbvsr-deploy")
_VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Say more about what is done.")
_JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on standard output."
)


def _bytes(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A size of memory, such as 4GiB."""
    from rbvsr_deploy.plan import parse_bytes

    try:
        return None if value is None else parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _lookahead(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """A number of frames, or "all", which is ``None``."""
    if value == "all":
        return None
    if value.isdecimal():
        return int(value)
    raise click.BadParameter(f"{value!r} is neither a number of frames, 0 or more, nor 'all'")


class _Echo(logging.Handler):
    """Logs to standard error as it is at the time: a progress bar puts its own in the way, which
    writes above the bar.
    """

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


@contextlib.contextmanager
def _edge(*, verbose: bool = False) -> Iterator[None]:
    """Where the library's errors become one line and an exit code."""

    def stop(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)  # unwinds, so that unfinished outputs are removed

    signal.signal(signal.SIGTERM, stop)
    logging.basicConfig(
        format="%(message)s",
        level=logging.INFO if verbose else logging.WARNING,
        handlers=[_Echo()],
    )
    try:
        yield
    except RbvsrError as error:
        if verbose:
            logging.getLogger(__name__).info("where it happened:", exc_info=True)
        _fail(str(error))
    except MemoryError:
        _fail("the memory of this machine does not suffice: allow less with --memory")
    except KeyboardInterrupt:
        click.echo("Stopped; the same command continues where it can.", err=True)
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(1)


# --------------------------------------------------------------------------------------------- run


@click.command(context_settings={"show_default": True})
@click.argument("input", type=_PATH)
@click.option(
    "-o",
    "--output",
    type=_PATH,
    help="Video, picture or folder to write.  [default: <name>_x4 beside INPUT]",
)
@click.option(
    "--engine",
    "engine_path",
    type=_PATH,
    help="Bundle made by rbvsr-export, or a checkpoint to run in torch.  [default: the compact "
    "model for CPUs]",
)
@click.option(
    "--device",
    default="auto",
    help="auto, cpu, cuda, or an ONNX Runtime execution provider's name.",
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
    type=_PATH,
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
    callback=_bytes,
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
    type=_PATH,
    help="Text file of the frames at which scenes begin, one per line: read if it exists, else "
    "written.",
)
@click.option(
    "--keep-job", is_flag=True, help="Keep the job folder with the encoded parts after success."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@_JSON
@_VERBOSE
@_VERSION
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
    with _edge(verbose=verbose):
        from rbvsr_deploy.engines import open_engine
        from rbvsr_deploy.models import DEFAULT_BUNDLE
        from rbvsr_deploy.progress import ProgressDisplay
        from rbvsr_deploy.stream import MAX_SCENE, Settings
        from rbvsr_deploy.upscale_file import upscale_file
        from rbvsr_deploy.video import default_output

        settings = Settings(
            lookahead=lookahead,
            max_scene=max_scene or MAX_SCENE,
            refine_threshold=refine_threshold,
            refine_scope=refine_scope,
            cleanings=cleanings,
            memory=memory,
        )
        with open_engine(engine_path or DEFAULT_BUNDLE, device=device) as engine:
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


# ------------------------------------------------------------------------------------------ export


@click.command(context_settings={"show_default": True})
@click.option(
    "--checkpoint",
    type=_PATH,
    help=".safetensors or .pth of RealBasicVSR or BasicVSR.  [default: the compact model shipped "
    "with this package]",
)
@click.option(
    "-o",
    "--output",
    type=_PATH,
    default=Path("model.plan"),
    help="Bundle to write; replaced if it exists.",
)
@click.option(
    "--fp16", "precision", flag_value="float16", help="Features and convolutions in float16 (GPUs)."
)
@click.option(
    "--fp32",
    "precision",
    flag_value="float32",
    default="float32",
    help="Everything in float32 (CPUs).",
)
@click.option(
    "--opset", type=click.Choice(["17", "18", "19"]), default="18", help="ONNX operator set."
)
@click.option(
    "--refine-threshold",
    type=click.FloatRange(min=0),
    help="Dynamic refinement's default to record, in levels of 255.  [default: the checkpoint's "
    "own, else 255]",
)
@_JSON
@_VERBOSE
@_VERSION
def export(
    checkpoint: Path | None,
    output: Path,
    precision: str,
    opset: str,
    refine_threshold: float | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Turn a checkpoint into a bundle that rbvsr-run takes, verified against the torch model."""
    with _edge(verbose=verbose):
        for package in ("torch", "onnx", "onnxscript", "safetensors"):
            _require(package, extra="export")
        _require("onnxruntime", extra="cpu")
        from rbvsr_deploy.export.export import export_bundle
        from rbvsr_deploy.models import DEFAULT_CHECKPOINT

        manifest = export_bundle(
            checkpoint or DEFAULT_CHECKPOINT,
            output,
            precision="float16" if precision == "float16" else "float32",
            opset=int(opset),
            refine_threshold=refine_threshold,
            report=lambda line: click.echo(line, err=True),
        )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(manifest), indent=1))
    else:
        click.echo(
            f"{output}: {manifest.precision}, opset {manifest.opset}, "
            f"{output.stat().st_size / 1e6:.1f} MB"
        )


def _require(package: str, *, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingDependencyError(package, extra=extra, purpose="exporting")


# -------------------------------------------------------------------------------------------- info


@click.command()
@click.argument("bundle", type=_PATH)
@_JSON
@_VERSION
def info(bundle: Path, as_json: bool) -> None:
    """Show what is in a bundle."""
    with _edge():
        from rbvsr_deploy.bundle import open_bundle

        opened = open_bundle(bundle)
    if as_json:
        click.echo(
            json.dumps({**dataclasses.asdict(opened.manifest), "sha256": opened.sha256}, indent=1)
        )
    else:
        _show_manifest(bundle, opened.manifest, opened.sha256)


def _show_manifest(path: Path, manifest: Manifest, sha256: str) -> None:
    model, weights = manifest.model, manifest.weights
    network = "RealBasicVSR" if manifest.has_cleaning else "BasicVSR (no cleaning)"
    parts = [f"{network} x{manifest.scale}", f"{model['mid_channels']} channels"]
    parts += [f"{model['propagation_blocks']} propagation blocks"]
    parts += [f"{model['cleaning_blocks']} cleaning blocks"] * manifest.has_cleaning
    refinement = f"again while the mean change is {manifest.refine_threshold:g} of 255 or more"
    rows = {
        "bundle": f"{path}, {path.stat().st_size / 1e6:.1f} MB, sha256 {sha256}",
        "network": ", ".join(parts),
        "weights": f"{weights.file_name}, sha256 {weights.sha256}",
        "licence": weights.license or "not stated in the checkpoint",
        "provenance": weights.provenance or "not stated in the checkpoint",
        "precision": f"{manifest.precision} features, float32 flow and coordinates",
        "opset": str(manifest.opset),
        "refinement": refinement if manifest.has_cleaning else "none",
        "made by": f"rbvsr-deploy {manifest.toolkit_version}",
        "verified": f"against torch under {manifest.verification.get('runtime', 'nothing')}",
    }
    for name, value in rows.items():
        click.echo(f"{name:>11}  {value}")
    for name, sides in manifest.graphs.items():
        inputs, outputs = (
            ", ".join(
                f"{item['name']} {item['dtype']} {_shape(item['shape'])}" for item in sides[side]
            )
            for side in ("inputs", "outputs")
        )
        click.echo(f"{name:>11}  {inputs} -> {outputs}")
        for output, sizes in manifest.verification.get("outputs", {}).get(name, {}).items():
            worst = max(
                sizes.values(),
                key=lambda figures: figures.get("max_difference", figures.get("max_levels")),
            )
            told = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in worst.items())
            click.echo(f"{'':>11}  {output} against torch: {told}")


def _shape(shape: list[int | str]) -> str:
    return f"({', '.join(str(size) for size in shape)})"
