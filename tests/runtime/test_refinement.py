"""Tests dynamic refinement: who decides how often frames are cleaned, and from what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rbvsr_deploy.errors import DeviceMemoryError
from rbvsr_deploy.runtime.context import Context
from rbvsr_deploy.runtime.memory_plan import MemoryBudget, MemoryPlan
from rbvsr_deploy.runtime.refinement import Cleaner, Refinement
from rbvsr_deploy.runtime.scene_frames import SceneFrames
from rbvsr_deploy.runtime.settings import Settings
from tests.support.engine_doubles import ArithmeticEngine


def context_of(
    engine: ArithmeticEngine, *, batch: int = 1, in_memory: int = 1, **settings: Any
) -> Context:
    plan = MemoryPlan(window=1, batch=batch, band=1, in_memory=in_memory)
    return Context(
        engine,
        Settings(**{"refine_threshold": 5.0, **settings}),
        size=(1, 1),
        budget=MemoryBudget(plan),
    )


def cleaned(
    engine: ArithmeticEngine,
    values: list[int],
    *,
    first: int = 0,
    decided: Refinement | None = None,
    **options: Any,
) -> tuple[list[int], Refinement]:
    """Return the cleaned frames of these values, each pass adding one, and the decision."""
    with context_of(engine, **options) as context:
        frames = SceneFrames(context)
        cleaner = Cleaner(context, frames, first=first, decided=decided)
        for value in values:
            cleaner.push(np.full((1, 1, 3), value, np.uint8))
        decision = cleaner.decide()
        assert cleaner.known == first + len(values)
        levels = [int(frames.download(first + i)[0, 0, 0, 0]) for i in range(len(values))]
    return levels, decision


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(
    ("residues", "threshold", "passes"),
    [([9, 9, 9], 5, 3), ([9, 4.99], 5, 2), ([4], 5, 1), ([5, 4], 5, 2), ([300], 255, 3)],
)
def test_cleaning_stops_below_the_threshold(
    residues: list[float], threshold: float, passes: int, batch: int
) -> None:
    """It continues at or above the threshold, stops below, and always stops after three passes."""
    engine = ArithmeticEngine([*residues, 300, 300])
    frames, decided = cleaned(engine, [0, 10], refine_threshold=threshold, batch=batch)
    assert decided.cleanings == passes
    assert frames == [passes, 10 + passes]
    assert decided.residues == pytest.approx([*residues, 300, 300][:passes])


@pytest.mark.parametrize("cleanings", [0, 1, 2, 5])
def test_fixed_number_of_cleanings(cleanings: int) -> None:
    """It is used whatever the change is, even zero; the residues are reported all the same."""
    engine = ArithmeticEngine([0.0, 1.0, 2.0, 3.0, 4.0])
    # With smaller batches, each frame would take all passes in turn.
    frames, decided = cleaned(engine, [0, 10], refine_threshold=255, cleanings=cleanings, batch=2)
    assert frames == [cleanings, 10 + cleanings]
    assert decided.cleanings == cleanings
    assert decided.residues == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0][:cleanings])


def test_a_network_without_cleaning_is_left_alone() -> None:
    """BasicVSR has no such graph, whatever the settings are."""
    engine = ArithmeticEngine(has_cleaning=False)
    frames, decided = cleaned(engine, [0, 10], refine_threshold=0, cleanings=2)
    assert (frames, decided) == ([0, 10], Refinement(0))
    assert engine.items["clean"] == 0


def test_a_scene_that_is_continued_is_cleaned_as_before() -> None:
    """The decision is not taken again, however much the frames change."""
    engine = ArithmeticEngine([300.0] * 4)
    decided = Refinement(2, [7.0, 1.0])
    frames, again = cleaned(engine, [0, 10], first=40, decided=decided)
    assert frames == [2, 12]
    assert again == decided


def test_later_frames_follow_the_decision() -> None:
    """Frames that arrive after the decision are cleaned equally often and do not change it."""
    engine = ArithmeticEngine([9.0, 1.0, 99.0, 99.0])
    with context_of(engine, in_memory=9) as context:
        frames = SceneFrames(context)
        cleaner = Cleaner(context, frames)
        for value in (0, 10):
            cleaner.push(np.full((1, 1, 3), value, np.uint8))
        assert cleaner.decide().cleanings == 2
        cleaner.push(np.full((1, 1, 3), 20, np.uint8))
        decided = cleaner.decide()
        assert decided.cleanings == 2
        assert decided.residues == pytest.approx([9.0, 1.0])
        assert frames.download(2)[0, 0, 0, 0] == 22


class _ByValue(ArithmeticEngine):
    """Reports a frame's value after the pass as its residue, so that bright frames take more."""

    def _outputs(self, graph: str, n: int, **arrays: Any) -> tuple[Any, ...]:
        if graph != "clean":
            return super()._outputs(graph, n, **arrays)
        cleaned = arrays["frame"] - 10
        return cleaned, cleaned[:, 0, 0, 0] / 255


@pytest.mark.parametrize("in_memory", [0, 3, 100])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_every_frame_decides_for_itself(batch: int, in_memory: int) -> None:
    """With the scope "frame", each is cleaned until its own change is small, at most three times;
    the residues are means over the frames of each pass.
    """
    options: dict[str, Any] = {"refine_scope": "frame", "batch": batch, "in_memory": in_memory}
    frames, decided = cleaned(_ByValue(), [12, 22, 90, 5], **options)
    assert frames == [2, 2, 60, -5]
    assert decided.cleanings == 3
    assert decided.residues == pytest.approx([(2 + 12 + 80 - 5) / 4, (2 + 70) / 2, 60])


def test_the_scene_decides_by_its_mean() -> None:
    """The same frames with the scope "scene" get one decision for all."""
    frames, decided = cleaned(_ByValue(), [12, 22, 90, 5], refine_scope="scene", batch=3)
    assert frames == [-18, -8, 60, -25]
    assert decided.residues == pytest.approx([22.25, 12.25, 2.25])


class _FullAt(_ByValue):
    """Runs out of memory once, at the given call of ``clean``."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self._call = call

    def run(self, graph: str, **arrays: Any) -> tuple[Any, ...]:
        self._call -= graph == "clean"
        if graph == "clean" and self._call == 0:
            raise DeviceMemoryError("the GPU is full")
        return super().run(graph, **arrays)


@pytest.mark.parametrize("in_memory", [0, 5, 100])
@pytest.mark.parametrize("scope", ["scene", "frame"])
@pytest.mark.parametrize("call", range(1, 12))
def test_a_full_device_cleans_less_at_once(call: int, scope: str, in_memory: int) -> None:
    """Whichever pass runs out of memory, frames, decision and residues are the same."""
    values = [12, 22, 90, 5, 60, 61, 0, 8, 9]
    options: dict[str, Any] = {"refine_scope": scope, "batch": 4, "in_memory": in_memory}
    want, decided = cleaned(_ByValue(), values, **options)
    got, again = cleaned(_FullAt(call), values, **options)
    assert got == want
    assert again.cleanings == decided.cleanings
    assert again.residues == pytest.approx(decided.residues)
