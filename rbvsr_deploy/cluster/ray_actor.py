"""Runs one worker inside a Ray actor, which is asked for its messages."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rbvsr_deploy.cluster.messages import (
    Cancel,
    FromWorker,
    Piece,
    Progress,
    Setup,
    Task,
    from_json,
    to_json,
)
from rbvsr_deploy.cluster.process import keep_to_share

if TYPE_CHECKING:
    from rbvsr_deploy.cluster.worker import Worker

__all__ = ["SECONDS_WITHOUT_CONTACT", "Actor"]

SECONDS_WITHOUT_CONTACT = 60.0
"""Time after which a worker that nobody asks for messages ends: its coordinator is gone or cannot
be reached, and has given its task to another."""
_SECONDS_TO_ANSWER = 2.0
_MOST_WAITING = 8  # messages, which may be large


class Actor:
    """Works in a thread of its own, so that it can be talked to meanwhile.

    Args:
        setup: a message ``Setup`` as JSON.
        open_engine: opens another engine than :func:`rbvsr_deploy.engines.open_engine`.
    """

    def __init__(self, setup: bytes, open_engine: Callable[..., Any] | None) -> None:
        self._messages: queue.Queue[FromWorker] = queue.Queue(_MOST_WAITING)
        self._tasks: queue.Queue[Task | Piece] = queue.Queue(_MOST_WAITING)
        self._worker: Worker | None = None
        self._contact = time.monotonic()
        message = from_json(setup, of_worker=False)
        assert isinstance(message, Setup)
        keep_to_share(message)
        for target in (lambda: self._work(message, open_engine), self._end_without_contact):
            threading.Thread(target=target, daemon=True).start()

    def send(self, line: bytes) -> None:
        """Take a message for the worker."""
        message = from_json(line, of_worker=False)
        if not isinstance(message, Cancel):
            self._tasks.put(message)
        elif self._worker is not None:
            self._worker.cancel(message.number)

    def receive(self) -> list[bytes]:
        """Return the worker's messages since the last call: at once if there are any but reports
        of progress, otherwise after some time.
        """
        self._contact = time.monotonic()
        deadline = self._contact + _SECONDS_TO_ANSWER
        found: list[FromWorker] = []
        while (left := deadline - time.monotonic()) > 0:
            try:
                message = self._messages.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(message, Progress) and found and isinstance(found[-1], Progress):
                found.pop()
            found.append(message)
            if not isinstance(message, Progress):
                break
        self._contact = time.monotonic()
        return [to_json(message) for message in found]

    def end(self) -> None:
        """Remove temporary files; the actor is killed when this returns."""
        if self._worker is not None:
            self._worker.discard()

    def _work(self, setup: Setup, open_engine: Callable[..., Any] | None) -> None:
        from rbvsr_deploy.cluster.worker import work

        def opened(worker: Worker) -> None:
            self._worker = worker

        work(setup, self._tasks, self._messages.put, opened=opened, open_engine=open_engine)

    def _end_without_contact(self) -> None:
        while time.monotonic() - self._contact < SECONDS_WITHOUT_CONTACT:
            time.sleep(1)
        self.end()
        os._exit(1)
