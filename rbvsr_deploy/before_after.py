"""A picture of one frame before and after, side by side."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.files import check_writable
from rbvsr_deploy.video import open_source
from rbvsr_deploy.video.images import IMAGE_SUFFIXES, write_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["check_before_after", "write_before_after"]


def check_before_after(path: Path, *, overwrite: bool) -> None:
    """Refuse now what could not be written after hours of work."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise MediaError(
            f"the picture '{path}' must end in one of {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    if path.exists() and not overwrite:
        raise MediaError(f"{path} exists: choose another picture, or allow overwriting it")
    try:
        check_writable(path)
    except OSError as error:
        raise MediaError(
            f"the picture '{path}' cannot be written ({error.strerror}): choose another folder"
        ) from None


def write_before_after(path: Path, source: Path, output: Path, *, number: int) -> None:
    """A picture (4H, 8W + gap, 3) of one frame: enlarged by bicubic interpolation, a white gap, and
    as it is in the output.
    """
    before, after = (_frame_of(media, number=number) for media in (source, output))
    import av
    from av.video.reformatter import Interpolation

    height, width = after.shape[:2]
    enlarged = av.VideoFrame.from_ndarray(before, format="rgb24").reformat(
        width=width, height=height, interpolation=Interpolation.BICUBIC
    )
    gap = np.full((height, 16, 3), 255, np.uint8)
    write_image(path, image=np.concatenate((enlarged.to_ndarray(), gap, after), axis=1))


def _frame_of(path: Path, *, number: int) -> NDArray[np.uint8]:
    with open_source(path) as source:
        frame = next(itertools.islice(source, number, None), None)
    if frame is None:
        raise MediaError(f"{path} ends before frame {number}: it has changed meanwhile")
    return frame.image
