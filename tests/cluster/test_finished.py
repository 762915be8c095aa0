"""Tests that a finished list needs no worker, and that nothing changed is taken for finished."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rbvsr_deploy.cluster.batch import share_files
from rbvsr_deploy.cluster.finished import FinishedInputs
from rbvsr_deploy.cluster.local import LocalWorkers
from rbvsr_deploy.cluster.messages import Setup
from rbvsr_deploy.cluster.scheduler import Scheduler
from rbvsr_deploy.jobs.batch import Skipped
from rbvsr_deploy.runtime.output_size import OutputSize
from rbvsr_deploy.runtime.stream import Settings
from rbvsr_deploy.video import ReadOptions, WriteOptions


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBVSR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path: Path) -> tuple[list[Path], list[Path]]:
    """Return three inputs and their outputs."""
    inputs = [tmp_path / f"{name}.mp4" for name in "abc"]
    outputs = [tmp_path / f"{name}_x4.mp4" for name in "abc"]
    for path in (*inputs, *outputs):
        path.write_text(path.name)
    return inputs, outputs


def test_what_is_remembered(files: tuple[list[Path], list[Path]]) -> None:
    """It is valid for the same list, options, inputs and outputs only."""
    inputs, outputs = files
    first = FinishedInputs(inputs, outputs, options="x")
    for path, output in zip(inputs, outputs, strict=True):
        assert not first.has(path, output)
        first.add(path, output)
        assert first.has(path, output)
    again = FinishedInputs(inputs, outputs, options="x")
    assert all(map(again.has, inputs, outputs))
    os.utime(inputs[0], ns=(1, 1))
    outputs[1].write_text("another")
    outputs[2].unlink()
    assert not any(map(again.has, inputs, outputs))
    for other in (
        FinishedInputs(inputs, outputs, options="y"),
        FinishedInputs(inputs[:2], outputs[:2], options="x"),
    ):
        assert not any(map(other.has, inputs, outputs))


def test_a_finished_list_starts_no_worker(files: tuple[list[Path], list[Path]]) -> None:
    inputs, outputs = files
    known = FinishedInputs(inputs, outputs, options=f"{OutputSize()} {ReadOptions()}")
    for path, output in zip(inputs, outputs, strict=True):
        known.add(path, output)
    setup = Setup(inputs[0], "cpu", trust_engines=False, settings=Settings())
    with LocalWorkers(2, setup, command=["false"]) as workers:
        results = share_files(
            inputs,
            outputs,
            scheduler=Scheduler(workers),
            size=OutputSize(),
            reading=ReadOptions(),
            writing=WriteOptions(),
            scene_cuts=True,
            overwrite=False,
            keep_job=False,
            report=lambda line: None,
        )
        assert workers.processes == {}
    assert [type(result) for result in results] == [Skipped] * 3
