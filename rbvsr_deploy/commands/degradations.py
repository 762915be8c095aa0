"""``rbvsr degradations``: a contact sheet of what training does to a clip."""

from __future__ import annotations

from pathlib import Path

import click

from rbvsr_deploy.commands._common import PATH, VERBOSE, VERSION, edge, require, show

__all__ = ["degradations"]

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("clip", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path("degradations.png"),
    show_default=True,
    help="PNG to write.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random draw.")
@click.option(
    "--degradation",
    "name",
    default="published",
    show_default=True,
    type=click.Choice(["published", "moderate"]),
    help="Ranges and probabilities to draw from.",
)
@click.option(
    "--length", metavar="N", type=int, default=30, show_default=True, help="Frames of the clip."
)
@click.option(
    "--crop",
    metavar="PIXELS",
    type=int,
    default=64,
    show_default=True,
    help="Side of the degraded frames.",
)
@click.option(
    "--fixed",
    is_flag=True,
    help="Keep the parameters constant over the clip, and do not mirror it in time.",
)
@click.option("--json", "json_path", type=FILE, help="Also write the parameters to this file.")
@click.option("--replay", type=FILE, help="Use the parameters in this file, as --json writes them.")
@VERBOSE
@VERSION
def degradations(
    clip: Path,
    output: Path,
    seed: int,
    name: str,
    length: int,
    crop: int,
    fixed: bool,
    json_path: Path | None,
    replay: Path | None,
    verbose: bool,
) -> None:
    """Draw the degradations of a piece of CLIP, a video file or an image folder."""
    with edge(verbose=verbose):
        require("msgspec", extra="train", purpose="degrading a clip")
        from rbvsr_deploy.training.data.contact_sheet import write_contact_sheet

        steps, source = write_contact_sheet(
            output,
            clip,
            published=name == "published",
            seed=seed,
            length=length,
            crop=crop,
            stochastic=not fixed,
            write_to=json_path,
            replay=replay,
        )
        show(f"{output}: {steps} steps, frames from {source}")
