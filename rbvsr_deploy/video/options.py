"""What a user can wish for an input and an output."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

__all__ = ["ReadOptions", "WriteOptions"]


@dataclass(frozen=True)
class ReadOptions:
    """How an input is read. Whoever reads it again with the same options sees the same frames."""

    fps: Fraction | None = None
    """Frames per second of a video made of a folder of pictures; ``None``: 25."""


@dataclass(frozen=True)
class WriteOptions:
    """How an output is written."""

    codec: str | None = None
    """Encoder of a video; ``None``: H.264, VP9 in WebM."""
    crf: float | None = None
    """Quality of a video on the encoder's scale, smaller is better; ``None``: 18 for H.264."""
    pix_fmt: str | None = None
    """Pixel format of a video; ``None``: 8-bit 4:2:0."""
