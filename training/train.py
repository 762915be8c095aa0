"""The training script: ``python -m rbvsr_deploy.training.train --help``."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import cv2
import torch

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.training.old_data import TrainingSet, load_photos, load_videos
from rbvsr_deploy.training.run import TrainingConfig, train

__all__ = ["main"]

_FOLDER = click.Path(exists=True, path_type=Path)


@click.command()
@click.option("--photos", multiple=True, type=_FOLDER, help="Folder of photographs; repeatable.")
@click.option("--videos", multiple=True, type=_FOLDER, help="Folder of videos; repeatable.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Run folder.")
@click.option("--iterations", default=100_000, show_default=True, help="Of the joint phase.")
@click.option("--flow-iterations", default=3_000, show_default=True, help="Of the flow phase.")
@click.option("--batch", default=4, show_default=True, help="Clips per iteration.")
@click.option("--length", default=6, show_default=True, help="Frames per clip.")
@click.option("--crop", default=48, show_default=True, help="Side of the degraded frames.")
@click.option("--learning-rate", default=4e-4, show_default=True, help="Of the joint phase.")
@click.option(
    "--reduction", default=2, show_default=True, help="Sources are made this much smaller first."
)
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--threads", "workers", default=2, show_default=True, help="Threads that share the batch."
)
@click.option("--minutes", type=float, help="Wall-clock limit; the schedule ends with it.")
def main(
    photos: Iterable[Path], videos: Iterable[Path], output: Path, reduction: int, **options: Any
) -> None:
    """Train the compact model on photographs under a synthetic camera and on videos."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    cv2.setNumThreads(1)  # the batches are prepared beside the training, which has the processors
    torch.set_num_threads(1)  # the batch is what is shared out, see TrainingConfig.workers
    config = TrainingConfig(**options)
    cache = output / "cache"
    try:
        data = TrainingSet(
            load_photos(photos, cache=cache, reduction=reduction),
            videos=load_videos(videos, cache=cache, reduction=reduction),
            seed=config.seed,
        )
        click.echo(train(config, data=data, output=output))
    except (RbvsrError, ValueError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
