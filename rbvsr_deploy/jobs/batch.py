"""Upscales several inputs, one after the other, and records which of them failed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rbvsr_deploy.errors import MediaError, RbvsrError
from rbvsr_deploy.video import ReadOptions, default_output, frame_size
from rbvsr_deploy.video.encoding.encoder import CONTAINERS
from rbvsr_deploy.video.images import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from rbvsr_deploy.jobs.summary import Summary

__all__ = ["Failure", "first_frame_size", "output_folder", "outputs_for", "upscale_each"]


@dataclass(frozen=True)
class Failure:
    """Reports an input that could not be upscaled; ``rbvsr-run --json`` prints it."""

    input: str
    output: str
    error: str
    """One sentence."""


def outputs_for(inputs: Sequence[Path], folder: Path | None) -> list[Path]:
    """Return the output path of each input, named by :func:`default_output`, in the folder or, if
    there is none, next to the input.

    Raises:
        MediaError: two outputs would be the same file, or ``folder`` is not a folder.
    """
    if (
        folder is not None
        and not folder.is_dir()
        and (folder.exists() or folder.suffix.lower() in (*CONTAINERS, *IMAGE_SUFFIXES))
    ):
        raise MediaError(
            f"several inputs need a folder as output, and {folder} is not a folder: give an "
            "existing or a new one, or none"
        )
    outputs = [default_output(path) for path in inputs]
    if folder is not None:
        outputs = [folder / output.name for output in outputs]
    taken: dict[str, Path] = {}
    for path, output in zip(inputs, outputs, strict=True):
        name = os.path.abspath(output)
        if name in taken:
            raise MediaError(
                f"{taken[name]} and {path} would both be written as {output}: upscale one of them "
                "separately"
            )
        taken[name] = path
    return outputs


@contextlib.contextmanager
def output_folder(folder: Path | None) -> Iterator[None]:
    """Create the folder if it does not exist, and remove it again if it stays empty.

    Raises:
        MediaError: it cannot be created.
    """
    created = folder is not None and not folder.exists()
    if folder is not None and created:
        try:
            folder.mkdir()
        except OSError as error:
            raise MediaError(
                f"the output folder {folder} cannot be created ({error.strerror}): choose another"
            ) from None
    try:
        yield
    finally:
        if folder is not None and created:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def first_frame_size(inputs: Sequence[Path], options: ReadOptions) -> tuple[int, int]:
    """Return height and width of the first readable input, in pixels.

    Raises:
        MediaError: none is readable; the error of the first.
    """
    errors = []
    for path in inputs:
        try:
            return frame_size(path, options)
        except MediaError as error:
            errors.append(error)
    raise errors[0]


def upscale_each(
    inputs: Sequence[Path],
    outputs: Sequence[Path],
    *,
    upscale: Callable[[Path, Path], Summary],
    report: Callable[[str], None],
) -> list[Summary | Failure]:
    """Upscale every input; one that fails does not stop the others.

    Args:
        inputs, outputs: paths, one output for each input.
        upscale: upscales one input to one output.
        report: called with a line when an input begins and when it fails.
    """
    results: list[Summary | Failure] = []
    for number, (path, output) in enumerate(zip(inputs, outputs, strict=True), start=1):
        report(f"{path} ({number} of {len(inputs)})")
        try:
            results.append(upscale(path, output))
        except (RbvsrError, MemoryError) as error:
            text = " ".join(str(error).split())
            if isinstance(error, MemoryError):
                text = "out of memory: use a smaller memory limit"
            report(f"Failed: {text}")
            results.append(Failure(str(path), str(output), text))
    return results
