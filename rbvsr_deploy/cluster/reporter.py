"""Reports how far a worker is with a task."""

from __future__ import annotations

import time
from collections.abc import Callable

from rbvsr_deploy.cluster.messages import FromWorker, Progress
from rbvsr_deploy.runtime.context import STAGE_SHARES
from rbvsr_deploy.runtime.stream import Stage
from rbvsr_deploy.video import Job

__all__ = ["CancelledError", "Reporter"]

_SECONDS_BETWEEN_REPORTS = 0.5


class CancelledError(Exception):
    """Nobody needs the result of the task any more."""


class Reporter:
    """Reports the progress of a task, and ends it if it was cancelled.

    Args:
        number: of the task.
        send: called with reports.
        cancelled: numbers of tasks to be ended.
        first: number of the task's first frame.
        job: job whose finished segments another try does not repeat.
        whole: whether the task is a whole input, whose length the coordinator does not know.
    """

    def __init__(
        self,
        number: int,
        send: Callable[[FromWorker], None],
        cancelled: set[int],
        *,
        first: int = 0,
        job: Job | None = None,
        whole: bool = False,
    ) -> None:
        self._number = number
        self._send = send
        self._cancelled = cancelled
        self._first = first
        self._job = job
        self._stages: dict[str, int] = {}
        self._whole = whole
        self._frames: int | None = None
        self._last = -_SECONDS_BETWEEN_REPORTS

    def begin(self, resumed: int) -> None:
        """Report the frames of an earlier try."""
        self._stages = dict.fromkeys(map(str, STAGE_SHARES), resumed - self._first)
        self._report()

    def progress(self, stage: Stage, done: int, total: int | None) -> None:
        """Take the progress of a run."""
        if self._number in self._cancelled:
            raise CancelledError
        self._stages[stage] = done - self._first
        self._frames = total if self._whole else None
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_REPORTS:
            self._report()

    def _report(self) -> None:
        self._last = time.monotonic()
        kept = sum(s.frames for s in self._job.segments) if self._job is not None else 0
        self._send(Progress(self._number, dict(self._stages), kept, self._frames))
