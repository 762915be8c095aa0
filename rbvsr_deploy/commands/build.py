"""``rbvsr-build``: compiled engines into a bundle, and out of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from rbvsr_deploy.commands.compile_options import Compiling, compile_options
from rbvsr_deploy.commands.edge import JSON, PATH, VERBOSE, VERSION, edge, show

__all__ = ["build"]


@click.command(context_settings={"show_default": True})
@click.argument("bundle", type=PATH)
@click.option("--here", is_flag=True, help="Compile for this machine's GPU.")
@click.option(
    "--target",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    help="Compile with this TensorRT; TensorRT-RTX needs no GPU.",
)
@compile_options
@click.option(
    "--remove",
    metavar="SET",
    multiple=True,
    help="Take an engine set out, named as rbvsr-info does; may be given several times.",
)
@click.option("-o", "--output", type=PATH, help="Bundle to write.  [default: BUNDLE itself]")
@JSON
@VERBOSE
@VERSION
def build(
    bundle: Path,
    here: bool,
    target: str | None,
    compiling: Compiling,
    remove: tuple[str, ...],
    output: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Compile the graphs of a bundle and keep the engines in it.

    A set of the same name is replaced. The graphs stay: where no set fits, they are run or compiled
    again.
    """
    if here and target:
        raise click.UsageError("--here takes the TensorRT that fits: leave out it or --target")
    if not (here or target or remove):
        raise click.UsageError("nothing to do: give --here, --target or --remove")
    if compiling.compute_capabilities and not target:
        raise click.UsageError("--compute-capability needs --target")
    with edge(verbose=verbose):
        targets = []
        match target:
            case "tensorrt" | "tensorrt-rtx":
                targets = compiling.targets(target)
            case None if here:
                targets = compiling.targets("here")
        sets = compiling.into_bundle(bundle, targets, output=output, remove=remove)
    written = output or bundle
    if as_json:
        show(json.dumps([dataclasses.asdict(s) | {"name": s.name} for s in sets], indent=1))
    else:
        count = f"{len(sets)} engine set{'s' * (len(sets) != 1)}"
        show(f"{written}: {count}, {written.stat().st_size / 1e6:.1f} MB")
