"""``rbvsr-train``: trains a network from a recipe and clips."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from rbvsr_deploy.commands._common import (
    PATH,
    VERBOSE,
    VERSION,
    Command,
    command_errors,
    require,
    show,
)

if TYPE_CHECKING:
    from rbvsr_deploy.training.data.sources import SourceConfig

__all__ = ["train"]

_KINDS: dict[str, Literal["frames", "videos", "photos"]] = {
    "frames": "frames",
    "videos": "videos",
    "photos": "photos",
}


@click.command(cls=Command, context_settings={"show_default": True})
@click.argument("recipe", required=False)
@click.option(
    "--data",
    multiple=True,
    metavar="[KIND:]FOLDER",
    help="Folder of videos, photographs or frame folders to train on instead of the recipe's; its "
    "kind is detected unless given as videos:, photos: or frames:, such as "
    "frames:REDS/train_sharp; can be repeated.",
)
@click.option(
    "--validate",
    multiple=True,
    metavar="[KIND:]FOLDER",
    help="Held-out clips to measure PSNR on; can be repeated.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="Run folder; an interrupted run in it resumes where it left off.",
)
@click.option(
    "--from",
    "load_from",
    type=PATH,
    help="Checkpoint to start from: latest.pth of the first stage, or a published one.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a value of the recipe, such as --set optimizer.learning_rate=1e-4; can be "
    "repeated.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Device to train on; auto is CUDA where there is a GPU.",
)
@click.option("--presets", is_flag=True, help="List the recipes that come with the package.")
@click.option("--print", "print_recipe", is_flag=True, help="Print the recipe, for editing.")
@VERBOSE
@VERSION
def train(
    recipe: str | None,
    data: tuple[str, ...],
    validate: tuple[str, ...],
    output: Path | None,
    load_from: Path | None,
    changes: tuple[str, ...],
    device: str,
    presets: bool,
    print_recipe: bool,
    verbose: bool,
) -> None:
    """Train a network from a recipe.

    RECIPE is the name of a preset or a .toml file. A model is trained in two stages, each with its
    own recipe; the second starts --from the first. With torchrun, several GPUs or machines share
    the work.
    """
    with command_errors(verbose=verbose):
        from rbvsr_deploy.training.presets import PRESETS

        if presets:
            for name, path in PRESETS.items():
                show(f"{name:18} {path.read_text('utf-8').splitlines()[0].removeprefix('# ')}")
            return
        if recipe is None:
            raise click.UsageError(
                f"no recipe given: use a .toml file, or one of {', '.join(PRESETS)}"
            )
        if print_recipe:
            if recipe not in PRESETS:
                raise click.UsageError(
                    f"{recipe!r} is not a preset: use one of {', '.join(PRESETS)}"
                )
            show(PRESETS[recipe].read_text("utf-8").removesuffix("\n"))
            return
        if output is None:
            raise click.UsageError("no run folder given: use --output")
        _train(recipe, data, validate, output, load_from, changes, device)


def _train(
    recipe: str,
    data: tuple[str, ...],
    validate: tuple[str, ...],
    output: Path,
    load_from: Path | None,
    changes: tuple[str, ...],
    device: str,
) -> None:
    for package in ("torch", "msgspec", "lightning_fabric", "safetensors"):
        require(package, extra="train", purpose="training")
    from rbvsr_deploy.commands._progress import TrainingDisplay
    from rbvsr_deploy.training.config import load_config
    from rbvsr_deploy.training.run import train

    if load_from is not None:
        changes = (*changes, f"load_from={_quoted(load_from)}")
    if validate:
        held_out = [s for place in validate for s in _sources(place)]
        items = ", ".join(f"{{kind='{s.kind}', path={_quoted(s.path)}}}" for s in held_out)
        changes = (*changes, f"validation.sources=[{items}]")
    sources = [s for place in data for s in _sources(place)]
    config = load_config(recipe, changes=changes, sources=sources)
    first = os.environ.get("RANK", "0") == "0"
    if not first:  # what all processes find, one of them reports
        logging.getLogger("rbvsr_deploy").setLevel(logging.ERROR)
    with TrainingDisplay() as display:
        model = train(config, output=output, device=device, on_step=display)
    if first:
        show(f"{output / 'latest.pth'} and {model}: export either with rbvsr-export --checkpoint")


def _quoted(path: Path | str) -> str:
    """Quote a string for TOML, which is the same as for JSON."""
    return json.dumps(str(path), ensure_ascii=False)


def _sources(place: str) -> list[SourceConfig]:
    """Return the clips of ``KIND:FOLDER``, or those of every kind found in ``FOLDER``."""
    from rbvsr_deploy.training.data.sources import SourceConfig, find_sources

    kind, colon, path = place.partition(":")
    if colon and kind in _KINDS:
        return [SourceConfig(kind=_KINDS[kind], path=path)]
    return find_sources(Path(place))
