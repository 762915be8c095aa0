"""Defines what the scheduler knows of tasks and workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from rbvsr_deploy.cluster.messages import Part, Piece, Task
from rbvsr_deploy.jobs.summary import WorkerRecord

__all__ = ["Status", "Try", "WorkItem", "WorkerState", "frames_in_all"]


@dataclass(eq=False)
class WorkItem:
    """A task and what became of it so far."""

    task: Task
    frames: int | None
    """Its length; ``None``: not known until a worker has opened the input."""
    name: str
    """How messages call it, such as "frames 0 to 119"."""
    size: int = 0
    """Bytes of an input whose length is not known: the largest is handed out first."""
    prepare: Callable[[Callable[[Piece], None]], None] | None = None
    """Sends what a worker needs before the task."""
    take_part: Callable[[Part], None] | None = None
    """Takes what a worker sends before it is done."""
    kept: int = 0
    """Frames that another try does not repeat."""
    tries: int = 0
    """Failed tries since it last got further."""
    tried: dict[str, str] = field(default_factory=dict)
    """Workers that it failed on, and why."""
    running: dict[str, Try] = field(default_factory=dict)
    finished: bool = False

    @property
    def length(self) -> int:
        """Measure by which the tasks of a run are compared."""
        return self.size or self.frames or 0

    def done_frames(self) -> float:
        """Return how many frames' work is done, parts of frames included."""
        if self.finished:
            return self.frames or 0
        return max((t.done for t in self.running.values()), default=float(self.kept))


def frames_in_all(items: Iterable[WorkItem]) -> tuple[float | None, bool]:
    """Return the frames of all tasks, and whether they are estimated: inputs that no worker has
    opened count as if they had as many frames for their bytes as the others. The number is
    ``None`` as long as none was opened.
    """
    known, size, unknown = 0, 0, 0
    for item in items:
        if item.frames is not None:
            known += item.frames
            size += item.size
        elif not item.finished:
            unknown += item.size
    if not unknown:
        return known, False
    return (known + known / size * unknown if known and size else None), True


@dataclass
class Try:
    """A task on a worker."""

    began: float
    first: float | None = None
    """Frames' work that was done when it began."""
    done: float = 0.0
    kept: int = 0

    @property
    def made(self) -> float:
        """Frames' work that this try has done."""
        return max(0.0, self.done - (self.first or 0.0))


@dataclass
class WorkerState:
    """What is known of a worker."""

    record: WorkerRecord
    ready: bool = False
    item: WorkItem | None = None
    failures: int = 0
    """Failed tasks since it last finished one."""
    deaths: int = 0
    """Times that it ended since it was last ready."""
    worked: float = 0.0
    """Frames' work that it has done, by which its rate is measured."""

    def rate(self) -> float | None:
        """Return its frames per second so far."""
        return (
            self.worked / self.record.seconds if self.record.seconds > 0 and self.worked else None
        )


@dataclass(frozen=True)
class Status:
    """The progress of all workers."""

    what: str
    """What is counted: "scenes", whose frames are read, or "frames", which are upscaled."""
    done: float
    """Frames that are done, parts included."""
    total: int | None
    """Frames in all, if known."""
    seconds_left: float | None
    workers: dict[str, str]
    """What each worker is doing, by its name."""
    is_estimated: bool = False
    """Whether ``total`` is estimated, because inputs were not opened yet."""
