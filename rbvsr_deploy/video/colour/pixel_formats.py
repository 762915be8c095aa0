"""Which of an encoder's pixel formats comes closest to an input's."""

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
    """The pixel format that loses least, and among those the one that is least in excess.

    Args:
        names: of the formats to choose from, as FFmpeg calls them.
        depth: bits per sample that are wanted.
        like: the name of a format whose chroma is wanted.
        alpha: whether opacity has to be held.

    Returns:
        ``None`` where none of them does.
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
            # Formats for full range only, and for semi-planar hardware, come last.
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
    """Samples of chroma across and down for 16 pixels."""
    if video_format.is_rgb:
        return 16, 16
    return video_format.chroma_width(16), video_format.chroma_height(16)
