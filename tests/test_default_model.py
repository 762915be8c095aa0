"""Tests that the default model keeps brightness and colour over 300 frames, in any bands."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.pixels import eight_bits
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE
from rbvsr_deploy.runtime.memory_plan import MemoryPlan
from rbvsr_deploy.runtime.settings import Settings
from rbvsr_deploy.runtime.stream import Stream
from rbvsr_deploy.upscaler import Upscaler
from rbvsr_deploy.video import open_source
from tests.conftest import DATA

FRAMES, EDGE = 300, 16

Frame = NDArray[np.uint8]


def first_frame() -> Frame:
    """Return the first frame of the sample, reduced to shape (12, 20, 3)."""
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


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_300_frames_keep_their_brightness(upscaler: Upscaler, name: str) -> None:
    """The mean of every output is within four levels of its input, and the offset of the last
    tenth within one level of that of the first. In the middle of a static clip, consecutive
    outputs differ by less than half a level.
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


def test_bands_are_invisible() -> None:
    """A frame whose output is computed in bands is, to the bit, the one computed at once."""
    clip = np.random.default_rng(5).integers(0, 256, (2, 72, 24, 3), np.uint8)
    outputs = []
    for band in (72, 8):
        with open_engine(DEFAULT_BUNDLE, device="cpu") as engine:
            stream = Stream(engine, Settings(cleanings=1), size=(72, 24))
            plan = MemoryPlan(window=2, batch=1, band=band, in_memory=2)
            stream._context.budget.plan = plan
            with stream:
                images = [image for frame in clip for image in stream.push(frame)]
                images += stream.flush()
        outputs.append(np.stack([image.image for image in images]))
    np.testing.assert_array_equal(outputs[1], outputs[0])
