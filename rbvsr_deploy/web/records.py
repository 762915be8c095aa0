"""Defines what is stored about a job: its input, its settings, and the state of its two steps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Kind", "Record", "Settings", "State", "Step", "StepName"]

Kind = Literal["file", "folder"]
StepName = Literal["preview", "run"]
State = Literal["new", "waiting", "running", "cancelled", "failed", "done"]
"""State of a step; "running" also after the server was killed, until it resumes the step."""


@dataclass(frozen=True)
class Settings:
    """Holds what a user chooses for a job; texts are passed to ``rbvsr-run`` as typed."""

    model: str = ""
    """Name of one of the server's models; the first one if empty."""
    size: str = "4"
    """Multiple of the input's size, or with a "p" at the end the height in rows."""
    strength: float = 1.0
    denoise: float = 1.0
    start: str = ""
    end: str = ""

    def arguments(self) -> list[str]:
        """Return the arguments of ``rbvsr-run``, without the model.

        Each is one word with its value, so that no value can become an option of its own.
        """
        rows = self.size.removesuffix("p")
        given = {
            "scale": "" if rows != self.size or self.size == "4" else self.size,
            "height": rows if rows != self.size else "",
            "strength": "" if self.strength == 1 else f"{self.strength:g}",
            "denoise": "" if self.denoise == 1 else f"{self.denoise:g}",
            "start": self.start.strip(),
            "end": self.end.strip(),
        }
        return [f"--{name}={value}" for name, value in given.items() if value]


@dataclass(frozen=True)
class Step:
    """Holds the state of one step of a job: the preview, or the run over the whole input."""

    state: State = "new"
    settings: Settings = field(default_factory=Settings)
    """Settings of the step's last start."""
    asked: float = 0.0
    """When it was put in the queue, in seconds since the epoch."""
    seconds: float = 0.0
    """Time of its last start until it ended, in seconds."""
    message: str = ""
    """Why it failed, in one sentence."""

    @property
    def is_active(self) -> bool:
        """Whether it is in the queue or running."""
        return self.state in ("waiting", "running")


@dataclass(frozen=True)
class Record:
    """Holds everything about a job that has to survive the server."""

    name: str
    """File or folder name of the input, safe on every system."""
    kind: Kind
    size: int
    """Bytes of the input."""
    created: float
    """In seconds since the epoch."""
    files: int = 1
    uploaded: bool = False
    preview: Step = field(default_factory=Step)
    run: Step = field(default_factory=Step)

    def step(self, name: StepName) -> Step:
        """Return one of the steps."""
        return self.preview if name == "preview" else self.run

    def with_step(self, name: StepName, step: Step) -> Record:
        """Return a copy with another state of a step."""
        if name == "preview":
            return dataclasses.replace(self, preview=step)
        return dataclasses.replace(self, run=step)
