"""Tests that inputs are synthesised like training clips, for sequences of any length."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.training.data.sharpening import sharpen
from rbvsr_deploy.training.degradations.clip_degradation import degrade, draw_degradation
from rbvsr_deploy.training.degradations.config import CLEAN, DegradationConfig
from rbvsr_deploy.training.evaluation.degraded_inputs import CLIP, DEGRADATIONS, degrade_items
from rbvsr_deploy.training.evaluation.sequences import Item
from rbvsr_deploy.video.images import read_image, write_image
from tests.training.conftest import make_photo

Frames = NDArray[np.uint8]

NOISE = msgspec.structs.replace(
    CLEAN,
    first=msgspec.structs.replace(
        CLEAN.first,
        noise=msgspec.structs.replace(CLEAN.first.noise, kinds={"gaussian": 1.0}),
    ),
)
"""Noise and the reduction only, so that no frame depends on others."""


def truth_item(folder: Path, frames: Frames, *, name: str = "a") -> Item:
    path = folder / "truth" / name
    path.mkdir(parents=True)
    for number, frame in enumerate(frames):
        write_image(path / f"{number:03}.png", image=frame)
    return Item(name, None, truth=path)


def degraded(item: Item, folder: Path, config: DegradationConfig, *, seed: int = 0) -> Frames:
    folder.mkdir()
    (done,) = degrade_items([item], folder, config, seed=seed)
    assert done == dataclasses.replace(item, inputs=folder / item.name)
    files = sorted((folder / item.name).iterdir())
    return np.stack([read_image(file) for file in files])


@pytest.mark.parametrize("config", DEGRADATIONS.values(), ids=DEGRADATIONS)
def test_inputs_are_degraded_like_training_clips(config: DegradationConfig, tmp_path: Path) -> None:
    """They are sharpened, then degraded in a way that does not change over the frames."""
    photo = make_photo(1)
    frames = np.stack([photo[t : t + 96, : 2 * 64] for t in range(5)])
    item = truth_item(tmp_path, frames)
    rng = np.random.default_rng([7, zlib.crc32(b"a")])
    drawn = draw_degradation(config, rng, length=CLIP, walk=False)
    whole = np.concatenate((frames, np.repeat(frames[-1:], CLIP - 5, axis=0)))
    expected = degrade(sharpen(whole), drawn)[:5]
    np.testing.assert_array_equal(degraded(item, tmp_path / "inputs", config, seed=7), expected)


def test_long_sequences_have_one_degradation(tmp_path: Path) -> None:
    """Every frame of a still image gets noise of the same strength, but no two frames get the same
    noise, even across clips.
    """
    still = np.repeat(make_photo(2, height=64, width=64)[None], CLIP + 4, axis=0)
    item = truth_item(tmp_path, still)
    inputs = degraded(item, tmp_path / "inputs", NOISE).astype(np.float64)
    assert inputs.shape == (CLIP + 4, 16, 16, 3)
    noise = inputs - inputs.mean(axis=0)
    strength = noise.std(axis=(1, 2, 3))
    np.testing.assert_allclose(strength, strength.mean(), rtol=0.25)
    likeness = np.corrcoef(noise.reshape(len(noise), -1)) - np.eye(len(noise))
    assert abs(likeness).max() < 0.5


def test_each_sequence_has_its_own_degradation(tmp_path: Path) -> None:
    """It depends on the name and the seed, not on other sequences."""
    frames = make_photo(3, height=64, width=64)[None]
    a, b = (truth_item(tmp_path, frames, name=name) for name in "ab")
    folders = [tmp_path / name for name in ("both", "only_b", "other_seed")]
    for folder in folders:
        folder.mkdir()
    degrade_items([a, b], folders[0], NOISE, seed=1)
    degrade_items([b], folders[1], NOISE, seed=1)
    degrade_items([b], folders[2], NOISE, seed=2)
    of_a, of_b = (read_image(folders[0] / name / "00000000.png") for name in "ab")
    alone, other = (read_image(folder / "b" / "00000000.png") for folder in folders[1:])
    np.testing.assert_array_equal(of_b, alone)
    assert (of_a != of_b).any()
    assert (of_b != other).any()


def test_sides_must_be_multiples_of_four(tmp_path: Path) -> None:
    """Other sizes are reported before anything is written."""
    good = truth_item(tmp_path, make_photo(4, height=64, width=64)[None])
    bad = truth_item(tmp_path, make_photo(4, height=64, width=66)[None], name="b")
    (tmp_path / "inputs").mkdir()
    with pytest.raises(MediaError, match="66x64, but only a ground truth with sides"):
        degrade_items([good, bad], tmp_path / "inputs", CLEAN, seed=0)
    assert list((tmp_path / "inputs").iterdir()) == []
