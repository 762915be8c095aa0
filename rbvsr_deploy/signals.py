"""Handles the signals that ask a process to end, on every system."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

__all__ = ["end_if_stuck", "handle_termination", "on_signal"]

_PATIENCE = 5.0  # seconds
_MARGIN = 1.0  # seconds between a signal and the moment at which a thread is informed of it

# SIGHUP: the terminal was closed; SIGBREAK: the same on Windows, or Ctrl-Break.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")

_ends: list[Callable[[], object]] = []
_handled = 0.0
"""Time of the last signal that was handled, on the clock of ``time.monotonic``."""


@contextlib.contextmanager
def handle_termination(handler: Callable[[int, object], object]) -> Iterator[None]:
    """Handle Ctrl-C, termination and hang-up inside the block, but not those the process ignores.

    Only the main thread may do that; in others, the block runs as if there were no signals.

    Args:
        handler: called with the number of the signal and the current frame.
    """
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    handled = [number for number in numbers if before[number] not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread():
        handled = []

    def handle(number: int, frame: object) -> None:
        global _handled
        _handled = time.monotonic()
        handler(number, frame)

    for number in handled:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])


@contextlib.contextmanager
def end_if_stuck(report: Callable[[], object]) -> Iterator[None]:
    """End the process inside the block if a signal waits for its handler for seconds.

    Python handles signals in its main thread and between two of its own instructions. A library
    that decodes or computes for minutes keeps them waiting; unfinished work is as after a kill.

    Args:
        report: called before the end, in another thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)

    def watch() -> None:
        with reading:
            while received := reading.recv(1):
                arrived = time.monotonic()
                if getattr(signal.getsignal(received[0]), "__module__", "") != __name__:
                    continue  # not handled above
                for end in tuple(_ends):
                    end()
                time.sleep(_PATIENCE)
                if _handled < arrived - _MARGIN:
                    report()
                    os._exit(128 + received[0])

    threading.Thread(target=watch, name="signals", daemon=True).start()
    # The system writes the number of every signal there, whatever the main thread is doing.
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writing.close()


@contextlib.contextmanager
def on_signal(end: Callable[[], object]) -> Iterator[None]:
    """Call a function from another thread when a signal arrives in the block, to end a library's
    work. Only within :func:`end_if_stuck`, as in commands; elsewhere the work ends by itself.
    """
    _ends.append(end)
    try:
        yield
    finally:
        _ends.remove(end)


def _forget_descriptor() -> None:
    """Keep the signals of a forked process from being taken for those of its parent."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.set_wakeup_fd(-1)


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_descriptor)
