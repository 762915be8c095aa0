"""Shows the progress of a job and the time left on standard error: a bar on a terminal, an
occasional plain line elsewhere.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.commands._common import report
from rbvsr_deploy.commands._process import exit_if_signalled
from rbvsr_deploy.printable import printable
from rbvsr_deploy.units import show_duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from rbvsr_deploy.cluster.work import Status
    from rbvsr_deploy.runtime.context import Stage

__all__ = [
    "CompileDisplay",
    "FramesDisplay",
    "ProgressDisplay",
    "TrainingDisplay",
    "WorkersDisplay",
]

_SECONDS_BETWEEN_LINES = 5.0
_MOST_WORKERS = 16  # on a line


class _Display(Closing):
    """A context manager that shows nothing until it is called.

    Args:
        transient: remove the bar at the end.
    """

    def __init__(self, *, transient: bool = False) -> None:
        self._transient = transient
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._began = False
        self._last_line = time.monotonic()

    def close(self) -> None:
        """Stop drawing."""
        if self._bars is not None:
            self._bars.stop()

    def _bar(self, text: str, *, done: float, total: float | None, note: str = "") -> bool:
        """Move the bar; return False if there is none, as standard error is not a terminal."""
        if not self._began:
            self._began, self._bars = True, _start_bars(transient=self._transient)
        if self._bars is None:
            return False
        if self._task is None:
            self._task = self._bars.add_task("", note="")
        text = printable(text)
        self._bars.update(self._task, description=text, completed=done, total=total, note=note)
        return True

    def _line(self, text: str, *, due: bool) -> None:
        """Print a line if it is due, or if the last one was long ago."""
        now = time.monotonic()
        if due or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            report(text)


class ProgressDisplay(_Display):
    """Shows the progress of a video; for :data:`rbvsr_deploy.jobs.upscale_file.Progress`."""

    def __init__(self) -> None:
        super().__init__()
        self._start = time.monotonic()
        self._fractions: dict[Stage, float] = {}
        self._first: float | None = None

    def __call__(self, stage: Stage, done: int, total: int | None) -> None:
        exit_if_signalled()
        now = time.monotonic()
        whole = self._fraction_done(stage, done, total)
        if self._first is None:  # resumed work takes no time in this run
            self._first, self._start = whole, now
        here, finished = whole - self._first, stage == "forward" and done == total
        left = "" if here <= 0.01 or finished else _left((now - self._start) * (1 - whole) / here)
        text = f"{stage}: {done} of {total or 'unknown'} frames"
        if not self._bar(text, done=whole, total=1.0, note=left):
            share = f"{text} ({whole:.0%} done)" if total and not finished else text
            self._line(", ".join(filter(None, (share, left))), due=finished)

    def _fraction_done(self, stage: Stage, done: int, total: int | None) -> float:
        """Return the fraction of the whole job that is done, 0 to 1."""
        from rbvsr_deploy.runtime.context import STAGE_SHARES

        if total:
            self._fractions[stage] = min(1.0, done / total)
        return sum(STAGE_SHARES[name] * fraction for name, fraction in self._fractions.items())


class WorkersDisplay(_Display):
    """Shows the progress of several workers: a bar, or a line now and then with what each does."""

    def __init__(self) -> None:
        super().__init__()
        self._what = ""

    def __call__(self, status: Status) -> None:
        exit_if_signalled()
        if status.what != self._what:
            self._what, self._task = status.what, None
        left = "" if status.seconds_left is None else _left(status.seconds_left)
        about = "about " if status.is_estimated and status.total else ""
        text = f"{status.what}: {status.done:.0f} of {about}{status.total or 'unknown'}"
        busy = [f"{name}: {doing}" for name, doing in status.workers.items()]
        total = float(status.total) if status.total else None
        if not self._bar(text, done=status.done, total=total, note="  ".join([left, *busy[:4]])):
            self._line("; ".join(filter(None, (text, left, *busy[:_MOST_WORKERS]))), due=False)


class CompileDisplay(_Display):
    """Shows the progress of compiling; for :data:`rbvsr_deploy.engines.tensorrt.build.Progress`."""

    def __init__(self) -> None:
        super().__init__(transient=True)
        self._graph = ""

    def __call__(self, graph: str, phase: str, step: int, steps: int) -> None:
        text = f"compiling {graph}"
        if not self._bar(f"{text}: {phase.lower()}", done=step, total=steps):
            self._line(text, due=graph != self._graph)
        self._graph = graph


class FramesDisplay(_Display):
    """Shows which of several sequences is being processed, and its progress.

    Args:
        sequences: their number.
    """

    def __init__(self, sequences: int) -> None:
        super().__init__(transient=True)
        self._sequences = sequences
        self._names: list[str] = []

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """Show the progress of a sequence.

        Args:
            name: the sequence.
            done: number of its frames that are done.
            total: number of all its frames, if known.
        """
        new = name not in self._names[-1:]
        if new:
            self._names.append(name)
        text = f"{name} ({len(self._names)} of {self._sequences})"
        frames = f"frame {done} of {total or 'unknown'}"
        if not self._bar(text, done=done, total=total, note=frames):
            self._line(text if new else f"{text}: {frames}", due=new)


class TrainingDisplay(_Display):
    """Shows a bar for each phase of a training; for :data:`rbvsr_deploy.training.run.OnStep`."""

    def __init__(self) -> None:
        super().__init__()
        self._phase = ""
        self._first, self._start = 0, 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        new = phase != self._phase
        if new:
            # The first iteration includes setup, so the estimate starts after it.
            self._phase, self._first, self._start, self._task = phase, done, now, None
        here = done - self._first
        left = _left((now - self._start) * (total - done) / here) if here and done < total else ""
        text = f"{phase}: {done} of {total} iterations"
        if not self._bar(text, done=done, total=total, note=left):
            self._line(", ".join(filter(None, (text, left))), due=new or done == total)


def _left(seconds: float) -> str:
    return f"{show_duration(seconds)} left"


def _start_bars(*, transient: bool) -> Bars | None:
    """Start bars with a field for a note on standard error; ``None`` if it is not a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=transient,
    )
    bars.start()
    return bars
