"""Defines what the coordinator needs of its workers, wherever they run."""

from __future__ import annotations

import queue
from abc import abstractmethod

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.cluster.messages import Cancel, FromWorker, Piece, Task

__all__ = ["Workers"]


class Workers(Closing):
    """Starts workers and exchanges messages with them; closing it ends all of them.

    A worker first sends ``Ready`` or ``Refused``, then answers one task after the other. When it
    ends for any reason, ``Gone`` is received in its name.
    """

    def __init__(self) -> None:
        self._messages: queue.Queue[tuple[str, FromWorker]] = queue.Queue()

    @abstractmethod
    def start(self) -> None:
        """Start all workers, without waiting for them."""

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Names of the workers that exist or are being started; more can come at any time."""

    @abstractmethod
    def send(self, name: str, message: Task | Piece | Cancel) -> None:
        """Send a message; nothing happens if the worker is gone."""

    def receive(self, *, timeout: float) -> tuple[str, FromWorker] | None:
        """Return the next message and the name of its worker; ``None`` if there is none in time."""
        try:
            return self._messages.get(timeout=timeout)
        except queue.Empty:
            return None

    @abstractmethod
    def restart(self, name: str) -> None:
        """Start a worker that is gone once more, under the same name."""

    @abstractmethod
    def stop(self, name: str) -> None:
        """End a worker for good."""
