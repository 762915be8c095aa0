"""Prepares the process of a command: its standard streams and its signals."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator

__all__ = ["discard", "handle_signals", "prepare_streams"]


def prepare_streams() -> None:
    """Open the null device for closed standard streams, and let no character fail to print.

    Files take the lowest free descriptor: without the former, an output file could take that of a
    closed standard stream, and whatever a library prints there would end up in the file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def discard(descriptor: int) -> None:
    """Send a standard stream that cannot be written to the null device.

    What is left in its buffer would otherwise fail again when the process ends.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


@contextlib.contextmanager
def handle_signals(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Handle Ctrl-C, termination and hang-up, except those the process was started to ignore."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    handled = [number for number in numbers if before[number] not in (signal.SIG_IGN, None)]
    for number in handled:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
