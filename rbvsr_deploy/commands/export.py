"""``rbvsr-export``: converts a checkpoint to a bundle."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from rbvsr_deploy.commands._common import (
    JSON,
    PATH,
    VERBOSE,
    VERSION,
    Command,
    FloatRange,
    command_errors,
    report,
    require,
    show,
    show_json,
)
from rbvsr_deploy.commands._compile_options import Compiling, compile_options

if TYPE_CHECKING:
    from rbvsr_deploy.bundle import Manifest
    from rbvsr_deploy.engines.tensorrt.compile import Target

__all__ = ["export"]


@click.command(cls=Command, context_settings={"show_default": True})
@click.option(
    "--checkpoint",
    type=PATH,
    help="RealBasicVSR or BasicVSR checkpoint, .safetensors or .pth.  [default: the included "
    "compact model]",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path("model.plan"),
    help="Bundle to write; an existing file is replaced.",
)
@click.option(
    "--fp16",
    "precision",
    flag_value="float16",
    help="Use float16 for features and convolutions (for GPUs).",
)
@click.option(
    "--fp32",
    "precision",
    flag_value="float32",
    default="float32",
    help="Use float32 for everything (for CPUs).",
)
@click.option(
    "--int8",
    "precision",
    flag_value="int8",
    help="Like --fp16, with int8 for the residual blocks (for GPUs and OpenVINO); needs "
    "--calibrate.",
)
@click.option(
    "--calibrate",
    metavar="CLIP",
    type=PATH,
    multiple=True,
    help="Footage representative of what you will upscale, a video or image folder, for --int8; "
    "can be repeated.",
)
@click.option(
    "--min-psnr",
    metavar="DB",
    type=FloatRange(min=0, min_open=True),
    default=40.0,
    help="PSNR against float32 that --int8 must reach on the calibration clips, in dB; blocks "
    "revert to float16 until it does.",
)
@click.option(
    "--opset",
    type=click.Choice(["17", "18", "19"]),
    help="ONNX operator set version.  [default: 18, or 19 with --int8]",
)
@click.option(
    "--refine-threshold",
    metavar="LEVELS",
    type=FloatRange(min=0),
    help="Default threshold of dynamic refinement to record in the bundle, in levels of 255.  "
    "[default: the checkpoint's own, otherwise 255]",
)
@click.option(
    "--verify",
    "clip",
    metavar="CLIP",
    type=PATH,
    help="Also compare the bundle with the float32 PyTorch model on the first 30 frames of this "
    "video, image or image folder, and record the result.",
)
@click.option(
    "--window",
    type=click.Choice(["5", "7"]),
    help="Instead of a bundle, write one ONNX file for windows of this many frames, 1 x 3T x H x W "
    "to 1 x 3 x 4H x 4W, as vs-mlrt takes it; its difference from rbvsr-run is measured, on the "
    "clip of --verify if there is one.",
)
@click.option(
    "--target",
    type=click.Choice(["onnx", "auto", "tensorrt", "tensorrt-rtx"]),
    default="onnx",
    help="Write graphs only, which run on any machine (onnx), or also compile engines with "
    "TensorRT, with TensorRT-RTX, or with whichever suits this machine's GPU if it has one (auto).",
)
@click.option(
    "--triton",
    metavar="DIR",
    type=PATH,
    help="Also write the bundle as model 'rbvsr' to a model repository of NVIDIA's Triton "
    "Inference Server.",
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
    window: str | None,
    target: Literal["onnx", "auto", "tensorrt", "tensorrt-rtx"],
    triton: Path | None,
    compiling: Compiling,
    as_json: bool,
    verbose: bool,
) -> None:
    """Convert a checkpoint to a bundle for rbvsr-run.

    Every graph of the bundle is verified against the PyTorch model.
    """
    int8 = precision == "int8"
    if int8 != bool(calibrate):
        raise click.UsageError(
            "--int8 needs --calibrate: name footage representative of what you will upscale"
            if int8
            else "--calibrate is only for --int8: use both or neither"
        )
    if int8 and opset not in (None, "19"):
        raise click.UsageError(f"--int8 needs --opset 19, not {opset}: leave --opset out")
    compiling.check_usage(target)
    if window is not None:
        _check_window_usage(precision, target, refine_threshold)
        if output == Path("model.plan"):
            output = Path(f"window{window}.onnx")
        if output.suffix != ".onnx":
            raise click.UsageError(
                f"--window writes an ONNX file: use -o with a name.onnx, not {output}"
            )
    with command_errors(verbose=verbose):
        for package in ("torch", "onnx", "onnxscript", "safetensors"):
            require(package, extra="export", purpose="exporting")
        require("onnxruntime", extra="cpu", purpose="exporting")
        from rbvsr_deploy.export.to_bundle import export_bundle
        from rbvsr_deploy.pretrained import DEFAULT_CHECKPOINT

        checkpoint = checkpoint or DEFAULT_CHECKPOINT
        if window is not None:
            from rbvsr_deploy.export.window import export_window

            found = export_window(
                checkpoint,
                output,
                frames=int(window),
                opset=int(opset or 18),
                clip=clip,
                report=report,
            )
            if as_json:
                show_json(
                    {"output": str(output), "window": int(window), **dataclasses.asdict(found)}
                )
            else:
                show(
                    f"{output}: windows of {window} frames, {output.stat().st_size / 1e6:.1f} MB; "
                    f"{found.psnr:.1f} dB from rbvsr-run on {found.frames} frames of {found.clip} "
                    f"(worst frame {found.worst_psnr:.1f} dB, largest difference "
                    f"{found.max_levels} of 255)"
                )
            return
        targets = _targets(target, compiling)

        verify = None
        if clip is not None:
            from rbvsr_deploy.parity.compare import Tolerance, verify_bundle
            from rbvsr_deploy.video import open_source

            open_source(clip).close()  # reports a missing clip before the long export
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
            report=report,
        )
        if targets:
            manifest = _compile(output, targets, compiling)
        if triton is not None:
            from rbvsr_deploy.triton.repository import NAME, write_repository

            write_repository(output, triton)
            report(f"wrote model '{NAME}' for Triton to {triton}")
        if as_json:
            show_json(dataclasses.asdict(manifest))
        else:
            show(
                f"{output}: {'int8 and ' * int8}{manifest.precision}, opset {manifest.opset}, "
                f"{output.stat().st_size / 1e6:.1f} MB"
            )


def _check_window_usage(precision: str, target: str, refine_threshold: float | None) -> None:
    """Refuse options of bundles."""
    for given, option in (
        (precision != "float32", "--fp16 and --int8"),
        (target != "onnx", "--target"),
        (refine_threshold is not None, "--refine-threshold"),
    ):
        if given:
            raise click.UsageError(
                f"--window cannot be combined with {option}: the programs that run windows convert "
                "and compile float32 files themselves, and clean once"
            )


def _targets(
    target: Literal["onnx", "auto", "tensorrt", "tensorrt-rtx"], compiling: Compiling
) -> list[Target]:
    """Choose what to compile before the long export, so that the impossible is reported at once."""
    from rbvsr_deploy.errors import EngineError

    if target == "onnx":
        return []
    try:
        return compiling.targets(target)
    except EngineError as error:
        if target != "auto":
            raise
        report(f"Graphs only: {error}")
        return []


def _compile(output: Path, targets: list[Target], compiling: Compiling) -> Manifest:
    """Compile engines into the bundle that has just been written."""
    from rbvsr_deploy.bundle import open_bundle
    from rbvsr_deploy.errors import EngineError

    try:
        compiling.into_bundle(output, targets)
    except EngineError as error:
        raise EngineError(f"{error}; '{output}' was written with graphs but no engines") from error
    return open_bundle(output).manifest
