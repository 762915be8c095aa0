"""Tests where cleaned frames are kept: on the device as the plan allows, else in the spool."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from rbvsr_deploy.errors import DeviceMemoryError
from rbvsr_deploy.runtime.context import Context
from rbvsr_deploy.runtime.memory_plan import MemoryBudget, MemoryPlan
from rbvsr_deploy.runtime.scene_frames import SceneFrames
from rbvsr_deploy.runtime.settings import Settings
from tests.support.engine_doubles import ArithmeticEngine


def context_of(*, in_memory: int, batch: int = 2) -> Context:
    plan = MemoryPlan(window=4, batch=batch, band=1, in_memory=in_memory)
    return Context(ArithmeticEngine(), Settings(), size=(1, 1), budget=MemoryBudget(plan))


def block(*values: float) -> np.ndarray:
    return np.array(values).reshape(-1, 1, 1, 1).repeat(3, axis=1)


@pytest.fixture(params=[0, 3, 100])
def context(request: pytest.FixtureRequest) -> Iterator[Context]:
    with context_of(in_memory=request.param) as context:
        yield context


def test_flows_to_frames_that_arrive_later(context: Context) -> None:
    """The flow out of a block is computed once the next frame is there."""
    frames = SceneFrames(context)
    frames.add(0, block(0.0, 10.0), count=2)
    assert frames.flows(0, 1, step=1)[0, 0, 0, 0] == 10.0
    frames.add(2, block(50.0), count=1)
    assert frames.flows(1, 2, step=1)[0, 0, 0, 0] == 40.0
    assert frames.flows(2, 3, step=-1)[0, 0, 0, 0] == -40.0
    frames.add(3, block(57.0), count=1)
    assert frames.flows(2, 3, step=1)[0, 0, 0, 0] == 7.0
    assert frames.flows(3, 4, step=-1)[0, 0, 0, 0] == -7.0


class CountingEngine(ArithmeticEngine):
    """Records the number of pairs of every call of ``flow``."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[int] = []

    def run(self, graph: str, **arrays: Any) -> tuple[Any, ...]:
        if graph == "flow":
            self.pairs.append(len(arrays["reference"]))
        return super().run(graph, **arrays)

    def join(self, arrays: Sequence[Any]) -> Any:
        return np.concatenate(arrays)


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (10, 4), (9, 2), (5, 1), (3, 4)])
@pytest.mark.parametrize("in_memory", [0, 100])
def test_flow_runs_once_per_block(count: int, batch: int, in_memory: int) -> None:
    """Each direction of a block is one call of the same shape: only the block at the end of the
    scene, which has no frame beyond it, and an incomplete one have fewer pairs.
    """
    engine = CountingEngine()
    plan = MemoryPlan(window=4, batch=batch, band=1, in_memory=in_memory)
    values = [float(7 * i * i) for i in range(count)]
    with Context(engine, Settings(), size=(1, 1), budget=MemoryBudget(plan)) as context:
        frames = SceneFrames(context)
        for i in range(0, count, batch):
            some = values[i : i + batch]
            frames.add(i, block(*some), count=len(some))
        for i in reversed(range(count - 1)):
            assert frames.flows(i, i + 1, step=1)[0, 0, 0, 0] == values[i + 1] - values[i]
        for i in range(1, count):
            assert frames.flows(i, i + 1, step=-1)[0, 0, 0, 0] == values[i - 1] - values[i]
    sizes = [min(batch, count - i) for i in range(0, count, batch)]
    later, earlier = [*sizes[:-1], sizes[-1] - 1], [sizes[0] - 1, *sizes[1:]]
    assert engine.pairs == [n for n in (*reversed(later), *earlier) if n]


def test_as_many_frames_as_planned_stay_on_the_device() -> None:
    """The others are spooled; memory that becomes free is used again."""
    with context_of(in_memory=5) as context:
        frames = SceneFrames(context)
        for i in range(0, 10, 2):
            frames.add(i, block(i, i + 1), count=2)
        frames.download(0)  # waits for the last one
        assert [i in context.spool for i in range(10)] == [False] * 4 + [True] * 6
        frames.forget(before=3)  # the block of frame 2 is still needed
        frames.add(10, block(10, 11), count=2)
        frames.download(3)
        assert 10 not in context.spool
        frames.add(12, block(12, 13), count=2)
        frames.download(3)
        assert 12 in context.spool
        assert len(context.spool) == 8


