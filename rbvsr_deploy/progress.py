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

    from rbvsr_deploy.upscale import Stage

__all__ = ["ProgressDisplay"]

# Share of a frame's work per stage, from the arithmetic of the compact network; only the estimate
# of the time left depends on it. Writing happens within "forward".
_SHARES: dict[Stage, float] = {"read": 0.02, "clean": 0.18, "backward": 0.35, "forward": 0.45}

_SECONDS_BETWEEN_LINES = 5.0


class ProgressDisplay:
    """A callable for :data:`rbvsr_deploy.upscale.Progress` that shows on standard error; a context
    manager.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._last_line = self._start
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressDisplay:
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal:
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars

            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[left]}"),
                TimeElapsedColumn(),
                console=console,
            )
            self._task = self._bars.add_task("", total=1.0, left="")
            self._bars.start()
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
        part = self._part(stage, done, total)
        text = f"{stage}: {done} of {total or 'unknown'} frames"
        left = (
            f"{(now - self._start) * (1 - part) / part:.0f} s left"
            if part > _SHARES["read"]
            else ""
        )
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=part, description=text, left=left)
        elif done == total or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            click.echo(f"{text}, {left}" if left else text, err=True)

    @staticmethod
    def _part(stage: Stage, done: int, total: int | None) -> float:
        """Part of the whole job that is done, 0 to 1."""
        before = 0.0
        for name, share in _SHARES.items():
            if name == stage:
                return before + (share * min(1.0, done / total) if total else 0.0)
            before += share
        return before
