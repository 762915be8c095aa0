"""Provides benchmark runs that take a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbvsr_deploy.bench import ceilings
from rbvsr_deploy.bench.clips import synthetic_clip
from rbvsr_deploy.bench.measure import run_benchmark
from rbvsr_deploy.bench.result import BenchResult
from rbvsr_deploy.bench.timing import Effort

BRIEF = Effort(
    comparable=False, queries=3, seconds=0.01, clips=2, graph_runs=2, graph_seconds=0.001
)


@pytest.fixture(scope="session")
def result(tiny_bundle: Path) -> BenchResult:
    """Return the result of a run on the tiny network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceilings, "_CPU_SIDE", 128)
        patch.setattr(ceilings, "_CPU_COPY", 2**20)
        clip = synthetic_clip(4, width=32, height=24)
        return run_benchmark(tiny_bundle, clip, device="cpu", effort=BRIEF, command="a test")
