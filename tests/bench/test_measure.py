"""Tests whole benchmark runs: what they contain, not how fast anything is."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest

from rbvsr_deploy.bench import ceilings, measure
from rbvsr_deploy.bench.clips import synthetic_clip, video_clip
from rbvsr_deploy.bench.measure import run_benchmark
from rbvsr_deploy.bench.result import BenchResult, json_schema
from rbvsr_deploy.bundle import open_bundle
from rbvsr_deploy.errors import BundleError, MediaError, RbvsrError
from rbvsr_deploy.graphs import graph_names
from tests.bench.conftest import BRIEF

SCHEMA = Path(measure.__file__).with_name("result.schema.json")
CLIP = synthetic_clip(3, width=32, height=24)


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_CPU_SIDE", 128)
    monkeypatch.setattr(ceilings, "_CPU_COPY", 2**20)


def plain(result: BenchResult) -> Any:
    return json.loads(msgspec.json.encode(result))


def nulls(value: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of all nulls."""
    if value is None:
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from nulls(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            yield from nulls(item, path)


def test_the_committed_schema_is_that_of_the_result() -> None:
    """``python benchmarks/tables.py`` writes it again."""
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json_schema()


def test_a_result_is_valid(result: BenchResult) -> None:
    """By the committed schema, which refuses anything more or less; and it can be read again."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(plain(result))
    assert msgspec.json.decode(msgspec.json.encode(result), type=BenchResult) == result
    changes: list[dict[str, Any]] = [{"more": 1}, {"graphs_ms": "1"}, {"machine": {}}]
    for change in changes:
        assert not validator.is_valid(plain(result) | change)
    less = plain(result)
    del less["throughput"]["network_ms"]["p90"]
    assert not validator.is_valid(less)


def test_every_figure_that_is_missing_has_a_reason(result: BenchResult) -> None:
    """No null without an explanation, and no explanation of a figure that is there."""
    found = set()
    for path in nulls({k: v for k, v in plain(result).items() if k != "peers"}):
        first, _, last = path.partition(".")
        last = last.rpartition(".")[2]
        keys = {path, first, last, f"{first}.{last}"} & result.missing.keys()
        assert keys, path
        found |= keys
    assert found == result.missing.keys()
    assert all(result.missing.values())


def test_figures_fit_together(result: BenchResult) -> None:
    """Sums, ratios and shares follow from the other figures, and the counts from the clip."""
    graphs, throughput = result.graphs, result.throughput
    assert list(graphs) == list(graph_names(has_cleaning=True, optional=()))
    total = sum(g.runs_per_frame * g.latency_ms.p50 for g in graphs.values())
    assert result.graphs_ms == pytest.approx(total)
    assert graphs["flow"].runs_per_frame == 2
    for graph in graphs.values():
        seconds = graph.latency_ms.p50 / 1000
        assert graph.attained.flops_per_second == pytest.approx(graph.counted.flops / seconds)
        assert graph.latency_ms.minimum <= graph.latency_ms.p50 <= graph.latency_ms.p90
        matrix, copy = result.ceilings.matrix_flops, result.ceilings.copy_bytes
        assert matrix is not None
        assert copy is not None
        floor = max(graph.counted.flops / matrix, graph.counted.least_bytes / copy)
        assert graph.attained.floor_ms == pytest.approx(1000 * floor)
    assert throughput.frames_per_second == pytest.approx(1000 / throughput.total_ms.p50)
    assert throughput.network_ms.p50 <= throughput.total_ms.p50
    assert throughput.network_over_graphs == pytest.approx(
        throughput.network_ms.p50 / result.graphs_ms
    )
    # Four frames: seven graphs each, and flow in both directions between neighbours.
    assert throughput.launches == pytest.approx((6 * 4 + 2 * 3) / 4)
    assert throughput.bytes_to_device == 3 * 32 * 24
    assert throughput.bytes_from_device >= 3 * 16 * 32 * 24
    assert result.open_seconds < result.first_image_seconds
    assert result.latency.queries >= BRIEF.queries
    assert throughput.clips >= BRIEF.clips
    assert (result.protocol.width, result.protocol.height) == (32, 24)
    assert not result.protocol.comparable


def test_the_reference_of_a_float32_bundle_is_the_cpu(
    result: BenchResult, tiny_bundle: Path
) -> None:
    assert result.quality is not None
    assert result.quality.psnr is None
    assert result.quality.max_levels == 0
    assert result.bundle_sha256 == open_bundle(tiny_bundle).sha256


@pytest.mark.slow
def test_quality_is_measured_against_float32(
    tiny_bundle_float16: Path, tiny_bundle: Path, tiny_checkpoint: Path
) -> None:
    """A float16 bundle has a finite PSNR against the checkpoint and the float32 bundle, and none
    without them.
    """
    effort = dataclasses.replace(BRIEF, queries=1, clips=1, graph_runs=1)
    for reference in (tiny_checkpoint, tiny_bundle):
        found = run_benchmark(
            tiny_bundle_float16, CLIP, device="cpu", effort=effort, reference=reference
        )
        assert found.quality is not None
        assert found.quality.psnr is None or 45 < found.quality.psnr < 120
        assert found.quality.max_levels <= 2
    alone = run_benchmark(tiny_bundle_float16, CLIP, device="cpu", effort=effort)
    assert alone.quality is None
    assert "no reference" in alone.missing["quality"]


def test_a_reference_of_other_weights_is_refused(tiny_bundle: Path) -> None:
    from rbvsr_deploy.pretrained import DEFAULT_BUNDLE, DEFAULT_CHECKPOINT

    for reference in (DEFAULT_BUNDLE, DEFAULT_CHECKPOINT):
        with pytest.raises(RbvsrError, match="has other weights than"):
            run_benchmark(tiny_bundle, CLIP, device="cpu", effort=BRIEF, reference=reference)


def test_a_checkpoint_cannot_be_measured(tiny_checkpoint: Path) -> None:
    with pytest.raises(BundleError, match="is a checkpoint, and only bundles can be measured"):
        run_benchmark(tiny_checkpoint, CLIP)


def test_a_machine_that_is_not_calm_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its load before, by what others use during the run, and by the spread."""
    from rbvsr_deploy.bench import machine

    busy = iter((100.0, 107.0, 200.0, 201.0))
    clock = iter((0.0, 10.0, 0.0, 10.0))
    monkeypatch.setattr(machine, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(machine, "_own_seconds", lambda: 0.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(os, "getloadavg", lambda: (40.0, 0, 0), raising=False)
    calm = machine.Load().judge(spread=0.3)
    assert not calm.calm
    assert calm.others_share == pytest.approx(0.35)
    assert len(calm.reasons) == 3
    assert "other processes used 35 % of the cores" in calm.reasons
    assert "the network time varied by 30.0 % over the clips" in calm.reasons
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0, 0), raising=False)
    assert machine.Load().judge(spread=0.01).calm


def test_the_synthetic_clip_is_the_same_everywhere() -> None:
    """Its length does not change its frames, and neighbours differ without a cut."""
    assert np.array_equal(synthetic_clip(2, width=32, height=24), CLIP[:2])
    change = np.abs(CLIP[1].astype(int) - CLIP[0]).mean()
    assert 2 < change < 25
    assert CLIP.std() > 20


def test_a_video_gives_its_first_frames(sample: Path) -> None:
    assert video_clip(sample, 3).shape == (3, 180, 320, 3)
    with pytest.raises(MediaError, match="has 54 frames, and 99 are needed"):
        video_clip(sample, 99)
