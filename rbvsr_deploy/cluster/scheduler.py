"""Hands tasks out to workers, the longest first, and again where they fail or take too long."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

from rbvsr_deploy.cluster.messages import (
    Cancel,
    Done,
    Failed,
    FileTask,
    FromWorker,
    Gone,
    Note,
    Part,
    Progress,
    Ready,
    Refused,
    UnitTask,
)
from rbvsr_deploy.cluster.versions import difference
from rbvsr_deploy.cluster.work import Status, Try, WorkerState, WorkItem, frames_in_all
from rbvsr_deploy.cluster.workers import Workers
from rbvsr_deploy.engines.base import Description
from rbvsr_deploy.errors import EngineError, RbvsrError
from rbvsr_deploy.jobs.summary import WorkerRecord
from rbvsr_deploy.runtime.context import STAGE_SHARES

__all__ = ["Scheduler", "too_often"]

TRIES = 3
"""How often a task is tried without getting further, and a worker without finishing anything."""
_STRAGGLING = 1.5
"""How many times longer the rest of a task must take than the whole on another worker, so that it
is run there too."""
_WORTH = 5.0  # seconds that the rest must take at least
_SECONDS_FOR_OTHERS = 30.0
"""Time that the first worker waits for the others, before their engines are compared."""
_SECONDS_TO_CANCEL = 5.0
_SECONDS_BETWEEN_STATUS = 0.5


class Scheduler:
    """Hands tasks out to workers.

    Args:
        workers: not started yet; the caller closes them.
        mixed: whether to use workers whose engine or versions differ from the others'.
        report: called with a line about every failure.
        watch: called with the progress, several times in a second at most.
    """

    def __init__(
        self,
        workers: Workers,
        *,
        mixed: bool = False,
        report: Callable[[str], None] = lambda line: None,
        watch: Callable[[Status], None] = lambda status: None,
    ) -> None:
        self._workers = workers
        self._mixed = mixed
        self._report = report
        self._watch = watch
        self._states: dict[str, WorkerState] = {}
        self._usual: Ready | None = None
        self._noted: set[str] = set()
        self._items: list[WorkItem] = []
        self._by_number: dict[int, WorkItem] = {}
        self._queue: list[WorkItem] = []
        self._last_status = 0.0
        self._last_error = ""
        self.numbers = itertools.count(1)
        """Numbers for tasks."""

    @property
    def records(self) -> list[WorkerRecord]:
        """What each worker has done."""
        names = [*self._workers.names, *self._states]
        return [self._states[name].record for name in dict.fromkeys(names) if name in self._states]

    def open(self) -> Description:
        """Start the workers, and return the engine that most of them have.

        Raises:
            EngineError: none can work.
        """
        self._workers.start()
        answers: dict[str, Ready] = {}
        deadline: float | None = None
        while True:
            waiting = [n for n in self._workers.names if n not in answers and not self._is_out(n)]
            if not waiting or (deadline is not None and time.monotonic() > deadline):
                break
            received = self._workers.receive(timeout=0.5)
            if received is None:
                continue
            name, message = received
            if isinstance(message, Ready):
                answers[name] = message
                deadline = deadline or time.monotonic() + _SECONDS_FOR_OTHERS
            else:
                self._take(name, message)
        if not answers:
            raise EngineError(f"no worker can work: {self._last_error}")
        kinds = Counter(_kind(answer) for answer in answers.values())
        self._usual = next(a for a in answers.values() if kinds[_kind(a)] == max(kinds.values()))
        for name, answer in answers.items():
            self._welcome(name, answer)
        return self._usual.engine

    def run(
        self,
        items: Iterable[WorkItem],
        *,
        done: Callable[[WorkItem, Done], None],
        failed: Callable[[WorkItem, str], None],
        what: str = "frames",
    ) -> None:
        """Do all tasks.

        Args:
            items: tasks with numbers of their own.
            done: called once for each that is finished.
            failed: called once for each that has failed too often; may raise an error.
            what: see ``Status``.

        Raises:
            EngineError: no worker is left.
        """
        self._items = list(items)
        self._queue = sorted(self._items, key=lambda item: -item.length)
        self._by_number = {item.task.number: item for item in self._items}
        self._done, self._failed, self._what = done, failed, what
        while not all(item.finished for item in self._items):
            self._assign()
            self._receive(timeout=_SECONDS_BETWEEN_STATUS)
            self._show()
        self._end_the_rest()

    def _receive(self, *, timeout: float) -> bool:
        """Take the next message; return whether there was one in time."""
        received = self._workers.receive(timeout=timeout)
        if received is None:
            return False
        name, message = received
        if not isinstance(message, Done | Failed | Progress | Part):
            self._take(name, message)
        elif (item := self._by_number.get(message.number)) is not None:
            self._answer(name, item, message)
        return True

    def _assign(self) -> None:
        """Give every idle worker something to do, if there is anything."""
        usable = {n for n, s in self._states.items() if s.ready}
        if not usable and all(self._is_out(name) for name in self._workers.names):
            raise EngineError(f"no worker is left: {self._last_error}")
        for name in usable:
            state = self._states[name]
            if state.item is not None:
                continue
            item = self._next(name, usable) or self._straggler(name)
            if item is None:
                continue
            state.item = item
            item.running[name] = Try(time.monotonic(), kept=item.kept)
            if item.prepare is not None:
                item.prepare(partial(self._workers.send, name))
            self._workers.send(name, item.task)

    def _next(self, name: str, usable: set[str]) -> WorkItem | None:
        """Take the longest task from the queue that has not failed on this worker, unless it has
        failed on all of them.
        """
        for place, item in enumerate(self._queue):
            if name not in item.tried or usable <= item.tried.keys():
                return self._queue.pop(place)
        return None

    def _straggler(self, name: str) -> WorkItem | None:
        """Return a task that another worker will take much longer for than this one."""
        rates = [rate for s in self._states.values() if (rate := s.rate()) is not None]
        own = self._states[name].rate() or (sum(rates) / len(rates) if rates else None)
        if own is None or self._queue:
            return None
        now, found, longest = time.monotonic(), None, 0.0
        for item in self._items:
            if item.finished or len(item.running) != 1 or not isinstance(item.task, UnitTask):
                continue
            assert item.frames is not None
            (other,) = item.running.values()
            elapsed = now - other.began
            left = elapsed
            if other.made > 0:
                left *= (item.frames - other.done) / other.made
            least = max(_WORTH, _STRAGGLING * item.frames / own)
            if left > longest and left > least and name not in item.tried:
                found, longest = item, left
        return found

    def _answer(self, name: str, item: WorkItem, message: Done | Failed | Progress | Part) -> None:
        """Take a worker's answer to a task."""
        state, attempt = self._states[name], item.running.get(name)
        if attempt is None:
            return
        if isinstance(message, Part):
            if item.take_part is not None:
                item.take_part(message)
            return
        if isinstance(message, Progress):
            done = sum(share * message.stages.get(s, 0) for s, share in STAGE_SHARES.items())
            if attempt.first is None:
                attempt.first = done
            attempt.done, attempt.kept = done, message.kept
            item.frames = message.frames or item.frames
            return
        if isinstance(message, Done):  # short tasks end before they report any progress
            attempt.done = max(attempt.done, (attempt.first or 0.0) + message.frames)
        self._free(state, item, name)
        if isinstance(message, Failed):
            if not message.cancelled:
                self._try_again(name, item, attempt, message.error)
                if not isinstance(item.task, FileTask):
                    self._count_failure(name, message.error)
            return
        state.failures = 0
        state.record.tasks += 1
        state.record.frames += message.frames
        state.record.bytes += message.size
        if item.finished:
            return
        item.finished = True
        if message.summary is not None:
            item.frames = message.summary.frames
        if item in self._queue:
            self._queue.remove(item)
        for other in item.running:
            self._workers.send(other, Cancel(item.task.number))
        if isinstance(item.task, FileTask):  # until now, it may have been the input's fault
            for other, why in item.tried.items():
                self._count_failure(other, why)
        self._done(item, message)

    def _free(self, state: WorkerState, item: WorkItem, name: str) -> None:
        attempt = item.running.pop(name)
        state.item = None
        state.record.seconds += time.monotonic() - attempt.began
        state.worked += attempt.made

    def _try_again(self, name: str, item: WorkItem, attempt: Try, why: str) -> None:
        """Put a task back after it failed, or give it up."""
        self._states[name].record.retries += 1
        if item.finished:
            return
        if attempt.kept > item.kept:
            item.kept, item.tries = attempt.kept, 0
            item.tried.clear()
        item.tries += 1
        item.tried[name] = why
        if item.tries >= TRIES:
            item.finished = True
            for other in item.running:
                self._workers.send(other, Cancel(item.task.number))
            self._failed(item, why)
            return
        self._report(f"{name}: {item.name}: {why}; trying again")
        if not item.running:
            self._queue.append(item)
            self._queue.sort(key=lambda item: -item.length)

    def _count_failure(self, name: str, why: str) -> None:
        """Count a failure as the worker's, and leave it out after several in a row."""
        state = self._states[name]
        state.failures += 1
        if self._is_out(name):
            return
        if state.failures >= TRIES and sum(s.ready for s in self._states.values()) > 1:
            self._workers.stop(name)
            self._leave_out(name, f"{TRIES} tasks in a row failed on it: {why}")

    def _take(self, name: str, message: FromWorker) -> None:
        """Take a message that is not about a task."""
        match message:
            case Ready():
                self._welcome(name, message)
            case Refused():
                self._leave_out(name, message.error)
            case Note() if message.text not in self._noted:
                self._noted.add(message.text)
                self._report(f"{name}: {message.text}")
            case Gone():
                self._mourn(name, message.why)

    def _welcome(self, name: str, answer: Ready) -> None:
        """Use a worker that is ready, if its results are those of the others."""
        assert self._usual is not None
        state = self._state(name)
        state.record.host, state.deaths = answer.host, 0
        differs = difference(
            answer.engine, answer.versions, usual=self._usual.engine, others=self._usual.versions
        )
        if differs is not None and not self._mixed:
            self._workers.stop(name)
            self._leave_out(name, differs)
            return
        if differs is not None:
            self._report(f"{name}: {differs}")
        state.ready = True

    def _mourn(self, name: str, why: str) -> None:
        """Start a worker again that has ended, unless it never gets ready."""
        state = self._state(name)
        if state.record.left_out is not None:
            return
        state.ready = False
        state.deaths += 1
        if (item := state.item) is not None:
            attempt = item.running[name]
            self._free(state, item, name)
            self._try_again(name, item, attempt, f"the worker {why}")
        if state.deaths >= TRIES:
            self._leave_out(name, f"it {why}, {TRIES} times in a row")
        else:
            self._workers.restart(name)

    def _leave_out(self, name: str, why: str) -> None:
        state = self._state(name)
        host = f" on {state.record.host}" if state.record.host else ""
        state.ready, state.record.left_out, self._last_error = False, why, why
        self._report(f"{name}{host} is left out: {why}")

    def _state(self, name: str) -> WorkerState:
        return self._states.setdefault(name, WorkerState(WorkerRecord(name)))

    def _is_out(self, name: str) -> bool:
        return name in self._states and self._states[name].record.left_out is not None

    def _end_the_rest(self) -> None:
        """Wait for workers whose task another one has finished, and leave out those that hang or
        cannot be reached.
        """
        deadline = time.monotonic() + _SECONDS_TO_CANCEL
        while busy := {n: s for n, s in self._states.items() if s.item is not None}:
            if self._receive(timeout=0.1) or time.monotonic() < deadline:
                continue
            for name, state in busy.items():
                assert state.item is not None
                task = state.item.name
                self._free(state, state.item, name)
                self._workers.stop(name)
                self._leave_out(
                    name,
                    f"it did not answer within {_SECONDS_TO_CANCEL:.0f} s after another worker had "
                    f"finished {task}",
                )

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._last_status < _SECONDS_BETWEEN_STATUS:
            return
        self._last_status = now
        total, is_estimated = frames_in_all(self._items)
        done = sum(item.done_frames() for item in self._items)
        rate, doing = 0.0, {}
        for name, state in self._states.items():
            if not state.ready:
                continue
            seconds, worked, what = state.record.seconds, state.worked, "waiting"
            if (item := state.item) is not None:
                attempt = item.running[name]
                seconds += now - attempt.began
                worked += attempt.made
                what = f"{item.name}, {round(attempt.done)} of {item.frames or 'unknown'}"
            if seconds > 0 and worked:
                rate += worked / seconds
                what += f", {worked / seconds:.2f} frames/s"
            doing[name] = what
        left = max(0.0, total - done) / rate if rate and total is not None else None
        whole = None if total is None else round(total)
        self._watch(Status(self._what, done, whole, left, doing, is_estimated))


def _kind(answer: Ready) -> tuple[object, ...]:
    engine = answer.engine
    return (
        engine.model,
        engine.weights,
        engine.engine,
        engine.version,
        engine.device,
        engine.precision,
        engine.placement,
        *sorted(answer.versions.items()),
    )


def too_often(item: WorkItem, why: str) -> RbvsrError:
    """Return the error about a task that has failed too often."""
    return RbvsrError(f"{item.name} failed {TRIES} times, on {len(item.tried)} workers: {why}")
