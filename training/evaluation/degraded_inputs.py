"""Low-quality inputs to evaluate with, made of the truth by a degradation of the training."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.pixels import eight_bits
from rbvsr_deploy.training.data.sharpening import sharpen
from rbvsr_deploy.training.degradations.clip_degradation import (
    Degradation,
    degrade,
    draw_degradation,
)
from rbvsr_deploy.training.degradations.config import CLEAN, MODERATE, PUBLISHED, DegradationConfig
from rbvsr_deploy.training.degradations.steps import GaussianNoise, PoissonNoise
from rbvsr_deploy.training.evaluation.sequences import Item
from rbvsr_deploy.video import open_source
from rbvsr_deploy.video.images import write_image

__all__ = ["CLIP", "DEGRADATIONS", "degrade_items"]

DEGRADATIONS = {"published": PUBLISHED, "moderate": MODERATE, "clean": CLEAN}

CLIP = 30
"""Frames that are degraded together, as many as in training: a longer sequence is compressed in
clips of so many, and only one of them is held at a time."""


def degrade_items(
    items: Sequence[Item],
    folder: Path,
    config: DegradationConfig,
    *,
    seed: int,
    progress: Callable[[str, int, int | None], None] = lambda name, done, total: None,
) -> list[Item]:
    """Make the inputs of sequences, sharpened and degraded as clips for training are.

    Every sequence has a degradation of its own that stays the same over its frames. It depends on
    the seed and the sequence's name alone, not on what else is scored.

    Args:
        items: with a truth.
        folder: where a folder of PNG is made for each.
        progress: called with what is done, frames that are done, and, where known, all.

    Returns:
        The same with these inputs.

    Raises:
        MediaError: a truth cannot be read, or its sides are no multiples of four.
    """
    for item in items:
        with open_source(_truth(item)) as source:
            if source.width % SCALE or source.height % SCALE:
                raise MediaError(
                    f"{item.truth} is {source.width}x{source.height}, and what is to be degraded "
                    f"needs sides that are multiples of {SCALE}: cut it to such a size"
                )
    return [
        dataclasses.replace(
            item, inputs=_degrade_item(item, folder / item.name, config, seed, progress)
        )
        for item in items
    ]


def _degrade_item(
    item: Item,
    folder: Path,
    config: DegradationConfig,
    seed: int,
    progress: Callable[[str, int, int | None], None],
) -> Path:
    rng = np.random.default_rng([seed, zlib.crc32(item.name.encode())])
    degradation = draw_degradation(config, rng, length=CLIP, walk=False)
    folder.mkdir()
    done = 0
    with open_source(_truth(item)) as source:
        images = (eight_bits(frame.image) for frame in source)
        while clip := list(itertools.islice(images, CLIP)):
            # The parameters are for whole clips; what follows the last frame is dropped again.
            whole = sharpen(np.stack(clip + clip[-1:] * (CLIP - len(clip))))
            degraded = degrade(whole, _with_own_noise(degradation, done // CLIP))
            for image in degraded[: len(clip)]:
                write_image(folder / f"{done:08}.png", image=image)
                done += 1
            progress(f"degrading {item.name}", done, source.frame_count)
    return folder


def _with_own_noise(degradation: Degradation, clip: int) -> Degradation:
    """The same for another clip of the sequence, whose noise is not that of the first again."""
    steps = tuple(
        msgspec.structs.replace(step, seed=step.seed + clip)
        if isinstance(step, GaussianNoise | PoissonNoise)
        else step
        for step in degradation.steps
    )
    return msgspec.structs.replace(degradation, steps=steps)


def _truth(item: Item) -> Path:
    if item.truth is None:
        raise ValueError(f"{item.name} has no truth to be degraded")
    return item.truth
