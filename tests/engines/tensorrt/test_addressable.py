"""Tests that no graph is compiled for, or run on, more values than a GPU can address."""

from __future__ import annotations

import math

import pytest

from rbvsr_deploy.bundle.engine_sets import ShapeProfile
from rbvsr_deploy.engines.base import Network
from rbvsr_deploy.engines.tensorrt.plans import profile_for
from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.graphs import GRAPHS
from rbvsr_deploy.runtime.memory_plan import MemoryPlan, choose_plan

LIMIT = 2**31

WIDEST = {
    "published": {
        **dict.fromkeys(("ingest", "emit", "blend"), 48),
        "mix": 3,
        "resize": 3 * 16 * 8,
        "clean": 64,
        "flow": 64,
        "backward": 67,
        "forward": 67,
        "reconstruct": 64 * 16,
    },
    "compact": {
        **dict.fromkeys(("ingest", "emit", "blend"), 48),
        "mix": 3,
        "resize": 3 * 16 * 8,
        "clean": 32,
        "flow": 24,
        "backward": 35,
        "forward": 35,
        "reconstruct": 64,
    },
}
"""Values per pixel of the input in the widest map, by network and graph, counted by hand."""

NETWORKS = {
    name: Network(
        channels=channels,
        head_channels=head,
        has_cleaning=True,
        refine_threshold=255.0,
        precision="float16",
        reconstruction_blocks=blocks,
    )
    for name, channels, head, blocks in (("published", 64, 1024, 0), ("compact", 32, 48, 4))
}

SIZES = [(64, 64), (180, 320), (320, 180), (480, 854), (540, 960), (720, 1280), (1280, 720)]
SIZES += [(1080, 1920), (1920, 1080), (2160, 3840), (3840, 2160), (480, 7680)]


def largest(profile: ShapeProfile, network: str) -> dict[str, int]:
    """Return the values of the largest map of every graph."""
    found = {}
    for name, spec in GRAPHS.items():
        shapes = profile.shapes(
            spec,
            channels=NETWORKS[network].channels,
            head_channels=NETWORKS[network].head_channels,
        )
        least, usual, most = next(iter(shapes.values()))
        assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
        n, *_ = most
        values = math.prod(most) // (n * (3 if len(most) == 4 else 1))
        pixels = {"ingest": values // 3, "emit": values // 16, "resize": values // 16}.get(
            name, values
        )
        found[name] = n * pixels * WIDEST[network][name]
    return found


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8])
def test_profiles(network: str, batch: int) -> None:
    """No default profile, and none that a run compiles for, is too large in any graph."""
    profiles = [ShapeProfile(), ShapeProfile(batch=batch)]
    for size in SIZES:
        profiles.append(profile_for(*size, batch=batch, network=NETWORKS[network]))
        profiles.append(profile_for(*size, batch=batch))
        assert all(profile.covers(*size, batch=batch) for profile in profiles[-2:])
    for profile in profiles:
        assert max(largest(profile, network).values()) < LIMIT, profile


def test_the_default_profile_keeps_its_size() -> None:
    """Only the batch is smaller where maps are large: two frames of the head, four of the rest."""
    profile = ShapeProfile()
    most = {
        name: next(iter(profile.shapes(spec, channels=64, head_channels=1024).values()))[2]
        for name, spec in GRAPHS.items()
    }
    assert most["reconstruct"] == (2, 3, 720, 1280)
    assert most["clean"] == (4, 3, 720, 1280)
    assert most["flow"] == (8, 3, 720, 1280)
    assert most["backward"] == (1, 3, 720, 1280)


def test_sizes_beyond_every_batch_are_one_sentence() -> None:
    profile = ShapeProfile((64, 64), (180, 320), (8000, 8000))
    with pytest.raises(ValueError, match="8000x8000 are too large for a GPU: a map of the graph"):
        profile.shapes(GRAPHS["backward"], channels=64)
    with pytest.raises(RbvsrError, match="8000x8000 has more values than a GPU can address"):
        choose_plan(
            NETWORKS["published"],
            height=8000,
            width=8000,
            memory=2**50,
            longest=9,
            on_cpu=False,
        )


def runs(plan: MemoryPlan, height: int, *, halo: int) -> dict[str, tuple[int, int]]:
    """Return the frames and rows of the largest run of every graph."""
    band = height if plan.band >= height else min(height, plan.band + 2 * halo)
    whole = dict.fromkeys(("ingest", "clean"), (plan.batch, height))
    whole |= dict.fromkeys(("backward", "forward"), (1, height))
    whole["flow"] = 2 * plan.batch, height
    return {**whole, "reconstruct": (plan.batch, band), "emit": (plan.batch, band)}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("gib", [4, 8, 24, 80, 140, 2000])
def test_plans(network: str, size: tuple[int, int], gib: int) -> None:
    """No plan runs a tensor that is too large, or larger than a third of the memory."""
    height, width = size
    try:
        plan = choose_plan(
            NETWORKS[network],
            height=height,
            width=width,
            memory=gib * 2**30,
            longest=300,
            on_cpu=False,
        )
    except RbvsrError as error:
        assert "of memory at least" in str(error)  # noqa: PT017
        return
    for graph, (frames, rows) in runs(plan, height, halo=NETWORKS[network].halo).items():
        values = frames * rows * width * WIDEST[network][graph]
        assert values < LIMIT
        assert 2 * values < gib * 2**30 / 3


def test_plans_obey_the_engine() -> None:
    """An engine may take fewer frames, or fewer rows of the head, at once."""
    plan = choose_plan(
        NETWORKS["compact"],
        height=480,
        width=854,
        memory=2**36,
        longest=300,
        on_cpu=False,
        most=(2, 200),
    )
    assert plan.batch == 2
    assert plan.band + 2 * NETWORKS["compact"].halo <= 200
