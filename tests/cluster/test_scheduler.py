"""Tests what the scheduler says about the progress, with workers that a test speaks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbvsr_deploy.cluster import scheduler as module
from rbvsr_deploy.cluster.messages import (
    Cancel,
    Done,
    FileTask,
    FromWorker,
    Piece,
    Progress,
    Ready,
    Task,
)
from rbvsr_deploy.cluster.scheduler import Scheduler
from rbvsr_deploy.cluster.work import Status, WorkItem, frames_in_all
from rbvsr_deploy.cluster.workers import Workers
from rbvsr_deploy.runtime.context import STAGE_SHARES
from rbvsr_deploy.runtime.output_size import OutputSize
from rbvsr_deploy.video import ReadOptions, WriteOptions
from tests.support.cluster_worker import TimedEngine

LARGE, SMALL = 1, 2  # numbers of tasks


class Clock:
    """A clock that moves by ten seconds with every message."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Script(Workers):
    """Is one worker that answers what a test has written down."""

    def __init__(self, clock: Clock, answers: list[FromWorker]) -> None:
        super().__init__()
        self._clock = clock
        self._answers = answers
        self.tasks: list[int] = []

    def start(self) -> None:
        pass

    @property
    def names(self) -> list[str]:
        return ["worker 1"]

    def send(self, name: str, message: Task | Piece | Cancel) -> None:
        self.tasks.append(message.number)

    def receive(self, *, timeout: float) -> tuple[str, FromWorker] | None:
        self._clock.now += 10
        return "worker 1", self._answers.pop(0)

    def restart(self, name: str) -> None:
        raise AssertionError

    def stop(self, name: str) -> None:
        raise AssertionError

    def close(self) -> None:
        pass


def item(number: int, size: int) -> WorkItem:
    """Return the task of an input of so many bytes, whose frames are not known."""
    task = FileTask(
        number,
        path=Path(f"{number}.mp4"),
        output=Path(f"{number}_x4.mp4"),
        reading=ReadOptions(),
        writing=WriteOptions(),
        size=OutputSize(),
        scene_cuts=True,
        overwrite=False,
        keep_job=False,
    )
    return WorkItem(task, None, name=str(number), size=size)


def progress(number: int, done: int, frames: int) -> Progress:
    return Progress(number, dict.fromkeys(STAGE_SHARES, done), 0, frames)


def test_the_time_left_for_several_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It follows from frames: those of an input that is not open are estimated by its bytes."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    ready = Ready(TimedEngine(0).describe(), {}, "host", 1)
    workers = Script(
        clock,
        [
            ready,
            progress(LARGE, 0, 300),
            progress(LARGE, 150, 300),
            Done(LARGE, frames=300, seconds={}, size=1),
            progress(SMALL, 0, 500),
            progress(SMALL, 500, 500),
            Done(SMALL, frames=500, seconds={}, size=1),
        ],
    )
    seen: list[Status] = []
    scheduler = Scheduler(workers, watch=seen.append)
    scheduler.open()
    scheduler.run(
        [item(SMALL, 1000), item(LARGE, 3000)],
        done=lambda item, done: None,
        failed=lambda item, why: pytest.fail(why),
    )
    assert workers.tasks == [LARGE, SMALL]
    assert [(s.done, s.total, s.is_estimated) for s in seen] == [
        (0, 400, True),
        (150, 400, True),
        (300, 400, True),
        (300, 800, False),
        (800, 800, False),
        (800, 800, False),
    ]
    lefts = [status.seconds_left for status in seen]
    assert lefts[0] is None
    assert lefts[1:3] == [pytest.approx(250 / (150 / 20)), pytest.approx(100 / 10)]
    assert lefts[3] == pytest.approx(500 / (300 / 40))
    assert "2, 500 of 500" in seen[4].workers["worker 1"]


def test_frames_of_inputs_that_nobody_has_opened() -> None:
    """They are unknown; inputs that were finished before, or failed, do not count."""
    items = [item(1, 3000), item(2, 1000)]
    assert frames_in_all(items) == (None, True)
    items[0].finished = True
    assert frames_in_all(items) == (None, True)
    items[1].frames = 20
    assert frames_in_all(items) == (20, False)
    assert frames_in_all([]) == (0, False)
