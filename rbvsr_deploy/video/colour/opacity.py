"""What becomes of opacity, which the network knows nothing of."""

from __future__ import annotations

import logging
from pathlib import Path

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.options import Alpha

__all__ = ["keeps_opacity", "no_room_for_opacity"]

logger = logging.getLogger(__name__)


def keeps_opacity(path: Path, wish: Alpha, *, readable: bool = True) -> bool:
    """Whether the opacity of an input that has some is kept; a warning tells where it is not.

    Args:
        path: of the input.
        wish: of the user.
        readable: whether the opacity can be read.

    Raises:
        MediaError: it is to be refused, or to be kept and cannot be read.
    """
    if wish == "refuse":
        raise MediaError(
            f"{path} has opacity, which is to be refused: drop or keep it by the option alpha"
        )
    if wish == "keep" and not readable:
        raise MediaError(
            f"the opacity of {path} cannot be read: drop it, or convert the file to PNG pictures"
        )
    if wish == "drop":
        logger.warning("%s may be transparent in parts; its opacity is dropped", path)
    return wish == "keep"


def no_room_for_opacity(output: object) -> MediaError:
    """The error for an output that cannot hold what is to be kept."""
    return MediaError(
        f"{output} cannot hold opacity: drop it by the option alpha, or write PNG, TIFF or WebP "
        "pictures, FFV1 in .mkv or ProRes in .mov"
    )
