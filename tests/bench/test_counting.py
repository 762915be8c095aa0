"""Tests the counting engine on runs whose calls are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rbvsr_deploy.bench.costs import GraphCosts
from rbvsr_deploy.bench.counting import CountingEngine, Counts
from rbvsr_deploy.bundle import open_bundle
from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.upscaler import Upscaler
from tests.conftest import moving_clip

FRAMES, H, W = 5, 24, 32


@pytest.fixture
def engine(tiny_bundle: Path) -> CountingEngine:
    return CountingEngine(open_engine(tiny_bundle, device="cpu"))


def test_a_scene_runs_every_graph_once_per_frame(engine: CountingEngine, tiny_bundle: Path) -> None:
    """And flow once per neighbour and direction; every frame is uploaded once and downloaded once;
    the cost is that of these runs.
    """
    clip = moving_clip(FRAMES, H, W)
    with engine, Upscaler(engine, cleanings=1, memory="1GiB") as upscaler:
        images = list(upscaler.frames(clip))
        counts = engine.counts
    assert counts.launches == {
        **dict.fromkeys(("ingest", "clean", "backward", "forward", "reconstruct", "emit"), FRAMES),
        "flow": 2 * (FRAMES - 1),
    }
    # The image, how much cleaning changed the frame, and now and then a state that is checked.
    assert 2 * FRAMES <= counts.downloads < 3 * FRAMES
    assert counts.downloaded_bytes >= sum(image.nbytes for image in images) + 4 * FRAMES
    assert counts.uploaded_bytes >= clip.nbytes
    assert counts.device_copies == 0
    assert counts.seconds > 0
    costs = GraphCosts(open_bundle(tiny_bundle))
    flow = costs.of("flow", [(1, 3, H, W)] * 2)
    step = costs.of("forward", [(1, 3, H, W), (1, engine.network.channels, H, W), (1, 2, H, W)])
    total = counts.cost(costs)
    assert total.flops > 2 * (FRAMES - 1) * flow.flops + 2 * FRAMES * step.flops
    assert total.nodes > 2 * (FRAMES - 1) * flow.nodes


def test_arrays_are_counted_with_their_size(engine: CountingEngine) -> None:
    with engine:
        array = engine.upload(np.zeros((2, 3, 4, 4), np.float32))
        engine.counts = Counts()
        engine.empty((2, 8), dtype="float16")
        assert (engine.counts.allocations, engine.counts.allocated_bytes) == (1, 32)
        engine.rows(array, 1, 3)
        assert (engine.counts.device_copies, engine.counts.device_copied_bytes) == (1, 192)
        engine.download(array)
        assert (engine.counts.downloads, engine.counts.downloaded_bytes) == (1, array.nbytes)
        begun = engine.begin_download(array)
        assert engine.counts.downloads == 1
        begun()
        assert engine.counts.downloads == 2
        assert engine.counts.allocations == 2


def test_outputs_written_in_place_are_not_allocated(engine: CountingEngine) -> None:
    with engine:
        image = engine.upload(np.zeros((1, H, W, 3), np.uint8))
        place = engine.empty((1, 3, H, W), dtype="float32")
        engine.counts = Counts()
        engine.run("ingest", image=image, into=[place])
        assert engine.counts.allocations == 0
        engine.run("ingest", image=image)
        assert (engine.counts.allocations, engine.counts.allocated_bytes) == (1, 4 * 3 * H * W)
