"""Propagation: the schedule itself, on an engine that does arithmetic a test can follow."""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest

from rbvsr_deploy.engines import Description, Network, open_engine
from rbvsr_deploy.engines.base import image_batch
from rbvsr_deploy.propagation import choose_interval, propagate_scene
from rbvsr_deploy.refinement import clean_scene
from tests.conftest import moving_clip


class CountingEngine:
    """Every state is a list of what went into it; counts calls and the states alive at once."""

    network = Network(channels=1, has_cleaning=True, refine_threshold=5.0, precision="float32")

    def __init__(self, residues: list[float] | None = None) -> None:
        self.calls: dict[str, int] = {}
        self.residues = residues or []

    def run(self, graph: str, **arrays: Any) -> tuple[Any, ...]:
        self.calls[graph] = self.calls.get(graph, 0) + 1
        match graph:
            case "clean":
                number = (self.calls["clean"] - 1) // 2  # passes over scenes of two frames
                return arrays["frame"] + 1, np.array([self.residues[number] / 255])
            case "flow":
                return ((arrays["reference"], arrays["neighbour"]),)
            case "backward" | "forward":
                return ([*arrays["state"], (arrays["frame"], arrays["flow"])],)
            case "reconstruct":
                return ((arrays["frame"], arrays["backward_state"], arrays["forward_state"]),)
            case _:
                return ([arrays["picture"]],)

    def zeros(self, shape: tuple[int, ...], *, dtype: str) -> Any:
        return [] if shape[1] == 1 else None

    def upload(self, array: Any) -> Any:
        return array

    def download(self, array: Any) -> Any:
        return array

    def describe(self) -> Description:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def __enter__(self) -> CountingEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


@pytest.mark.parametrize("interval", [1, 2, 3, 7, 8, 100, None])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_every_state_has_seen_what_it_should(n: int, interval: int | None) -> None:
    """Frame i's backward state comes from frames n-1..i, its forward state from 0..i, each with
    the flow from its frame to the neighbour the state came from; for any interval.
    """
    frames = list(range(n))
    pictures: list[Any] = list(
        propagate_scene(CountingEngine(), frames, height=1, width=1, interval=interval)
    )
    assert len(pictures) == n
    for i, (frame, backward, forward) in enumerate(pictures):
        assert frame == i
        assert backward == [(j, (j, j + 1) if j < n - 1 else None) for j in range(n - 1, i - 1, -1)]
        assert forward == [(j, (j, j - 1) if j else None) for j in range(i + 1)]


def test_recomputing_costs_less_than_one_more_backward_pass() -> None:
    """All states kept: n backward steps; every sqrt(n)-th: fewer than 2n."""
    for interval, expected in ((None, 100), (10, 190)):
        engine = CountingEngine()
        list(propagate_scene(engine, range(100), height=1, width=1, interval=interval))
        assert engine.calls["backward"] == expected
        assert engine.calls["forward"] == engine.calls["reconstruct"] == 100


def test_interval_must_be_positive() -> None:
    with pytest.raises(ValueError, match="interval must be 1 or more"):
        list(propagate_scene(CountingEngine(), [0, 1], height=1, width=1, interval=0))


@pytest.mark.parametrize(("n", "room"), [(10, 10), (10, 100), (1000, 70), (50, 3)])
def test_chosen_interval(n: int, room: int) -> None:
    """Everything where it fits, else the interval with the fewest states held at once."""
    k = choose_interval(n, states_that_fit=room)
    if n <= room:
        assert k == n
    else:
        held = k + math.ceil(n / k)
        assert held <= min(j + math.ceil(n / j) for j in range(1, n + 1)) + 1


@pytest.mark.parametrize("interval", [1, 3, 5])
def test_pictures_do_not_depend_on_the_interval(interval: int, tiny_bundle: Path) -> None:
    """Bit for bit, with a real engine."""
    clip = moving_clip(7, 24, 31)
    with open_engine(tiny_bundle, device="cpu") as engine:
        frames = [engine.run("ingest", image=engine.upload(image_batch(i)))[0] for i in clip]
        size = {"height": 24, "width": 31}
        whole = list(propagate_scene(engine, frames, **size))
        windows = list(propagate_scene(engine, frames, interval=interval, **size))
    for a, b in zip(whole, windows, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("residues", "threshold", "passes"),
    [([9, 9, 9], 5, 3), ([9, 4.99], 5, 2), ([4], 5, 1), ([5, 4], 5, 2), ([300], 255, 3)],
)
def test_cleaning_stops_below_the_threshold(
    residues: list[float], threshold: float, passes: int
) -> None:
    """At or above it goes on, below it stops, after three it stops anyway."""
    engine = CountingEngine(residues=[*residues, 300, 300])
    cleaned, refinement = clean_scene(engine, [0, 10], threshold=threshold)
    assert refinement.cleanings == passes
    assert cleaned == [passes, 10 + passes]
    assert refinement.residues == pytest.approx([*residues, 300, 300][:passes])


def test_fixed_number_of_cleanings() -> None:
    """Whatever the change is, also none at all."""
    for cleanings in (0, 2, 5):
        engine = CountingEngine(residues=[0.0] * 5)
        cleaned, refinement = clean_scene(engine, [0, 10], threshold=255, cleanings=cleanings)
        assert (refinement.cleanings, cleaned) == (cleanings, [cleanings, 10 + cleanings])


def test_a_network_without_cleaning_is_left_alone() -> None:
    """BasicVSR has no such graph."""
    engine = CountingEngine()
    engine.network = Network(
        channels=1, has_cleaning=False, refine_threshold=5.0, precision="float32"
    )
    cleaned, refinement = clean_scene(engine, [0, 10], threshold=0, cleanings=2)
    assert (cleaned, refinement.cleanings, engine.calls) == ([0, 10], 0, {})
