"""Makes clips, and upscales them with several processes that run an engine double."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.cluster import local, scheduler
from rbvsr_deploy.cluster.film import share_file
from rbvsr_deploy.cluster.local import LocalWorkers
from rbvsr_deploy.cluster.messages import Setup
from rbvsr_deploy.cluster.scheduler import Scheduler
from rbvsr_deploy.jobs import segments
from rbvsr_deploy.jobs.summary import Summary
from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.runtime.output_size import OutputSize
from rbvsr_deploy.runtime.stream import Settings
from rbvsr_deploy.video import ReadOptions, WriteOptions
from tests.support import media
from tests.support.cluster_worker import LONGEST, SHORTEST, TimedEngine

COMMAND = (sys.executable, "-m", "tests.support.cluster_worker")
MARK = "DOUBLE_OF"
"""Variable in the environment of a worker: process number of the tests that it belongs to."""


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "LONGEST", LONGEST)
    monkeypatch.setattr(segments, "SHORTEST", SHORTEST)


@pytest.fixture(autouse=True)
def _marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mark the workers of this process: other tests have workers at the same time."""
    monkeypatch.setenv(MARK, str(os.getpid()))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scheduler and its workers wait for a tenth of the usual time."""
    monkeypatch.setattr(scheduler, "_WORTH", 0.5)
    monkeypatch.setattr(scheduler, "_SECONDS_TO_CANCEL", 0.5)
    monkeypatch.setattr(local, "_SECONDS_TO_END", 0.5)


def scene(number: int, frames: int) -> list[NDArray[np.uint8]]:
    """Return the frames of a scene that moves: (32, 48, 3) uint8 RGB."""
    blocks = np.random.default_rng(number).integers(0, 100, (4, 6, 3)).astype(np.uint8)
    base = blocks.repeat(8, axis=0).repeat(8, axis=1) + np.uint8(150 * (number % 2))
    return [np.roll(base, shift, axis=1) for shift in range(frames)]


def make_clip(path: Path, lengths: list[int], **options: Any) -> Path:
    """Write a clip of scenes with audio."""
    images = [image for number, length in enumerate(lengths) for image in scene(number, length)]
    return media.make_video(
        path,
        images=images,
        stamps=[1001 * number for number in range(len(images))],
        size=(48, 32),
        audio="aac",
        b_frames=2,
        **options,
    )


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clip of ten scenes of 1 to 31 frames, with audio."""
    lengths = [7, 3, 14, 1, 31, 5, 12, 9, 25, 6]
    return make_clip(tmp_path_factory.mktemp("cluster") / "clip.mp4", lengths)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a file that the workers take for a bundle."""
    path = tmp_path / "model.plan"
    path.write_text("a double")
    return path


def alone(clip: Path, output: Path, **options: Any) -> Summary:
    """Upscale with this process alone."""
    return upscale_file(clip, output, engine=TimedEngine(0), **options)


@contextlib.contextmanager
def local_workers(
    count: int,
    model: Path,
    settings: Settings | None = None,
    odd: dict[str, str] | None = None,
) -> Iterator[LocalWorkers]:
    """Yield workers that are not started yet; the last has other variables in its environment."""
    setup = Setup(model, "cpu", trust_engines=False, settings=settings or Settings())
    with LocalWorkers(count, setup, command=COMMAND) as workers:
        _, environment = workers._setups[f"worker {count}"]
        environment.update(odd or {})
        yield workers


def shared(
    clip: Path,
    output: Path,
    *,
    model: Path,
    workers: int = 2,
    odd: dict[str, str] | None = None,
    mixed: bool = False,
    stage: bool = False,
    report: Callable[[str], None] = lambda line: None,
    settings: Settings | None = None,
    size: OutputSize | None = None,
    reading: ReadOptions | None = None,
    writing: WriteOptions | None = None,
    **options: Any,
) -> Summary:
    """Upscale with several processes; the last has other variables in its environment."""
    with local_workers(workers, model, settings, odd) as started:
        of_workers = Scheduler(started, report=report, mixed=mixed)
        return share_file(
            clip,
            output,
            scheduler=of_workers,
            engine=of_workers.open(),
            settings=settings or Settings(),
            size=size or OutputSize(),
            reading=reading or ReadOptions(),
            writing=writing or WriteOptions(),
            stage=stage,
            report=report,
            **options,
        )
