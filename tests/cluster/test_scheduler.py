"""Tests what the scheduler says about the progress, with workers that a test speaks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rbvsr_deploy.cluster import scheduler as module
from rbvsr_deploy.cluster.messages import (
    Cancel,
    Done,
    Failed,
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
    """Is some workers, each of which answers a task as a test has written down.

    Args:
        clock: moves with every message.
        count: number of workers.
        answers: returns the answers to a task of a worker, by the worker's name.
    """

    def __init__(
        self, clock: Clock, count: int, answers: Callable[[str, Task], list[FromWorker]]
    ) -> None:
        super().__init__()
        self._clock = clock
        self._count = count
        self._answer = answers
        self.tasks: list[int] = []

    def start(self) -> None:
        for name in self.names:
            self._messages.put((name, Ready(TimedEngine(0).describe(), {}, "host", 1)))

    @property
    def names(self) -> list[str]:
        return [f"worker {number + 1}" for number in range(self._count)]

    def send(self, name: str, message: Task | Piece | Cancel) -> None:
        assert isinstance(message, FileTask)
        self.tasks.append(message.number)
        for answer in self._answer(name, message):
            self._messages.put((name, answer))

    def receive(self, *, timeout: float) -> tuple[str, FromWorker] | None:
        self._clock.now += 10
        return super().receive(timeout=0)

    def restart(self, name: str) -> None:
        raise AssertionError

    def stop(self, name: str) -> None:
        pass

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
    answers: dict[int, list[FromWorker]] = {
        LARGE: [
            progress(LARGE, 0, 300),
            progress(LARGE, 150, 300),
            Done(LARGE, frames=300, seconds={}, size=1),
        ],
        SMALL: [
            progress(SMALL, 0, 500),
            progress(SMALL, 500, 500),
            Done(SMALL, frames=500, seconds={}, size=1),
        ],
    }
    workers = Script(clock, 1, lambda name, task: answers[task.number])
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


@pytest.mark.parametrize("broken", ["inputs", "worker"])
def test_whose_fault_it_is(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs that fail on every worker are their own fault; a worker is left out if others finish
    what failed on it.
    """
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)

    def answer(name: str, task: Task) -> list[FromWorker]:
        if task.number <= 6 if broken == "inputs" else name == "worker 2":
            return [Failed(task.number, "it failed")]
        return [Done(task.number, frames=5, seconds={}, size=1)]

    done, failed, lines = list[int](), list[int](), list[str]()
    scheduler = Scheduler(Script(clock, 3, answer), report=lines.append)
    scheduler.open()
    scheduler.run(
        [item(number, 1000 - number) for number in range(1, 21)],
        done=lambda item, done_: done.append(item.task.number),
        failed=lambda item, why: failed.append(item.task.number),
    )
    if broken == "inputs":
        assert sorted(failed) == [1, 2, 3, 4, 5, 6]
        assert not any("left out" in line for line in lines)
    else:
        assert sorted(done) == list(range(1, 21))
        assert [line for line in lines if "left out" in line] == [
            "worker 2 on host is left out: 3 tasks in a row failed on it: it failed"
        ]


def test_frames_of_inputs_that_nobody_has_opened() -> None:
    """They are unknown; inputs that were finished before, or failed, do not count."""
    items = [item(1, 3000), item(2, 1000)]
    assert frames_in_all(items) == (None, True)
    items[0].finished = True
    assert frames_in_all(items) == (None, True)
    items[1].frames = 20
    assert frames_in_all(items) == (20, False)
    assert frames_in_all([]) == (0, False)
