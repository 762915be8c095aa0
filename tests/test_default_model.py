"""The model that ships: what it makes of 300 frames stays what they are."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.pixels import eight_bits
from rbvsr_deploy.upscaler import Upscaler
from rbvsr_deploy.video import open_source
from tests.conftest import DATA

FRAMES, EDGE = 300, 16

Frame = NDArray[np.uint8]


def first_frame() -> Frame:
    """Of the sample, 20x12: (12, 20, 3)."""
    with open_source(DATA / "sample.mp4") as source:
        image = eight_bits(next(iter(source)).image)
    return np.asarray(cv2.resize(image, (20, 12), interpolation=cv2.INTER_AREA), np.uint8)


STILL = first_frame()

LONG: dict[str, Callable[[int], Frame]] = {
    "noise": lambda t: np.random.default_rng(t).integers(0, 256, STILL.shape, np.uint8),
    "black": lambda t: np.zeros_like(STILL),
    "white": lambda t: np.full_like(STILL, 255),
    "flat": lambda t: np.full_like(STILL, (180, 90, 60)),
    "still": lambda t: STILL,
}


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(device="cpu", scene_cuts=False)


@pytest.mark.parametrize("name", LONG)
def test_300_frames_stay_as_bright_as_they_are(upscaler: Upscaler, name: str) -> None:
    """Frame by frame within four levels of the input, and the last tenth within one of the first;
    of a clip that does not change, an output differs from the one before it by less than half a
    level, both ends of the clip left out.
    """
    frames = [LONG[name](t) for t in range(FRAMES)]
    outputs = np.stack(list(upscaler.frames(frames)))
    offsets = outputs.mean(axis=(1, 2)) - np.stack(frames).mean(axis=(1, 2))
    assert np.abs(offsets).max() < 4.0
    tenth = FRAMES // 10
    assert np.abs(offsets[:tenth].mean(axis=0) - offsets[-tenth:].mean(axis=0)).max() < 1.0
    if name != "noise":
        middle = outputs[EDGE:-EDGE].astype(np.int16)
        assert np.abs(np.diff(middle, axis=0)).mean(axis=(1, 2, 3)).max() < 0.5
