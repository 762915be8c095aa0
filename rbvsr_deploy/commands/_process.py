"""Prepares the process of a command: its standard streams and its signals."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import click

from rbvsr_deploy.signals import end_if_stuck, handle_termination

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

__all__ = [
    "INTERRUPTED",
    "discard",
    "exit_if_signalled",
    "exit_on_signals",
    "prepare_streams",
    "send_to_main",
]

INTERRUPTED = "Interrupted; run the same command again to continue."

_received: list[int] = []
"""Signals that asked the running command to end, and have not been reported yet."""


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
def exit_on_signals() -> Iterator[list[int]]:
    """Exit on Ctrl-C, termination and hang-up, but not on those the process has to ignore.

    The exit is an exception, so that unfinished outputs are removed. Libraries may discard it: see
    :func:`exit_if_signalled`. Those that do not return for seconds are ended with the process.

    Yields:
        The signals that were received; the caller removes those it has reported.
    """
    received = _received

    def stop(number: int, frame: object) -> NoReturn:
        received.append(number)
        raise SystemExit(128 + number)

    def stop_later(unraisable: UnraisableHookArgs) -> None:
        # Python ignores exceptions in some callbacks: the signal has to come again, outside.
        if isinstance(unraisable.exc_value, SystemExit) and received:
            threading.Timer(0.5, send_to_main, received[-1:]).start()
        else:
            show_ignored(unraisable)

    show_ignored, sys.unraisablehook = sys.unraisablehook, stop_later
    try:
        with handle_termination(stop), end_if_stuck(_report_interruption):
            yield received
    finally:
        sys.unraisablehook = show_ignored


def exit_if_signalled() -> None:
    """Exit if a signal was received whose exception some library has discarded. Call it where a
    command is making progress, not where it cleans up.

    Raises:
        SystemExit: with the exit code of the first signal.
    """
    if _received and threading.current_thread() is threading.main_thread():
        raise SystemExit(128 + _received[0])


def _report_interruption() -> None:
    with contextlib.suppress(OSError):
        click.echo(INTERRUPTED, err=True)


def send_to_main(number: int) -> None:
    """Send a signal to the main thread, which may be waiting."""
    main = threading.main_thread().ident
    if main is not None and sys.platform != "win32":
        signal.pthread_kill(main, number)
    else:
        signal.raise_signal(number)
