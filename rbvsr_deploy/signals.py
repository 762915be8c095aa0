"""Handles the signals that ask a process to end, on every system."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

__all__ = ["handle_termination"]

# SIGHUP: the terminal was closed; SIGBREAK: the same on Windows, or Ctrl-Break.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")


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
    for number in handled:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
