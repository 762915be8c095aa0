"""Writes an image of one frame before and after, side by side."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.files import check_writable, is_same_place, write_atomically
from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.pixels import eight_bits
from rbvsr_deploy.resampling import resampled
from rbvsr_deploy.video import ReadOptions, open_source
from rbvsr_deploy.video.images import IMAGE_SUFFIXES, encode_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rbvsr_deploy.runtime.output_size import Target

__all__ = [
    "check_apart",
    "check_before_after",
    "check_new_file",
    "enlarged",
    "frames_of",
    "shown_before",
    "write_before_after",
]


def check_before_after(path: Path, *, overwrite: bool, others: Mapping[str, Path]) -> None:
    """Refuse now what could not be written after hours of work.

    Args:
        path: path of the image.
        overwrite: allow an existing file.
        others: files and folders that it must not replace or be put into, by their role.

    Raises:
        MediaError: it cannot be written there.
    """
    check_apart(path, what="image", others=others)
    for name, other in others.items():
        if is_same_place(path.parent, other):
            raise MediaError(
                f"the image '{path}' would be inside the {name}: choose another folder"
            )
    check_new_file(path, what="image", suffixes=IMAGE_SUFFIXES, overwrite=overwrite)


def write_before_after(
    path: Path,
    source: Path,
    output: Path,
    *,
    number: int,
    reading: ReadOptions,
    target: Target | None = None,
) -> None:
    """Write an image of one frame: enlarged by bicubic interpolation, a white gap, and the
    output's. ``reading`` holds the options the source was read with, ``target`` the size of the
    output if it is not four times the input.

    Raises:
        MediaError: source or output cannot be read, or the image not written.
    """
    both = zip(frames_of(source, [number], reading), frames_of(output, [number]), strict=True)
    ((before, after),) = both
    height = after.shape[0]
    before = shown_before(before, target)
    gap = np.full((height, 16, 3), 255, np.uint8)
    image = encode_image(np.concatenate((before, gap, after), axis=1), path.suffix)
    try:
        write_atomically(path, image)
    except OSError as error:
        raise MediaError(
            f"the image '{path}' cannot be written ({error.strerror}); {output} is complete"
        ) from None


def check_apart(path: Path, *, what: str, others: Mapping[str, Path]) -> None:
    """Refuse an additional output file that would replace something else of the same run.

    Args:
        path: of the file.
        what: it is called in messages.
        others: files and folders that it may not be, by what they are.

    Raises:
        MediaError: it is one of them.
    """
    for name, other in others.items():
        if is_same_place(path, other):
            raise MediaError(f"the {what} '{path}' is the {name} itself: choose another {what}")


def check_new_file(path: Path, *, what: str, suffixes: Collection[str], overwrite: bool) -> None:
    """Check before long work that a file can be written in addition to the output.

    Args:
        path: path of the file.
        what: name of the file in messages.
        suffixes: allowed suffixes, in lower case.
        overwrite: allow an existing file.

    Raises:
        MediaError: it cannot be written.
    """
    if path.suffix.lower() not in suffixes:
        raise MediaError(f"the {what} '{path}' must end in one of {', '.join(sorted(suffixes))}")
    if path.exists() and not overwrite:
        raise MediaError(f"{path} exists: choose another {what}, or allow overwriting it")
    try:
        check_writable(path)
    except OSError as error:
        raise MediaError(
            f"the {what} '{path}' cannot be written ({error.strerror}): choose another folder"
        ) from None


def frames_of(
    path: Path, numbers: Iterable[int], options: ReadOptions | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of these increasing numbers: (H, W, 3) RGB, rounded to 8 bits.

    Raises:
        MediaError: the file or folder cannot be read, or has fewer frames.
    """
    with open_source(path, options or ReadOptions()) as source:
        frames = enumerate(source)
        for wanted in numbers:
            found = next((frame for number, frame in frames if number == wanted), None)
            if found is None:
                raise MediaError(
                    f"{path} ends before frame {wanted}: it was changed during the run"
                )
            yield eight_bits(found.image)


def shown_before(image: NDArray[np.uint8], target: Target | None) -> NDArray[np.uint8]:
    """Enlarge an input frame by bicubic interpolation to the size of the output, and crop it
    equally: (H, W, 3) to (4H, 4W, 3), or to the target's size.
    """
    height, width = image.shape[:2]
    large = enlarged(image, width=SCALE * width, height=SCALE * height)
    if target is None:
        return large
    return np.asarray(resampled(large, *target.axes()), dtype=np.uint8)


def enlarged(image: NDArray[np.uint8], *, width: int, height: int) -> NDArray[np.uint8]:
    """Resize an image to (height, width, 3) by bicubic interpolation."""
    import av
    from av.video.reformatter import Interpolation

    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
        width=width, height=height, interpolation=Interpolation.BICUBIC
    )
    return np.asarray(frame.to_ndarray(), dtype=np.uint8)
