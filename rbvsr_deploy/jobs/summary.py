"""Defines the report of a finished job."""

from __future__ import annotations

from dataclasses import dataclass, field

from rbvsr_deploy.engines.base import Description
from rbvsr_deploy.runtime.memory_plan import MemoryPlan
from rbvsr_deploy.runtime.stream import SceneRecord
from rbvsr_deploy.video.changes import Change

__all__ = ["Summary", "WorkerRecord"]


@dataclass
class WorkerRecord:
    """Reports what one of several workers did."""

    name: str
    host: str = ""
    frames: int = 0
    """Frames it upscaled, including those that another worker upscaled first."""
    seconds: float = 0.0
    """Time it was at work."""
    tasks: int = 0
    """Units, or whole inputs, that it finished."""
    retries: int = 0
    """Tasks that failed on it, or that it died of."""
    bytes: int = 0
    """Bytes of encoded frames."""
    left_out: str | None = None
    """Why it was not used, or not used any longer."""


@dataclass(frozen=True)
class Summary:
    """Reports what a job did; ``rbvsr-run --json`` prints it."""

    input: str
    output: str
    frames: int
    resumed_frames: int
    """Number of them that an earlier run had finished."""
    width: int
    """Width of the output in pixels."""
    height: int
    """Height of the output in pixels."""
    engine: Description
    memory: int
    """Memory limit of the plan, in bytes."""
    plan: MemoryPlan
    """The memory plan that the job ended with."""
    scenes: list[SceneRecord]
    excerpt: dict[str, float] | None = None
    """The requested excerpt of the input, if not all of it: ``start`` and ``end`` in seconds from
    its first frame, and ``frames``, whichever were given. Frames are numbered from the excerpt's
    first.
    """
    lost_frames: int = 0
    """Number of frames of a damaged video that could not be decoded and are missing in the output.
    """
    damaged_frames: int = 0
    """Number of frames of the output whose input frames were damaged."""
    kept: list[Change] = field(default_factory=list)
    """Parts of the input besides its frames that the output keeps, such as audio streams."""
    converted: list[Change] = field(default_factory=list)
    """Parts that the output keeps in another form."""
    dropped: list[Change] = field(default_factory=list)
    """Parts that are not in the output."""
    seconds: dict[str, float] = field(default_factory=dict)
    """``read``, ``network`` and ``write``: time that each was busy, all at once; ``waited``: time
    that the network waited for the other two; ``total``: from start to end.
    """
    workers: list[WorkerRecord] = field(default_factory=list)
    """What each worker did, if there were several."""
