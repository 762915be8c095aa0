"""``rbvsr-export``: a checkpoint into a bundle."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import click

from rbvsr_deploy.commands.edge import JSON, PATH, VERBOSE, VERSION, edge, require

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
    "--opset", type=click.Choice(["17", "18", "19"]), default="18", help="ONNX operator set."
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
@JSON
@VERBOSE
@VERSION
def export(
    checkpoint: Path | None,
    output: Path,
    precision: str,
    opset: str,
    refine_threshold: float | None,
    clip: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Turn a checkpoint into a bundle that rbvsr-run takes, verified against the torch model."""
    with edge(verbose=verbose):
        for package in ("torch", "onnx", "onnxscript", "safetensors"):
            require(package, extra="export", purpose="exporting")
        require("onnxruntime", extra="cpu", purpose="exporting")
        from rbvsr_deploy.export.export import export_bundle
        from rbvsr_deploy.models import DEFAULT_CHECKPOINT

        checkpoint = checkpoint or DEFAULT_CHECKPOINT

        verify = None
        if clip is not None:
            from rbvsr_deploy.compare import verify_bundle
            from rbvsr_deploy.video import open_source

            open_source(clip).close()  # a missing clip is told before the long export
            verify = partial(
                verify_bundle,
                checkpoint=checkpoint,
                clip=clip,
            )
        manifest = export_bundle(
            checkpoint,
            output,
            precision="float16" if precision == "float16" else "float32",
            opset=int(opset),
            refine_threshold=refine_threshold,
            verify=verify,
            report=lambda line: click.echo(line, err=True),
        )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(manifest), indent=1))
    else:
        click.echo(
            f"{output}: {manifest.precision}, opset {manifest.opset}, "
            f"{output.stat().st_size / 1e6:.1f} MB"
        )
