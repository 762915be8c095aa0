"""``rbvsr-train``: a recipe and clips into a checkpoint."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from rbvsr_deploy.commands._common import PATH, VERBOSE, VERSION, edge, require

if TYPE_CHECKING:
    from rbvsr_deploy.training.data.sources import SourceConfig

__all__ = ["train"]

_KINDS: dict[str, Literal["frames", "videos", "photos"]] = {
    "frames": "frames",
    "videos": "videos",
    "photos": "photos",
}


@click.command(context_settings={"show_default": True})
@click.argument("recipe", required=False)
@click.option(
    "--data",
    multiple=True,
    metavar="[KIND:]FOLDER",
    help="Videos, photographs or folders of frames to train on, in place of the recipe's; several "
    "times for several. A folder's kind is seen from what is in it, or given: frames:, videos: or "
    "photos:, for example frames:REDS/train_sharp.",
)
@click.option(
    "--validate",
    multiple=True,
    metavar="[KIND:]FOLDER",
    help="Clips that are held out, to measure PSNR on.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="Run folder; a run that is in it already goes on where it was.",
)
@click.option(
    "--from",
    "load_from",
    type=PATH,
    help="Checkpoint to start from: the first stage's latest.pth, or a published one.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change the recipe, for example --set optimizer.learning_rate=1e-4; several times for "
    "several.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--presets", is_flag=True, help="List the recipes that ship with the package.")
@click.option("--print", "print_recipe", is_flag=True, help="Print the recipe, to edit it.")
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
    """Train a network by RECIPE: the name of a preset, or a .toml file.

    Two stages make a model, each a recipe of its own; the second starts --from the first. Under
    torchrun, several GPUs or machines share the work.
    """
    with edge(verbose=verbose):
        from rbvsr_deploy.training.presets import PRESETS

        if presets:
            for name, path in PRESETS.items():
                click.echo(f"{name:18} {path.read_text().splitlines()[0].removeprefix('# ')}")
            return
        if recipe is None:
            raise click.UsageError(f"name a recipe: a .toml file, or one of {', '.join(PRESETS)}")
        if print_recipe:
            if recipe not in PRESETS:
                raise click.UsageError(f"{recipe!r} is none of the presets: {', '.join(PRESETS)}")
            click.echo(PRESETS[recipe].read_text(), nl=False)
            return
        if output is None:
            raise click.UsageError("name a run folder with --output")
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
    if not first:  # what all processes find out, one of them says
        logging.getLogger("rbvsr_deploy").setLevel(logging.ERROR)
    with TrainingDisplay() as display:
        model = train(config, output=output, device=device, on_step=display)
    if first:
        click.echo(f"{output / 'latest.pth'} and {model}: take either to rbvsr-export --checkpoint")


def _quoted(path: Path | str) -> str:
    """As TOML has it, which for a string is as JSON has it."""
    return json.dumps(str(path), ensure_ascii=False)


def _sources(place: str) -> list[SourceConfig]:
    """``frames:FOLDER`` is taken at its word; of ``FOLDER``, everything that it holds."""
    from rbvsr_deploy.training.data.sources import SourceConfig, find_sources

    kind, colon, path = place.partition(":")
    if colon and kind in _KINDS:
        return [SourceConfig(kind=_KINDS[kind], path=path)]
    return find_sources(Path(place))
