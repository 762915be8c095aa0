"""How far a job is and how long it still takes: one bar on a terminal, now and then a plain line
elsewhere.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from rbvsr_deploy.stream import Stage

__all__ = ["CompileDisplay", "FramesDisplay", "ProgressDisplay", "TrainingDisplay"]

# Share of a frame's work per stage, from the arithmetic of the compact network; only the estimate
# of the time left depends on it.
_SHARES: dict[Stage, float] = {"clean": 0.1, "backward": 0.35, "forward": 0.55}

_SECONDS_BETWEEN_LINES = 5.0


class ProgressDisplay:
    """A callable for :data:`rbvsr_deploy.upscale_file.Progress` that shows on standard error; a
    context manager.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._last_line = self._start
        self._part: dict[Stage, float] = {}
        self._first: float | None = None
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressDisplay:
        self._bars = _start_bars()
        if self._bars is not None:
            self._task = self._bars.add_task("", total=1.0, left="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: Stage, done: int, total: int | None) -> None:
        now = time.monotonic()
        part = self._done(stage, done, total)
        text = f"{stage}: {done} of {total or 'unknown'} frames"
        if self._first is None:  # what an earlier run had done took none of this one's time
            self._first, self._start = part, now
        here = part - self._first
        left = f"{(now - self._start) * (1 - part) / here:.0f} s left" if here > 0.01 else ""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=part, description=text, left=left)
        elif (stage == "forward" and done == total) or (
            now - self._last_line >= _SECONDS_BETWEEN_LINES
        ):
            self._last_line = now
            click.echo(f"{text}, {left}" if left else text, err=True)

    def _done(self, stage: Stage, done: int, total: int | None) -> float:
        """Part of the whole job that is done, 0 to 1."""
        if total:
            self._part[stage] = min(1.0, done / total)
        return sum(_SHARES[name] * part for name, part in self._part.items())


class CompileDisplay:
    """A callable for :data:`rbvsr_deploy.engines.tensorrt.build.Progress` that shows on standard
    error; a context manager. Nothing is shown before its first call.
    """

    def __init__(self) -> None:
        self._graph = ""
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> CompileDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, graph: str, phase: str, step: int, steps: int) -> None:
        if not self._graph:
            self._bars = _start_bars(transient=True)
            if self._bars is not None:
                self._task = self._bars.add_task("", left="")
        if self._bars is not None and self._task is not None:
            text = f"compiling {graph}: {phase.lower()}"
            self._bars.update(self._task, description=text, completed=step, total=steps)
        elif graph != self._graph:
            click.echo(f"compiling {graph}", err=True)
        self._graph = graph


class FramesDisplay:
    """Shows on standard error which sequence of several is worked on, and how far it is; a context
    manager.

    Args:
        sequences: how many there are.
    """

    def __init__(self, sequences: int) -> None:
        self._sequences = sequences
        self._names: list[str] = []
        self._last_line = time.monotonic()
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> FramesDisplay:
        self._bars = _start_bars(transient=True)
        if self._bars is not None:
            self._task = self._bars.add_task("", left="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """Takes the sequence's name, its frames that are done, and, where known, all of them."""
        new = name not in self._names[-1:]
        if new:
            self._names.append(name)
        text = f"{name} ({len(self._names)} of {self._sequences})"
        frames = f"frame {done} of {total or 'unknown'}"
        if self._bars is not None and self._task is not None:
            self._bars.update(
                self._task, description=text, completed=done, total=total, left=frames
            )
        elif new or time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            click.echo(text if new else f"{text}: {frames}", err=True)


class TrainingDisplay:
    """A callable for :data:`rbvsr_deploy.training.run.OnStep` that shows on standard error; a
    context manager. Nothing is shown before its first call.
    """

    def __init__(self) -> None:
        self._phase = ""
        self._first, self._start, self._last_line = 0, 0.0, 0.0
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        text = f"{phase}: {done} of {total} iterations"
        if self._phase != phase:
            if not self._phase:
                self._bars = _start_bars()
            if self._bars is not None:
                self._task = self._bars.add_task("", left="")
            # The first iteration, with everything that is set up in it, says nothing of the rest.
            self._phase, self._first, self._start = phase, done, now
        here = done - self._first
        left = f"{_duration((now - self._start) * (total - done) / here)} left" if here else ""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=total, description=text, left=left)
        elif done == total or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            click.echo(f"{text}, {left}" if left else text, err=True)


def _duration(seconds: float) -> str:
    """As a person says it: 40 s, 12 min, 3 h 20 min, 2 d 5 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def _start_bars(*, transient: bool = False) -> Bars | None:
    """Bars on standard error, with a field for the time left; ``None`` if that is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[left]}"),
        TimeElapsedColumn(),
        console=console,
        transient=transient,
    )
    bars.start()
    return bars
