"""How far a job is and how long it still takes: one bar on a terminal, now and then a plain line
elsewhere. Everything goes to standard error.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

import click

from rbvsr_deploy.duration import show_duration
from rbvsr_deploy.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID
    from typing_extensions import Self

    from rbvsr_deploy.stream import Stage

__all__ = ["CompileDisplay", "FramesDisplay", "ProgressDisplay", "TrainingDisplay"]

# Share of a frame's work per stage, from the arithmetic of the compact network; only the estimate
# of the time left depends on it.
_SHARES: dict[Stage, float] = {"clean": 0.1, "backward": 0.35, "forward": 0.55}

_SECONDS_BETWEEN_LINES = 5.0


class _Display:
    """A context manager that shows nothing before it is called.

    Args:
        transient: the bar disappears at the end.
    """

    def __init__(self, *, transient: bool = False) -> None:
        self._transient = transient
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._began = False
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def _bar(self, text: str, *, done: float, total: float | None, note: str = "") -> bool:
        """Move the bar; False if standard error is no terminal and has none."""
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
        """Write a line if it is due, or if the last one was long ago."""
        now = time.monotonic()
        if due or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            click.echo(printable(text), err=True)


class ProgressDisplay(_Display):
    """A callable for :data:`rbvsr_deploy.upscale_file.Progress`."""

    def __init__(self) -> None:
        super().__init__()
        self._start = time.monotonic()
        self._part: dict[Stage, float] = {}
        self._first: float | None = None

    def __call__(self, stage: Stage, done: int, total: int | None) -> None:
        now = time.monotonic()
        part = self._done(stage, done, total)
        if self._first is None:  # what an earlier run had done took none of this one's time
            self._first, self._start = part, now
        here, finished = part - self._first, stage == "forward" and done == total
        left = "" if here <= 0.01 or finished else _left((now - self._start) * (1 - part) / here)
        text = f"{stage}: {done} of {total or 'unknown'} frames"
        if not self._bar(text, done=part, total=1.0, note=left):
            self._line(", ".join(filter(None, (text, left))), due=finished)

    def _done(self, stage: Stage, done: int, total: int | None) -> float:
        """Part of the whole job that is done, 0 to 1."""
        if total:
            self._part[stage] = min(1.0, done / total)
        return sum(_SHARES[name] * part for name, part in self._part.items())


class CompileDisplay(_Display):
    """A callable for :data:`rbvsr_deploy.engines.tensorrt.build.Progress`."""

    def __init__(self) -> None:
        super().__init__(transient=True)
        self._graph = ""

    def __call__(self, graph: str, phase: str, step: int, steps: int) -> None:
        text = f"compiling {graph}"
        if not self._bar(f"{text}: {phase.lower()}", done=step, total=steps):
            self._line(text, due=graph != self._graph)
        self._graph = graph


class FramesDisplay(_Display):
    """Shows which sequence of several is worked on, and how far it is.

    Args:
        sequences: how many there are.
    """

    def __init__(self, sequences: int) -> None:
        super().__init__(transient=True)
        self._sequences = sequences
        self._names: list[str] = []

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """Takes the sequence's name, its frames that are done, and, where known, all of them."""
        new = name not in self._names[-1:]
        if new:
            self._names.append(name)
        text = f"{name} ({len(self._names)} of {self._sequences})"
        frames = f"frame {done} of {total or 'unknown'}"
        if not self._bar(text, done=done, total=total, note=frames):
            self._line(text if new else f"{text}: {frames}", due=new)


class TrainingDisplay(_Display):
    """A callable for :data:`rbvsr_deploy.training.run.OnStep`; a bar for each phase."""

    def __init__(self) -> None:
        super().__init__()
        self._phase = ""
        self._first, self._start = 0, 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        new = phase != self._phase
        if new:
            # The first iteration, with everything that is set up in it, says nothing of the rest.
            self._phase, self._first, self._start, self._task = phase, done, now, None
        here = done - self._first
        left = _left((now - self._start) * (total - done) / here) if here and done < total else ""
        text = f"{phase}: {done} of {total} iterations"
        if not self._bar(text, done=done, total=total, note=left):
            self._line(", ".join(filter(None, (text, left))), due=new or done == total)


def _left(seconds: float) -> str:
    return f"{show_duration(seconds)} left"


def _start_bars(*, transient: bool) -> Bars | None:
    """Bars on standard error, with a field for a note; ``None`` if that is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
        transient=transient,
    )
    bars.start()
    return bars
