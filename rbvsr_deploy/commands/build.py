"""``rbvsr-build``: adds compiled engines to a bundle, or removes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import click

from rbvsr_deploy.commands._common import (
    JSON,
    PATH,
    VERBOSE,
    VERSION,
    Command,
    command_errors,
    show,
    show_json,
)
from rbvsr_deploy.commands._compile_options import Compiling, compile_options

__all__ = ["build"]


@click.command(cls=Command, context_settings={"show_default": True})
@click.argument("bundle", type=PATH)
@click.option(
    "--target",
    type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]),
    help="Compile with TensorRT, with TensorRT-RTX, which needs no GPU, or with whichever suits "
    "this machine's GPU (auto).",
)
@compile_options
@click.option(
    "--remove",
    metavar="SET",
    multiple=True,
    help="Remove an engine set, named as in rbvsr-info; can be repeated.",
)
@click.option("-o", "--output", type=PATH, help="Bundle to write.  [default: BUNDLE itself]")
@JSON
@VERBOSE
@VERSION
def build(
    bundle: Path,
    target: Literal["auto", "tensorrt", "tensorrt-rtx"] | None,
    compiling: Compiling,
    remove: tuple[str, ...],
    output: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Compile TensorRT engines into a bundle.

    An engine set of the same name is replaced. The bundle keeps its graphs, for machines that no
    engine set fits.
    """
    if not (target or remove):
        raise click.UsageError("nothing to do: use --target or --remove")
    compiling.check_usage(target)
    with command_errors(verbose=verbose):
        targets = compiling.targets(target) if target else []
        sets = compiling.into_bundle(bundle, targets, output=output, remove=remove)
        if as_json:
            show_json([dataclasses.asdict(s) | {"name": s.name} for s in sets])
        else:
            written = output or bundle
            count = f"{len(sets)} engine set{'s' * (len(sets) != 1)}"
            show(f"{written}: {count}, {written.stat().st_size / 1e6:.1f} MB")
