"""``rbvsr-export``: a checkpoint into a bundle."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rbvsr_deploy.commands.compile_options import Compiling, compile_options
from rbvsr_deploy.commands.edge import JSON, PATH, VERBOSE, VERSION, edge, require, say, show

if TYPE_CHECKING:
    from rbvsr_deploy.bundle import Manifest
    from rbvsr_deploy.engines.tensorrt.compile import Target

__all__ = ["export"]


@click.command(context_settings={"show_default": True})
@click.option(
    "--checkpoint",
    type=PATH,
    help=".safetensors or .pth of RealBasicVSR or BasicVSR.  [default: the compact model shipped "
    "with this package]",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
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
    "--int8",
    "precision",
    flag_value="int8",
    help="As --fp16, with the residual blocks in int8 (GPUs); needs --calibrate.",
)
@click.option(
    "--calibrate",
    type=PATH,
    multiple=True,
    help="Video or folder of pictures like those to come, for --int8; may be given several times.",
)
@click.option(
    "--min-psnr",
    type=click.FloatRange(min=0, min_open=True),
    default=40.0,
    help="With --int8: dB the pictures of the calibration clips must have against float32; "
    "blocks go back to float16 until they do.",
)
@click.option(
    "--opset",
    type=click.Choice(["17", "18", "19"]),
    help="ONNX operator set.  [default: 18; 19 with --int8]",
)
@click.option(
    "--refine-threshold",
    type=click.FloatRange(min=0),
    help="Dynamic refinement's default to record, in levels of 255.  [default: the checkpoint's "
    "own, else 255]",
)
@click.option(
    "--verify",
    "clip",
    type=PATH,
    help="Video, picture or folder of pictures: also compare the bundle's pictures of its first 30 "
    "frames with the float32 torch model's, and record the figures.",
)
@click.option(
    "--target",
    type=click.Choice(["onnx", "auto", "tensorrt", "tensorrt-rtx"]),
    default="onnx",
    help="onnx: graphs only, which every machine runs or compiles. Or compile engines into the "
    "bundle too, with TensorRT or TensorRT-RTX, or for this machine's GPU if it has one (auto).",
)
@compile_options
@JSON
@VERBOSE
@VERSION
def export(
    checkpoint: Path | None,
    output: Path,
    precision: str,
    calibrate: tuple[Path, ...],
    min_psnr: float,
    opset: str | None,
    refine_threshold: float | None,
    clip: Path | None,
    target: str,
    compiling: Compiling,
    as_json: bool,
    verbose: bool,
) -> None:
    """Turn a checkpoint into a bundle that rbvsr-run takes, verified against the torch model."""
    int8 = precision == "int8"
    if int8 != bool(calibrate):
        raise click.UsageError(
            "--int8 needs --calibrate: give a video like those to come"
            if int8
            else "--calibrate is for --int8: give both or none"
        )
    if int8 and opset not in (None, "19"):
        raise click.UsageError(f"--int8 needs --opset 19, got {opset}: leave it out")
    if compiling.compute_capabilities and target in ("onnx", "auto"):
        raise click.UsageError(
            f"--compute-capability does not go with --target {target}: give --target tensorrt-rtx"
        )
    with edge(verbose=verbose):
        for package in ("torch", "onnx", "onnxscript", "safetensors"):
            require(package, extra="export", purpose="exporting")
        require("onnxruntime", extra="cpu", purpose="exporting")
        from rbvsr_deploy.export.export import export_bundle
        from rbvsr_deploy.models import DEFAULT_CHECKPOINT

        checkpoint = checkpoint or DEFAULT_CHECKPOINT
        targets = _targets(target, compiling)

        verify = None
        if clip is not None:
            from rbvsr_deploy.compare import Tolerance, verify_bundle
            from rbvsr_deploy.video import open_source

            open_source(clip).close()  # a missing clip is told before the long export
            verify = partial(
                verify_bundle,
                checkpoint=checkpoint,
                clip=clip,
                tolerance=Tolerance(min_psnr=min_psnr) if int8 else None,
            )
        manifest = export_bundle(
            checkpoint,
            output,
            precision="float32" if precision == "float32" else "float16",
            opset=int(opset or (19 if int8 else 18)),
            refine_threshold=refine_threshold,
            calibrate=calibrate,
            min_psnr=min_psnr,
            verify=verify,
            report=say,
        )
        if targets:
            manifest = _compile(output, targets, compiling)
    if as_json:
        show(json.dumps(dataclasses.asdict(manifest), indent=1))
    else:
        show(
            f"{output}: {'int8 and ' * int8}{manifest.precision}, opset {manifest.opset}, "
            f"{output.stat().st_size / 1e6:.1f} MB"
        )


def _targets(target: str, compiling: Compiling) -> list[Target]:
    """What to compile, before the export is begun: what cannot be had is told at once."""
    from rbvsr_deploy.errors import EngineError

    match target:
        case "tensorrt" | "tensorrt-rtx":
            return compiling.targets(target)
        case "auto":
            try:
                return compiling.targets("here")
            except EngineError as error:
                say(f"Graphs only: {error}")
    return []


def _compile(output: Path, targets: list[Target], compiling: Compiling) -> Manifest:
    """Engines into the bundle that has just been written."""
    from rbvsr_deploy.bundle import open_bundle
    from rbvsr_deploy.errors import EngineError

    try:
        compiling.into_bundle(output, targets)
    except EngineError as error:
        raise EngineError(f"{error}; '{output}' is there with its graphs, no engines") from error
    return open_bundle(output).manifest
