"""Defines the settings of a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CONTINUATION_LOOKAHEAD", "LIVE_LOOKAHEAD", "MAX_SCENE", "RefineScope", "Settings"]

MAX_SCENE = 300
"""Default length of the longest scene that is propagated in one go, in frames."""

CONTINUATION_LOOKAHEAD = 32
"""Number of frames after a chunk of a scene longer than ``max_scene`` where its backward branch
begins. The last frame of a chunk, which has the least context, then differs by 0.02 to 0.07 levels
of 255 from that of the whole scene (root mean square, the compact model on four of five real
clips); by 0.06 to 0.13 with 16 frames, by 2 to 4 with none. float16 causes 0.2
(``benchmarks/README.md``).
"""

LIVE_LOOKAHEAD = 2
"""Lookahead for live video, where the delay counts: each frame then costs three backward steps."""

RefineScope = Literal["scene", "frame"]


@dataclass(frozen=True)
class Settings:
    """Holds everything that affects the output, and the memory limit.

    Raises:
        ValueError: a number is out of range.
    """

    lookahead: int | None = None
    """Number of future frames a frame draws on; ``None``: all of its scene."""
    max_scene: int = MAX_SCENE
    """Longest scene that is propagated in one go, in frames; longer ones are cut into chunks."""
    refine_threshold: float | None = None
    """Threshold of dynamic refinement, on the 0-255 scale; ``None``: the model's own."""
    refine_scope: RefineScope = "scene"
    """Unit that decides how often it is cleaned: the scene, or each frame."""
    cleanings: int | None = None
    """Fixed number of cleaning passes instead of a decision."""
    strength: float = 1.0
    """How far the output goes from the input, enlarged by bilinear interpolation (0), to the output
    of the network (1)."""
    denoise: float = 1.0
    """How much of the cleaning is applied, from nothing (0) to all of it (1)."""
    memory: int | None = None
    """Bytes to use on the device; ``None``: half of the free memory. Does not affect the output."""

    def __post_init__(self) -> None:
        for name, least in (("lookahead", 0), ("max_scene", 1), ("cleanings", 0), ("memory", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")
        for name in ("strength", "denoise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.refine_scope not in ("scene", "frame"):
            raise ValueError(f"refine_scope must be 'scene' or 'frame', got {self.refine_scope!r}")

    @property
    def passes(self) -> int | None:
        """Fixed number of cleaning passes; ``None``: decided by dynamic refinement."""
        return 0 if self.denoise == 0 else self.cleanings

    @property
    def chunk(self) -> int:
        """Number of frames propagated in one go; a single one with a bounded lookahead."""
        return self.max_scene if self.lookahead is None else 1

    @property
    def ahead(self) -> int:
        """Number of frames after a chunk where its backward branch begins."""
        return CONTINUATION_LOOKAHEAD if self.lookahead is None else self.lookahead
