"""What a user can wish for an input and an output."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from rbvsr_deploy.errors import MediaError

__all__ = ["Alpha", "ReadOptions", "WriteOptions"]


Alpha = Literal["drop", "keep", "refuse"]


@dataclass(frozen=True)
class ReadOptions:
    """How an input is read. Whoever reads it again with the same options sees the same frames.

    Raises:
        MediaError: the excerpt that is asked for can have no frame.
    """

    fps: Fraction | None = None
    """Frames per second of a video made of a folder of pictures; ``None``: 25."""
    start: Fraction | None = None
    """Seconds from the first frame to where an excerpt begins; ``None``: with the first frame."""
    end: Fraction | None = None
    """Seconds from the first frame to where an excerpt ends: the first frame that is not in it is
    shown at that time or later; ``None``: at the end of the input."""
    frames: int | None = None
    """How many frames an excerpt has at most; ``None``: any number."""
    deinterlace: bool = False
    """Whether a video's frames are made whole from one of their fields: those that are marked as
    interlaced; all, where none of the first ones is."""
    decoder: str | None = None
    """A kind of device to decode a video on, such as "cuda", or the name of one of FFmpeg's
    decoders; ``None``: FFmpeg's own, in software."""

    alpha: Alpha = "drop"
    """What becomes of opacity: dropped with a warning, kept beside the network, or refused."""
    strict: bool = False
    """Whether a video that is damaged anywhere is refused where the damage is met. Otherwise frames
    that cannot be decoded are left out, and all others shown, as players do.
    """

    def __post_init__(self) -> None:
        start = self.start or Fraction(0)
        if start < 0:
            raise MediaError(f"an excerpt begins at 0 or later, not at {float(start):g} s")
        if self.end is not None and self.end <= start:
            raise MediaError(
                f"an excerpt from {float(start):g} s to {float(self.end):g} s is empty: end it "
                "later than it begins"
            )
        if self.frames is not None and self.frames < 1:
            raise MediaError(f"an excerpt has 1 frame or more, not {self.frames}")

    @property
    def is_excerpt(self) -> bool:
        """Whether a part of the input is asked for."""
        return (self.start, self.end, self.frames) != (None, None, None)


@dataclass(frozen=True)
class WriteOptions:
    """How an output is written."""

    codec: str | None = None
    """Encoder of a video; ``None``: H.264, VP9 in WebM; of more than 8 bits HEVC, AV1 in WebM, or
    the codec of the input if that is ProRes, FFV1 or DNxHR."""
    crf: float | None = None
    """Quality of a video on the encoder's scale, smaller is better; ``None``: 18 for H.264."""
    pix_fmt: str | None = None
    """Pixel format of a video; ``None``: 4:2:0 in 8 or 10 bits, or what suits the codec."""
    audio: bool = True
    """Whether a video keeps its sound."""
    subtitles: bool = True
    """Whether a video keeps its subtitles."""
