"""Defines what a finished job reports."""

from __future__ import annotations

from dataclasses import dataclass, field

from rbvsr_deploy.engines.base import Description
from rbvsr_deploy.runtime.memory_plan import MemoryPlan
from rbvsr_deploy.runtime.stream import SceneRecord

__all__ = ["Summary"]


@dataclass(frozen=True)
class Summary:
    """What a job did; ``rbvsr-run --json`` prints it."""

    input: str
    output: str
    frames: int
    resumed_frames: int
    """How many of them an earlier run had made."""
    width: int
    """Of the output, in pixels."""
    height: int
    engine: Description
    memory: int
    """Bytes the plan was made for."""
    plan: MemoryPlan
    scenes: list[SceneRecord]
    excerpt: dict[str, float] | None = None
    """What of the input was asked for, if not all: ``start`` and ``end`` in seconds from its first
    frame, and ``frames``, whichever were given. Frames are numbered from the excerpt's first.
    """
    lost_frames: int = 0
    """Of a damaged video: how many frames could not be decoded and are not in the output."""
    damaged_frames: int = 0
    """How many frames of the output were made from damaged ones."""
    seconds: dict[str, float] = field(default_factory=dict)
    """``read``, ``network`` and ``write``: how long each was at work, at the same time;
    ``waited``: how long the network waited for the other two; ``total``: from start to end.
    """
