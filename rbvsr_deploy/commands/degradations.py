"""``rbvsr degradations``: shows on a contact sheet how training degrades a clip."""

from __future__ import annotations

from pathlib import Path

import click

from rbvsr_deploy.commands._common import (
    PATH,
    VERBOSE,
    VERSION,
    Command,
    Count,
    command_errors,
    require,
    show,
)

__all__ = ["degradations"]

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(cls=Command)
@click.argument("clip", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path("degradations.png"),
    show_default=True,
    help="PNG file to write.",
)
@click.option(
    "--seed",
    metavar="N",
    type=Count(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Seed of the random draw.",
)
@click.option(
    "--degradation",
    "name",
    default="published",
    show_default=True,
    type=click.Choice(["published", "moderate"]),
    help="Ranges and probabilities to draw the degradation from.",
)
@click.option(
    "--length",
    metavar="N",
    type=Count(1, 10_000),
    default=30,
    show_default=True,
    help="Number of frames to degrade.",
)
@click.option(
    "--crop",
    metavar="PIXELS",
    type=Count(1, 4096),
    default=64,
    show_default=True,
    help="Width and height of the degraded frames.",
)
@click.option(
    "--fixed",
    is_flag=True,
    help="Keep the parameters constant over the clip, without mirroring it in time.",
)
@click.option("--record", type=FILE, help="Also write the drawn parameters to this file, as JSON.")
@click.option("--replay", type=FILE, help="Use the parameters in a file written by --record.")
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
    record: Path | None,
    replay: Path | None,
    verbose: bool,
) -> None:
    """Show synthetic degradations of a clip on a contact sheet.

    CLIP is a video or an image folder. The sheet has a row for each step of the degradation.
    """
    with command_errors(verbose=verbose):
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
            write_to=record,
            replay=replay,
        )
        show(f"{output}: {steps} steps, frames from {source}")
