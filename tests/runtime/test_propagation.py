"""Tests propagation: the schedule itself, on an engine whose arithmetic a test can follow, and its
output, on a real one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rbvsr_deploy.checkpoint import load_checkpoint
from rbvsr_deploy.engines import Engine, open_engine
from rbvsr_deploy.runtime.context import Context
from rbvsr_deploy.runtime.memory_plan import MemoryBudget, MemoryPlan
from rbvsr_deploy.runtime.propagation import propagate
from rbvsr_deploy.runtime.scene_frames import SceneFrames
from rbvsr_deploy.runtime.settings import Settings
from tests.conftest import moving_clip
from tests.support.engine_doubles import (
    ArithmeticEngine,
    backward_state,
    forward_state,
    output_level,
)


def upscaled_levels(
    engine: ArithmeticEngine,
    values: Sequence[int],
    *,
    window: int,
    batch: int = 1,
    start: int = 0,
    end: int | None = None,
    stop: int | None = None,
    forward: int | None = None,
) -> tuple[list[int], list[int]]:
    """Return the levels of the upscaled frames with these values, and their forward states."""
    end = len(values) if end is None else end
    plan = MemoryPlan(window=window, batch=batch, band=1, in_memory=2)
    with Context(engine, Settings(), size=(1, 1), budget=MemoryBudget(plan)) as context:
        frames = SceneFrames(context)
        for i in range(0, len(values), batch):
            block = np.array(values[i : i + batch], np.float64).reshape(-1, 1, 1, 1)
            frames.add(i, block.repeat(3, axis=1), count=len(block))
        upscaled = propagate(
            context,
            frames,
            start=start,
            end=end,
            stop=end if stop is None else stop,
            forward_state=None if forward is None else np.full((1, 1, 1, 1), float(forward)),
        )
        got, states = [], []
        for image, state in upscaled:
            got.append(int(image[0, 0, 0]))
            states.append(int(state[0, 0, 0, 0]))
        assert len(context.kept) == 0
        return got, states


class Asynchronous(ArithmeticEngine):
    """An engine whose states are computed in a few places, and copied."""

    asynchronous = True


@pytest.mark.parametrize("kind", [ArithmeticEngine, Asynchronous])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize("n", [1, 2, 7, 11])
def test_every_state_has_seen_what_it_should(
    n: int, window: int, batch: int, kind: type[ArithmeticEngine]
) -> None:
    """Frame i's backward state comes from frames n-1..i, its forward state from 0..i, each with the
    flow from its frame to the neighbour the state came from; for any window and batch.
    """
    values = [3 + 5 * i for i in range(n)]
    got, states = upscaled_levels(kind(), values, window=window, batch=batch)
    want = [
        output_level(v, backward_state(values[i:]), forward_state(values[: i + 1]))
        for i, v in enumerate(values)
    ]
    assert got == want
    assert states == [forward_state(values[: i + 1]) for i in range(n)]


@pytest.mark.parametrize("kind", [ArithmeticEngine, Asynchronous])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("window", [1, 2, 4, 100])
@pytest.mark.parametrize(("start", "end", "stop"), [(0, 4, 6), (4, 8, 8), (4, 5, 9), (3, 8, 11)])
def test_a_chunk_of_a_scene(
    start: int, end: int, stop: int, window: int, batch: int, kind: type[ArithmeticEngine]
) -> None:
    """The backward branch begins at ``stop``, the forward branch with the given state."""
    values = [3 + 5 * i for i in range(11)]
    carried = forward_state(values[:start]) if start else None
    got, states = upscaled_levels(
        kind(),
        values,
        window=window,
        batch=batch,
        start=start,
        end=end,
        stop=stop,
        forward=carried,
    )
    want = [
        output_level(values[i], backward_state(values[i:stop]), forward_state(values[: i + 1]))
        for i in range(start, end)
    ]
    assert got == want
    assert states == [forward_state(values[: i + 1]) for i in range(start, end)]


def test_recomputing_costs_less_than_one_more_backward_pass() -> None:
    """If all states are held: n backward steps; with windows of w frames: n - w more."""
    for window, expected in ((100, 100), (10, 190), (1, 199)):
        engine = ArithmeticEngine()
        upscaled_levels(engine, range(100), window=window)
        assert engine.items["backward"] == expected
        assert engine.items["forward"] == engine.items["reconstruct"] == 100
        assert engine.items["flow"] <= 99 + expected


def test_the_device_holds_a_window_of_states() -> None:
    """The number of states on the device does not depend on the number of frames."""
    most = []
    for n in (50, 100, 400):
        engine = ArithmeticEngine()
        upscaled_levels(engine, range(n), window=10, batch=2)
        most.append(engine.most_states)
    assert most[0] == most[1] == most[2]
    assert most[0] < 20


def upscaled(
    engine: Engine, clip: NDArray[np.uint8], plan: MemoryPlan, *, deep: bool = False
) -> NDArray[Any]:
    size = clip.shape[1], clip.shape[2]
    budget = MemoryBudget(plan)
    with Context(engine, Settings(), size=size, budget=budget, deep=deep) as context:
        frames = SceneFrames(context)
        for i in range(0, len(clip), plan.batch):
            images = clip[i : i + plan.batch]
            (block,) = engine.run("ingest", image=engine.upload(images))
            (block, _) = engine.run("clean", frame=block)
            frames.add(i, block, count=len(images))
        upscaled = propagate(context, frames, start=0, end=len(clip), stop=len(clip))
        return np.stack([image for image, _ in upscaled])


@pytest.mark.slow
def test_the_plan_does_not_change_a_bit(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    """30 frames of 96x54: whatever the window, the batch, the bands and the frames that stay on
    the device, the output is equal bit for bit, and that of the torch model on the whole scene
    within one level.
    """
    clip = moving_clip(30, 54, 96)
    plans = [
        MemoryPlan(window=window, batch=batch, band=band, in_memory=in_memory)
        for window, batch, band, in_memory in (
            (30, 1, 54, 30),
            (1, 1, 17, 0),
            (7, 4, 54, 10),
            (16, 1, 54, 10),
            (30, 4, 17, 50),
        )
    ]
    with open_engine(tiny_bundle, device="cpu") as engine:
        first = upscaled(engine, clip, plans[0])
        for plan in plans[1:]:
            np.testing.assert_array_equal(upscaled(engine, clip, plan), first, err_msg=str(plan))
    frames = torch.from_numpy(clip).permute(0, 3, 1, 2)[None].float() / 255
    with torch.no_grad():
        whole = load_checkpoint(tiny_checkpoint).model(frames)[0].clamp(0, 1)
    levels = (255 * whole).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(first - levels).max() <= 1
    assert (first != levels).mean() < 1e-4  # values halfway between two levels


@pytest.mark.parametrize("model", ["tiny_bundle", "tiny_checkpoint"])
def test_frames_may_wait_anywhere(model: str, request: pytest.FixtureRequest) -> None:
    """On ONNX Runtime and on torch, frames that stay on the device and those that come back from
    the disk give the same output, compared in 16 bits.
    """
    clip = moving_clip(9, 24, 31)
    with open_engine(request.getfixturevalue(model), device="cpu") as engine:
        plans = [MemoryPlan(window=4, batch=2, band=24, in_memory=n) for n in (100, 5, 0)]
        first, *others = (upscaled(engine, clip, plan, deep=True) for plan in plans)
    assert first.dtype == np.uint16
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("band", [1, 2, 5, 16, 33])
def test_bands_are_exact_in_floating_point(
    band: int, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are, with every band height down to one row, and with a shorter last band."""
    clip = moving_clip(3, 33, 40)
    bands: list[NDArray[Any]] = []
    with open_engine(tiny_bundle, device="cpu") as engine:
        whole = upscaled(engine, clip, MemoryPlan(window=3, batch=2, band=33, in_memory=3))
        run = engine.run

        def recording(graph: str, **arrays: Any) -> tuple[Any, ...]:
            if graph == "reconstruct":
                bands.append(arrays["frame"])
            return run(graph, **arrays)

        monkeypatch.setattr(engine, "run", recording)
        got = upscaled(engine, clip, MemoryPlan(window=3, batch=2, band=band, in_memory=3))
    np.testing.assert_array_equal(got, whole)
    assert max(array.shape[2] for array in bands) <= band + 4
    assert len(bands) == 2 * -(-33 // band)
