"""Picks the encoder pixel format closest to that of the input."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rbvsr_deploy.video.colour.colour import depth_of, has_alpha, is_grey

if TYPE_CHECKING:
    from av.video.format import VideoFormat

__all__ = ["closest"]


def closest(
    names: Iterable[str], *, depth: int, like: str = "yuv420p", alpha: bool = False
) -> str | None:
    """Return the pixel format that loses the least and, among equals, adds the least.

    Args:
        names: FFmpeg names of the formats to choose from.
        depth: required bits per sample.
        like: name of a format with the required chroma subsampling.
        alpha: whether the format must have an alpha channel.

    Returns:
        The FFmpeg name; ``None`` if no format is suitable.
    """
    wanted = _format(like)
    across, down = _chroma(wanted)

    def loss(name: str) -> tuple[float, ...]:
        found = _format(name)
        chroma = _chroma(found)
        lost = [max(0, across - chroma[0]), max(0, down - chroma[1])]
        return (
            max(0, depth - depth_of(found)),
            sum(lost),
            found.is_rgb != wanted.is_rgb,
            depth_of(found),
            sum(chroma),
            # Formats limited to full range, and semi-planar hardware formats, come last.
            name.startswith("yuvj") or not name.startswith(("yuv", "gbr")),
        )

    good = [
        name
        for name in names
        if _format(name).components
        and has_alpha(_format(name)) == alpha
        and not is_grey(_format(name))
    ]
    return min(good, key=loss, default=None)


def _format(name: str) -> VideoFormat:
    from av.video.format import VideoFormat

    return VideoFormat(name, 16, 16)


def _chroma(video_format: VideoFormat) -> tuple[int, int]:
    """Return the horizontal and vertical number of chroma samples for 16x16 pixels."""
    if video_format.is_rgb:
        return 16, 16
    return video_format.chroma_width(16), video_format.chroma_height(16)
