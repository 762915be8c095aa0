"""Defines the options for reading an input and writing an output."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from rbvsr_deploy.errors import MediaError

__all__ = ["Alpha", "ReadOptions", "WriteOptions"]


Alpha = Literal["drop", "keep", "refuse"]


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading an input. The same options always give the same frames.

    Raises:
        MediaError: the requested excerpt cannot contain a frame.
    """

    fps: Fraction | None = None
    """Frames per second of a video made from an image folder; ``None``: 25."""
    start: Fraction | None = None
    """Start of an excerpt in seconds after the first frame; ``None``: the first frame."""
    end: Fraction | None = None
    """End of an excerpt in seconds after the first frame, exclusive: frames shown at that time or
    later are left out; ``None``: the end of the input."""
    frames: int | None = None
    """Maximum number of frames of an excerpt; ``None``: unlimited."""
    deinterlace: bool = False
    """Convert interlaced frames of a video to progressive ones: those flagged as
    interlaced, or all of them if none of the first frames is flagged."""
    decoder: str | None = None
    """Type of device to decode a video on, such as "cuda", or the name of an FFmpeg decoder;
    ``None``: FFmpeg's default software decoder."""

    alpha: Alpha = "drop"
    """Treatment of an alpha channel: drop it with a warning, keep it and upscale it without the
    network, or refuse the input."""
    strict: bool = False
    """Refuse a damaged video at the first damaged frame. Otherwise frames that cannot be
    decoded are skipped, as players do.
    """
    allow_playlists: bool = False
    """Follow HLS playlists and concat scripts, which can read any media file of this
    user. Network addresses and live playlists are refused all the same."""

    def __post_init__(self) -> None:
        start = self.start or Fraction(0)
        if start < 0:
            raise MediaError(f"an excerpt must start at 0 s or later, not at {float(start):g} s")
        if self.end is not None and self.end <= start:
            raise MediaError(
                f"an excerpt from {float(start):g} s to {float(self.end):g} s is empty: "
                "it must end after its start"
            )
        if self.frames is not None and self.frames < 1:
            raise MediaError(f"an excerpt must have at least 1 frame, not {self.frames}")

    @property
    def is_excerpt(self) -> bool:
        """Return whether only a part of the input is requested."""
        return (self.start, self.end, self.frames) != (None, None, None)


@dataclass(frozen=True)
class WriteOptions:
    """Options for writing an output."""

    codec: str | None = None
    """Encoder of a video; ``None``: H.264, or VP9 in WebM; for more than 8 bits HEVC, AV1 in WebM,
    or the codec of the input if that is ProRes, FFV1 or DNxHR."""
    crf: float | None = None
    """Quality of a video on the encoder's scale, lower is better; ``None``: 18 for H.264."""
    pix_fmt: str | None = None
    """Pixel format of a video; ``None``: 4:2:0 in 8 or 10 bits, or what the codec needs."""
    audio: bool = True
    """Keep the audio of a video."""
    subtitles: bool = True
    """Keep the subtitles of a video."""
