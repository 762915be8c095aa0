"""Runs a worker as a process of this machine: messages come in on standard input and go out on
standard output, one line each.

The process ends when its standard input does, whatever it is doing: a coordinator that was killed
leaves no worker behind.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from rbvsr_deploy.cluster.messages import (
    Cancel,
    FromWorker,
    Piece,
    Setup,
    Task,
    from_json,
    to_json,
)
from rbvsr_deploy.engines.processors import core_shares

if TYPE_CHECKING:
    from rbvsr_deploy.cluster.worker import Worker

__all__ = ["keep_to_share", "main"]


def keep_to_share(setup: Setup) -> None:
    """Keep this process to its share of the processor's cores; call it before any thread starts."""
    if setup.share > 1 and not setup.on_gpu and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, core_shares(setup.share)[setup.place])


def main(open_engine: Callable[..., Any] | None = None) -> None:
    """Work until standard input ends.

    Args:
        open_engine: opens another engine than :func:`rbvsr_deploy.engines.open_engine`.
    """
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print must not be taken for messages
    lock = threading.Lock()

    def send(message: FromWorker) -> None:
        with lock, contextlib.suppress(OSError):  # the coordinator is gone, and this process soon
            out.write(to_json(message) + b"\n")

    setup = from_json(sys.stdin.buffer.readline(), of_worker=False)
    if not isinstance(setup, Setup):
        raise msgspec.ValidationError("the first message is not a setup")
    keep_to_share(setup)
    tasks: queue.Queue[Task | Piece] = queue.Queue()
    opened: list[Worker] = []

    def receive() -> None:
        for line in sys.stdin.buffer:
            message = from_json(line, of_worker=False)
            if not isinstance(message, Cancel):
                tasks.put(message)
            elif opened:
                opened[0].cancel(message.number)
        for worker in opened:
            worker.discard()
        os._exit(0)

    threading.Thread(target=receive, name="messages", daemon=True).start()
    # Importing takes a while, in which the coordinator may already be gone.
    from rbvsr_deploy.cluster.worker import work

    work(setup, tasks, send, opened=opened.append, open_engine=open_engine)


if __name__ == "__main__":
    main()
