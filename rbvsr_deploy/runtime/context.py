"""Defines what all scenes of one stream share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.engines.base import Array, Engine
from rbvsr_deploy.runtime.memory_plan import MemoryBudget
from rbvsr_deploy.runtime.resizing import Resizer
from rbvsr_deploy.runtime.settings import Settings
from rbvsr_deploy.runtime.spool import Spool

__all__ = ["STAGE_SHARES", "Context", "Stage"]

Stage = Literal["clean", "backward", "forward"]

STAGE_SHARES: Mapping[Stage, float] = {"clean": 0.1, "backward": 0.35, "forward": 0.55}
"""Share of each stage in a frame's work, counted for the compact network; used only to estimate the
time left.
"""


def _ignore(stage: Stage, frames: int) -> None:
    pass


@dataclass(frozen=True, eq=False)
class Context(Closing):
    """Holds what stays the same from scene to scene; closing it frees the disk, not the engine."""

    engine: Engine
    """Runs the graphs."""
    settings: Settings
    size: tuple[int, int]
    """H and W of the input frames."""
    budget: MemoryBudget
    """Holds the memory plan in effect."""
    deep: bool = False
    """True for uint16 frames and output, False for uint8."""
    any_values: bool = False
    """True to continue with NaN and infinity, False to stop at them."""
    resizer: Resizer | None = None
    """Resizes upscaled frames; ``None``: they stay four times as large as the input."""
    amounts: Mapping[str, Array] = field(default_factory=dict)
    """How much of the cleaning (``mix``) and of the network's output (``blend``) to use, on the
    device, where it is not all."""
    spool: Spool = field(default_factory=Spool)
    """Stores the cleaned frames that do not fit on the device."""
    kept: Spool = field(default_factory=Spool)
    """Stores the backward states that windows start from."""
    progress: Callable[[Stage, int], None] = _ignore
    """Called with a stage and the frames it has done since the last call."""

    places: dict[str, tuple[int, list[Any]]] = field(default_factory=dict)
    """Places on the device that steps use again in every scene, with their batch, by name
    (:mod:`rbvsr_deploy.runtime.propagation`)."""

    @property
    def keeps_uncleaned(self) -> bool:
        """Return whether frames are needed as they were before the cleaning."""
        return bool(self.amounts)

    def close(self) -> None:
        self.places.clear()
        self.spool.close()
        self.kept.close()
