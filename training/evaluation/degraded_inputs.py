"""Synthesises low-quality inputs from the ground truth, with the degradations of training."""

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
"""Number of frames that are degraded together, as in training. Longer sequences are compressed in
clips of this length, and only one clip is held in memory at a time."""


def degrade_items(
    items: Sequence[Item],
    folder: Path,
    config: DegradationConfig,
    *,
    seed: int,
    progress: Callable[[str, int, int | None], None] = lambda name, done, total: None,
) -> list[Item]:
    """Synthesise the inputs of sequences, sharpening and degrading them like training clips.

    Every sequence has its own degradation, which stays the same over its frames. It depends only on
    the seed and the name of the sequence, not on which other sequences are scored.

    Args:
        items: sequences with a ground truth.
        folder: folder in which a subfolder of PNG files is created for each sequence.
        config: ranges and probabilities of the degradations.
        seed: seed of the random draws.
        progress: called with a description, the number of finished frames, and the total if known.

    Returns:
        The same sequences with these inputs.

    Raises:
        MediaError: a ground truth cannot be read, or its sides are not multiples of four.
    """
    for item in items:
        with open_source(_truth(item)) as source:
            if source.width % SCALE or source.height % SCALE:
                raise MediaError(
                    f"{item.truth} is {source.width}x{source.height}, but only a ground truth with "
                    f"sides that are multiples of {SCALE} can be degraded: crop it"
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
            # The parameters are for whole clips: pad the last one, and drop the padding again.
            whole = sharpen(np.stack(clip + clip[-1:] * (CLIP - len(clip))))
            degraded = degrade(whole, _with_own_noise(degradation, done // CLIP))
            for image in degraded[: len(clip)]:
                write_image(folder / f"{done:08}.png", image=image)
                done += 1
            progress(f"degrading {item.name}", done, source.frame_count)
    return folder


def _with_own_noise(degradation: Degradation, clip: int) -> Degradation:
    """Return the degradation for another clip of the sequence, with different noise."""
    steps = tuple(
        msgspec.structs.replace(step, seed=step.seed + clip)
        if isinstance(step, GaussianNoise | PoissonNoise)
        else step
        for step in degradation.steps
    )
    return msgspec.structs.replace(degradation, steps=steps)


def _truth(item: Item) -> Path:
    if item.truth is None:
        raise ValueError(f"{item.name} has no ground truth to degrade")
    return item.truth
