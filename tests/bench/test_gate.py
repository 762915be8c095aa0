"""Compares counted work with a committed baseline, which no machine's speed moves.

``make counts`` writes the baseline again; commit it together with the change that moved it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rbvsr_deploy.bench.clips import synthetic_clip
from rbvsr_deploy.bench.costs import GraphCosts
from rbvsr_deploy.bench.counting import CountingEngine
from rbvsr_deploy.bundle import open_bundle
from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.graphs import GRAPHS, named_sizes
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE
from rbvsr_deploy.upscaler import Upscaler
from tests.conftest import DATA

BASELINE = DATA / "counts.json"
HEIGHT, WIDTH = 180, 320  # of the frame whose work is counted
FRAMES, SMALL = 8, (32, 48)  # of the scene whose calls are counted


def count(path: Path) -> dict[str, Any]:
    """Count the work of every graph for one frame, and the calls and bytes per frame of a scene."""
    bundle = open_bundle(path)
    costs, channels = GraphCosts(bundle), bundle.manifest.channels
    sizes = named_sizes(1, HEIGHT, WIDTH, channels=channels)
    graphs = {}
    for name in bundle.manifest.graphs:
        inputs = GRAPHS[name].inputs
        cost = costs.of(
            name,
            [tuple(sizes[s] if isinstance(s, str) else s for s in i.shape) for i in inputs],
        )
        graphs[name] = {"flops": cost.flops, "bytes": cost.bytes, "nodes": cost.nodes}
    height, width = SMALL
    clip = synthetic_clip(FRAMES, width=width, height=height)
    with CountingEngine(open_engine(path, device="cpu")) as engine:
        with Upscaler(engine, cleanings=1, memory="1GiB") as upscaler:
            assert sum(1 for _ in upscaler.frames(clip)) == FRAMES
        counts = engine.counts
    cost = counts.cost(costs)
    calls = {
        **{f"runs of {name}": runs for name, runs in counts.launches.items()},
        "flops": cost.flops,
        "bytes": cost.bytes,
        "nodes": cost.nodes,
        "allocations": counts.allocations,
        "allocated bytes": counts.allocated_bytes,
        "uploads": counts.uploads,
        "uploaded bytes": counts.uploaded_bytes,
        "downloads": counts.downloads,
        "downloaded bytes": counts.downloaded_bytes,
        "copies on the device": counts.device_copies,
    }
    return {
        f"graphs at {WIDTH}x{HEIGHT}": graphs,
        f"per frame, {FRAMES} of {width}x{height}": {k: v / FRAMES for k, v in calls.items()},
    }


def leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from leaves(item, f"{path}{key}, ")
        else:
            yield path + key, item


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe every count that differs."""
    old, new = dict(leaves(before)), dict(leaves(now))
    lines = []
    for name in old | new:
        was, has = old.get(name), new.get(name)
        if was != has:
            share = f" ({100 * (has / was - 1):+.2f} %)" if was and has is not None else ""
            lines.append(f"{name}: {_shown(was)} -> {_shown(has)}{share}")
    return lines


def _shown(number: float | None) -> str:
    return "absent" if number is None else f"{number:,.10g}"


@pytest.mark.parametrize("network", ["compact", "tiny, exported now"])
def test_the_work_is_that_of_the_baseline(network: str, request: pytest.FixtureRequest) -> None:
    """FLOPs, bytes and nodes of every graph, and runs, allocations and copies per frame: of the
    model in the wheel, and of what the exporter writes today for the published architecture.
    """
    release = ".".join(torch.__version__.split(".")[:2])
    baseline = json.loads(BASELINE.read_text(encoding="utf-8")) if BASELINE.exists() else {}
    if network == "compact":
        now = count(DEFAULT_BUNDLE)
    else:
        now = {"torch": release, **count(request.getfixturevalue("tiny_bundle"))}
    if os.environ.get("RBVSR_RENEW_COUNTS"):
        text = json.dumps({**baseline, network: now}, indent=1)
        BASELINE.write_text(text + "\n", encoding="utf-8")
        return
    if network != "compact" and baseline[network]["torch"] != release:
        pytest.skip(f"the exporter of torch {release} may write other nodes")
    found = changes({**baseline[network], "torch": 0}, {**now, "torch": 0})
    assert not found, (
        f"the counted work of {network} has changed; if it should, run `make counts` and commit "
        f"{BASELINE.name}:\n" + "\n".join(found)
    )


def test_every_change_is_named() -> None:
    """Larger, smaller, new and gone; equal counts are not."""
    before = {"graphs": {"flow": {"nodes": 200, "flops": 10}}, "copies": 2, "gone": 1}
    now = {"graphs": {"flow": {"nodes": 190, "flops": 10}}, "copies": 3, "new": 1000.5}
    assert changes(before, now) == [
        "graphs, flow, nodes: 200 -> 190 (-5.00 %)",
        "copies: 2 -> 3 (+50.00 %)",
        "gone: 1 -> absent",
        "new: absent -> 1,000.5",
    ]
