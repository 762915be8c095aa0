"""Names outputs, and upscales several inputs one after the other."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rbvsr_deploy.errors import MediaError, RbvsrError
from rbvsr_deploy.runtime.output_size import OutputSize, output_sides
from rbvsr_deploy.video import ReadOptions, default_output, frame_size, is_pipe, open_source
from rbvsr_deploy.video.encoding.encoder import CONTAINERS
from rbvsr_deploy.video.images import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from rbvsr_deploy.jobs.summary import Summary

__all__ = [
    "Failure",
    "Skipped",
    "first_frame_size",
    "output_folder",
    "output_for",
    "outputs_for",
    "upscale_each",
    "was_finished",
    "without_own_outputs",
]


@dataclass(frozen=True)
class Failure:
    """Reports an input that could not be upscaled; ``rbvsr-run --json`` prints it."""

    input: str
    output: str
    error: str
    """One sentence."""


@dataclass(frozen=True)
class Skipped:
    """Reports an input that was not upscaled, and need not be; ``rbvsr-run --json`` prints it."""

    input: str
    output: str
    skipped: str
    """Why, in one sentence."""


def is_folder_path(text: str) -> bool:
    """Return whether the user means a folder that outputs go into: an existing one, or a path that
    ends in a separator.
    """
    return text.endswith((os.sep, os.altsep or os.sep)) or os.path.isdir(text)


def output_for(path: Path, output: str | None, *, ending: str = "x4") -> tuple[Path, Path | None]:
    """Return the output path of a single input, and the folder that has to exist for it.

    Args:
        path: the input.
        output: what the user gave: a file, a folder that the output goes into (see
            :func:`is_folder_path`), or nothing. The images of an image folder go into a folder
            directly.
        ending: see :func:`rbvsr_deploy.video.default_output`.

    Raises:
        MediaError: the output of standard input needs a name.
    """
    if output is None:
        return default_output(path, ending=ending), None
    given = Path(output)
    if not is_folder_path(output):
        return given, None
    if path.is_dir():
        return given, given.parent
    if is_pipe(path):
        raise MediaError(
            f"the output {given} is a folder, and no name can be derived from standard input: give "
            "the name of a file"
        )
    return given / default_output(path, ending=ending).name, given


def outputs_for(inputs: Sequence[Path], folder: Path | None, *, ending: str = "x4") -> list[Path]:
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
    outputs = [default_output(path, ending=ending) for path in inputs]
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


def without_own_outputs(
    inputs: Sequence[Path], folder: Path | None, *, ending: str = "x4"
) -> tuple[list[Path], list[Skipped]]:
    """Leave out inputs that are the outputs of others, as in a second run on ``*.mp4``.

    Returns:
        The remaining inputs, and those left out.
    """
    names: dict[Path, Path] = {}  # input by the path of its output
    for path in inputs:
        output = default_output(path, ending=ending)
        output = output if folder is None else folder / output.name
        names[Path(os.path.realpath(output))] = path
    kept, skipped = [], []
    for path in inputs:
        source = names.get(Path(os.path.realpath(path)))
        if source is None or source == path:
            kept.append(path)
        else:
            output = default_output(path, ending=ending)
            output = output if folder is None else folder / output.name
            why = f"it is the output of {source}: give it alone to upscale it again"
            skipped.append(Skipped(str(path), str(output), why))
    return kept, skipped


@contextlib.contextmanager
def output_folder(folder: Path | None) -> Iterator[None]:
    """Create the folder and its parents if they do not exist, and remove those again that stay
    empty.

    Raises:
        MediaError: one cannot be created.
    """
    created: list[Path] = []
    try:
        for place in () if folder is None else (*reversed(folder.parents), folder):
            if not place.exists():
                place.mkdir()
                created.append(place)
    except OSError as error:
        _remove_empty(created)
        raise MediaError(
            f"the output folder {folder} cannot be created ({error.strerror}): choose another"
        ) from None
    try:
        yield
    finally:
        _remove_empty(created)


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):  # not empty
        for folder in reversed(folders):
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
    is_finished: Callable[[Path, Path], bool] = lambda path, output: False,
) -> list[Summary | Failure | Skipped]:
    """Upscale every input; one that fails does not stop the others.

    Args:
        inputs, outputs: paths, one output for each input.
        upscale: upscales one input to one output.
        report: called with a line when an input begins, is skipped or fails.
        is_finished: returns whether an input was upscaled before.
    """
    results: list[Summary | Failure | Skipped] = []
    for number, (path, output) in enumerate(zip(inputs, outputs, strict=True), start=1):
        report(f"{path} ({number} of {len(inputs)})")
        try:
            if is_finished(path, output):
                done = Skipped(str(path), str(output), f"{output} is finished already")
                report(f"Skipped: {done.skipped}")
                results.append(done)
                continue
            results.append(upscale(path, output))
        except (RbvsrError, MemoryError) as error:
            text = " ".join(str(error).split())
            if isinstance(error, MemoryError):
                text = "out of memory: use a smaller memory limit"
            report(f"Failed: {text}")
            results.append(Failure(str(path), str(output), text))
        # PyAV's frames and their side data refer to each other: Python would find them after many
        # inputs only, and they are megabytes each.
        gc.collect()
    return results


def was_finished(
    path: Path, output: Path, options: ReadOptions, size: OutputSize | None = None
) -> bool:
    """Return whether an output exists and looks like that of an input: outputs only appear when
    they are complete, so the size of the frames distinguishes them from other files.

    Raises:
        MediaError: the input cannot be read.
        RbvsrError: the size is out of range for it.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    with open_source(path, options) as source:
        height, width, aspect = source.height, source.width, source.sample_aspect
    target = (size or OutputSize()).target(height=height, width=width, sample_aspect=aspect)
    wanted = output_sides(target, height=height, width=width)
    # The pixel format may have required an even size.
    near = 0 if target is None else 1
    try:
        with open_source(output) as made:
            sides = zip((made.height, made.width), wanted, strict=True)
            same = all(abs(side - want) <= near for side, want in sides)
            if not path.is_dir() or options.is_excerpt:
                return same
            with open_source(path, options) as source:
                return same and made.frame_count == source.frame_count
    except MediaError:
        return False
