"""Applies the alpha option: the network upscales RGB only, so alpha bypasses it or is dropped."""

from __future__ import annotations

from pathlib import Path

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.changes import Changes
from rbvsr_deploy.video.options import Alpha

__all__ = ["keeps_opacity", "no_room_for_opacity"]


def keeps_opacity(path: Path, alpha: Alpha, *, changes: Changes, readable: bool = True) -> bool:
    """Return whether to keep the alpha channel of an input; report it if it is dropped.

    Args:
        path: the input, for messages.
        alpha: the requested handling.
        changes: the source's list.
        readable: whether the alpha channel can be decoded.

    Raises:
        MediaError: alpha is to be refused, or to be kept but cannot be decoded.
    """
    if alpha == "refuse":
        raise MediaError(
            f"{path} has an alpha channel, which is to be refused: set alpha to drop or keep"
        )
    if alpha == "keep" and not readable:
        raise MediaError(
            f"the alpha channel of {path} cannot be read: drop it, or convert the file to PNG "
            "images"
        )
    if alpha == "drop":
        changes.drop("alpha channel", "the network upscales RGB only; it can be kept on request")
    return alpha == "keep"


def no_room_for_opacity(output: object) -> MediaError:
    """Return the error for an output format without alpha when alpha is to be kept."""
    return MediaError(
        f"{output} does not support alpha: set alpha to drop, or write PNG, TIFF or WebP images, "
        "FFV1 in .mkv or ProRes in .mov"
    )
