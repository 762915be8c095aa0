"""Reads the progress and the errors of a running ``rbvsr-run`` from its messages."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from rbvsr_deploy.printable import printable

__all__ = ["Progress", "last_error", "read_messages", "read_progress"]

_END = 2**15
"""Bytes that are read from the end of the messages."""

_LINE = re.compile(
    r"^(?P<stage>clean|backward|forward): (?P<done>\d+) of (?P<total>\d+|unknown) frames"
    r"(?: \((?P<percent>\d+)% done\))?(?:, (?P<left>.+) left)?$",
    re.MULTILINE,
)
_DURATION = re.compile(r"(\d+) (d|h|min|s)\b")
_SECONDS = {"d": 86400, "h": 3600, "min": 60, "s": 1}
_FLAGS = re.compile(r" \((--[\w-]+(, )?)+\)$|^Invalid value for '[^']+': ")


@dataclass(frozen=True)
class Progress:
    """Describes how far a step is."""

    fraction: float
    """Part of the work that is done, 0 to 1."""
    seconds_left: float | None
    """Estimated, if it is known."""


def read_progress(log: Path, *, now: float) -> Progress | None:
    """Return the progress from the last line about it, moved on by the time since then.

    Args:
        log: file of messages.
        now: current time, in seconds since the epoch.

    Returns:
        ``None`` if nothing is known yet.
    """
    try:
        age = max(0.0, now - os.stat(log).st_mtime)
    except OSError:
        return None
    lines = list(_LINE.finditer(read_messages(log)))
    if not lines or lines[-1]["percent"] is None:
        return None
    found = lines[-1]
    fraction = int(found["percent"]) / 100
    left = sum(int(n) * _SECONDS[unit] for n, unit in _DURATION.findall(found["left"] or ""))
    if not left:
        return Progress(fraction, None)
    passed = min(age, 0.9 * left)
    return Progress(fraction + (1 - fraction) * passed / left, left - passed)


def last_error(log: Path) -> str:
    """Return the sentence with which ``rbvsr-run`` failed, without names of its options; empty if
    there is none.
    """
    lines = [line for line in read_messages(log).splitlines() if line.startswith("Error: ")]
    return _FLAGS.sub("", lines[-1].removeprefix("Error: ")) if lines else ""


def read_messages(log: Path) -> str:
    """Return the last messages, safe to show; empty if there are none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _END))
            return printable(file.read().decode("utf-8", errors="replace"))
    except OSError:
        return ""