def test_arrays_that_are_partly_in_use_count_in_full() -> None:
    """A frame in an array of its own, whose place in the batch is lost, counts as two."""
    with context_of(in_memory=4) as context:
        frames = SceneFrames(context)
        frames.add(0, block(0.0), count=1)
        frames.add(1, block(1.0), count=1, places=2)
        frames.add(2, block(2.0), count=1, places=2)
        frames.download(0)
        assert [i in context.spool for i in range(3)] == [False, False, True]


def test_less_memory_moves_all_frames_and_splits_blocks() -> None:
    """Forgotten frames stay forgotten, and replaced ones replaced."""
    with context_of(in_memory=6, batch=4) as context:
        frames = SceneFrames(context)
        frames.add(0, block(0, 1, 2, 3), count=4)
        frames.add(4, block(4, 5, 6, 7), count=4)
        frames.add(8, block(8, 9, 10), count=3)
        frames.add(4, block(40, 50, 60, 70), count=4)
        frames.forget(before=2)
        frames.shrink(DeviceMemoryError("the GPU is full"))
        assert context.budget.plan == MemoryPlan(window=2, batch=2, band=1, in_memory=0)
        assert [frames.block_end(i) for i in range(2, 11)] == [4, 4, 6, 6, 8, 8, 10, 10, 11]
        values = [frames.download(i)[0, 0, 0, 0] for i in range(2, 11)]
        assert values == [2, 3, 40, 50, 60, 70, 8, 9, 10]
        assert sorted(i for i in range(12) if i in context.spool) == list(range(2, 11))
        np.testing.assert_array_equal(frames.frames(8, 10), block(8, 9))


@pytest.mark.parametrize("seed", range(40))
def test_any_order_of_calls(seed: int) -> None:
    """Adding, replacing, using, forgetting and shrinking, against plain dictionaries."""
    rng = random.Random(seed)
    with context_of(in_memory=rng.choice([0, 2, 5, 9, 100]), batch=3) as context:
        frames = SceneFrames(context)
        held: dict[int, int] = {}
        number, flows = 0, False
        for _ in range(120):
            match rng.choice(["add", "add", "replace", "frame", "flow", "forget", "shrink"]):
                case "add":
                    values = rng.sample(range(1000), rng.randint(1, context.budget.plan.batch))
                    frames.add(number, block(*values), count=len(values))
                    held |= dict(enumerate(values, number))
                    number += len(values)
                case "replace" if held and not flows:  # as cleaning again does
                    start = rng.choice(sorted(held))
                    if start in (0, *(frames.block_end(i) for i in held)):
                        stop = frames.block_end(start)
                        values = rng.sample(range(1000), stop - start)
                        frames.add(start, block(*values), count=len(values))
                        held |= dict(enumerate(values, start))
                case "frame" if held:
                    start = rng.choice(sorted(held))
                    stop = rng.randint(start + 1, frames.block_end(start))
                    want = block(*(held[i] for i in range(start, stop)))
                    np.testing.assert_array_equal(frames.frames(start, stop), want)
                    assert frames.download(start)[0, 0, 0, 0] == held[start]
                case "flow" if len(held) > 1:
                    flows = True
                    i = rng.choice(sorted(held)[:-1])
                    change = held[i + 1] - held[i]
                    if rng.random() < 0.5:
                        assert frames.flows(i, i + 1, step=1)[0, 0, 0, 0] == change
                    else:
                        assert frames.flows(i + 1, i + 2, step=-1)[0, 0, 0, 0] == -change
                case "forget" if held and rng.random() < 0.3:
                    before = rng.choice(sorted(held))
                    frames.forget(before=before)
                    held = {i: value for i, value in held.items() if i >= before}
                case "shrink" if rng.random() < 0.05 and context.budget.plan.smaller():
                    frames.shrink(DeviceMemoryError("the GPU is full"))
