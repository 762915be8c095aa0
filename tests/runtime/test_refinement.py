"""Dynamic refinement: who decides how often frames are cleaned, and on what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rbvsr_deploy.runtime.refinement import Cleaner, Refinement
from rbvsr_deploy.runtime.spool import Spool
from tests.support.engine_doubles import ArithmeticEngine


def cleaned(engine: ArithmeticEngine, values: list[int], **options: Any) -> tuple[list[int], Any]:
    """What frames of these values become, each pass adding one, and what was decided."""
    with Spool(folder=None, in_memory=1) as spool:
        cleaner = Cleaner(engine, spool, **{"threshold": 5.0, **options})
        for value in values:
            cleaner.push(np.full((1, 1, 3), value, np.uint8))
        decided = cleaner.decide()
        first = options.get("first", 0)
        frames = [int(spool.get(first + i)[0, 0, 0, 0]) for i in range(len(values))]
        assert len(spool) == len(values)
    return frames, decided


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(
    ("residues", "threshold", "passes"),
    [([9, 9, 9], 5, 3), ([9, 4.99], 5, 2), ([4], 5, 1), ([5, 4], 5, 2), ([300], 255, 3)],
)
def test_cleaning_stops_below_the_threshold(
    residues: list[float], threshold: float, passes: int, batch: int
) -> None:
    """At or above it goes on, below it stops, after three it stops anyway."""
    engine = ArithmeticEngine([*residues, 300, 300])
    frames, decided = cleaned(engine, [0, 10], threshold=threshold, batch=batch)
    assert decided.cleanings == passes
    assert frames == [passes, 10 + passes]
    assert decided.residues == pytest.approx([*residues, 300, 300][:passes])


@pytest.mark.parametrize("cleanings", [0, 1, 2, 5])
def test_fixed_number_of_cleanings(cleanings: int) -> None:
    """Whatever the change is, also none at all; the residues are told all the same."""
    engine = ArithmeticEngine([0.0, 1.0, 2.0, 3.0, 4.0])
    # Frame by frame, both frames take all passes in turn.
    frames, decided = cleaned(engine, [0, 10], threshold=255, cleanings=cleanings, batch=2)
    assert frames == [cleanings, 10 + cleanings]
    assert decided.cleanings == cleanings
    assert decided.residues == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0][:cleanings])


def test_a_network_without_cleaning_is_left_alone() -> None:
    """BasicVSR has no such graph, whatever is asked for."""
    engine = ArithmeticEngine(has_cleaning=False)
    frames, decided = cleaned(engine, [0, 10], threshold=0, cleanings=2)
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
    """What arrives after the decision is cleaned just as often, and changes nothing about it."""
    engine = ArithmeticEngine([9.0, 1.0, 99.0, 99.0])
    with Spool(folder=None, in_memory=9) as spool:
        cleaner = Cleaner(engine, spool, threshold=5.0)
        for value in (0, 10):
            cleaner.push(np.full((1, 1, 3), value, np.uint8))
        assert cleaner.decide().cleanings == 2
        cleaner.push(np.full((1, 1, 3), 20, np.uint8))
        assert cleaner.decide() == Refinement(2, pytest.approx([9.0, 1.0]))
        assert spool.get(2)[0, 0, 0, 0] == 22


class _ByValue(ArithmeticEngine):
    """The residue of a frame is its value after the pass, so that bright frames take more."""

    def _outputs(self, graph: str, n: int, **arrays: Any) -> tuple[Any, ...]:
        if graph != "clean":
            return super()._outputs(graph, n, **arrays)
        cleaned = arrays["frame"] - 10
        return cleaned, cleaned[:, 0, 0, 0] / 255


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_every_frame_decides_for_itself(batch: int) -> None:
    """With the scope "frame": each is cleaned until its own change is small, three times at most;
    the residues are means over the frames of each pass.
    """
    frames, decided = cleaned(_ByValue(), [12, 22, 90, 5], scope="frame", batch=batch)
    assert frames == [2, 2, 60, -5]
    assert decided.cleanings == 3
    assert decided.residues == pytest.approx([(2 + 12 + 80 - 5) / 4, (2 + 70) / 2, 60])


def test_the_scene_decides_by_its_mean() -> None:
    """The same frames with the scope "scene": one decision for all."""
    frames, decided = cleaned(_ByValue(), [12, 22, 90, 5], scope="scene", batch=3)
    assert frames == [-18, -8, 60, -25]
    assert decided.residues == pytest.approx([22.25, 12.25, 2.25])
