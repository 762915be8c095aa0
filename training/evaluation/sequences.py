"""Finds the sequences to score, and pairs each with what it is compared with."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.video import ImageSource, open_source
from rbvsr_deploy.video.encoding.encoder import CONTAINERS
from rbvsr_deploy.video.images import is_image

__all__ = ["Item", "check_items", "find_sequences", "pair_up"]

_ENDING = f"_x{SCALE}"
"""Suffix that ``rbvsr-run`` adds to names."""


@dataclass(frozen=True)
class Item:
    """A sequence to score; each path is a video or an image folder."""

    name: str
    results: Path | None
    """Upscaled frames; ``None`` if an engine upscales ``inputs``."""
    truth: Path | None = None
    """Ground truth of the results."""
    inputs: Path | None = None
    """Low-quality frames at a quarter of the size."""


def find_sequences(path: Path) -> dict[str, Path]:
    """Find the sequences at a path, by name and in the order of their names.

    A file or an image folder is one sequence. In any other folder, the videos and the image folders
    directly inside it are the sequences (VideoLQ's layout).

    Raises:
        MediaError: there are none, or two have the same name.
    """
    if not path.exists():
        raise MediaError(
            f"{path} does not exist: give a video, an image folder, or a folder that contains them"
        )
    if path.is_file() or _holds_images(path):
        return {_name(path.resolve()): path}
    found: dict[str, Path] = {}
    for child in sorted(path.iterdir()):
        if child.name.startswith(".") or not (_is_video(child) or _holds_images(child)):
            continue
        name = _name(child)
        if name in found:
            raise MediaError(
                f"{found[name]} and {child} have the same sequence name: rename or remove one"
            )
        found[name] = child
    if not found:
        raise MediaError(
            f"the folder {path} contains no images, videos or image folders: choose another folder"
        )
    return found


def pair_up(
    results: Path | None, *, truth: Path | None = None, inputs: Path | None = None
) -> list[Item]:
    """Pair sequences by name; where each path has only one sequence, these belong together.

    Args:
        results: upscaled sequences; ``None`` if an engine upscales the inputs.
        truth: ground truth of the results.
        inputs: sequences that the results were upscaled from.

    Raises:
        MediaError: a sequence has no counterpart.
    """
    given = {"the results": results, "the ground truth": truth, "the inputs": inputs}
    found = {what: find_sequences(path) for what, path in given.items() if path is not None}
    (first, names), *others = found.items()
    for what, sequences in others:
        if len(names) == len(sequences) == 1:
            found[what] = dict.fromkeys(names, *sequences.values())
        else:
            _check_names(names, sequences, first, what)
            _check_names(sequences, names, what, first)
    return [
        Item(name, *(found[what][name] if what in found else None for what in given))
        for name in names
    ]


@dataclass(frozen=True)
class _Opened:
    """Describes the results, ground truth or inputs of an item before they are read."""

    path: Path
    size: tuple[int, int]
    """Width and height; for inputs, those of the enlarged frames."""
    enlarged: bool
    count: int | None
    """Number of frames; ``None`` for videos, which give only an estimate."""


def check_items(items: Sequence[Item], *, border: int) -> tuple[int, int]:
    """Check that the parts of each item match, before any frame is scored.

    Args:
        items: one or more.
        border: number of pixels to ignore at each side.

    Returns:
        The longer and the shorter side of the smallest frames, in pixels without the border.

    Raises:
        MediaError: a file cannot be opened, sizes or frame counts differ, or the border leaves no
            pixels.
    """
    sides = []
    for item in items:
        opened = []
        for path, scale in ((item.results, 1), (item.truth, 1), (item.inputs, SCALE)):
            if path is not None:
                with open_source(path) as source:
                    size = (scale * source.width, scale * source.height)
                    count = source.frame_count if isinstance(source, ImageSource) else None
                opened.append(_Opened(path, size, scale != 1, count))
        _check_alike(opened)
        width, height = opened[0].size
        if min(width, height) <= 2 * border:
            raise MediaError(
                f"a border of {border} leaves no pixels of {item.name}, which is {width}x{height}: "
                "use a smaller border or larger frames"
            )
        sides.append(sorted((width - 2 * border, height - 2 * border)))
    return min(longer for _, longer in sides), min(shorter for shorter, _ in sides)


def _check_alike(opened: Sequence[_Opened]) -> None:
    first = opened[0]
    for other in opened[1:]:
        if other.size != first.size:
            times = f", enlarged by {SCALE}," * other.enlarged
            raise MediaError(
                f"{other.path} has frames of {_as_text(other.size)}{times} but {first.path} of "
                f"{_as_text(first.size)}: both must have the same size"
            )
    counted = [one for one in opened if one.count is not None]
    for other in counted[1:]:
        if other.count != counted[0].count:
            raise MediaError(
                f"{other.path} has {other.count} frames but {counted[0].path} has "
                f"{counted[0].count}: both must have the same number of frames"
            )


def _as_text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _check_names(
    names: Mapping[str, Path], others: Mapping[str, Path], what: str, other: str
) -> None:
    missing = sorted(names.keys() - others.keys())
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise MediaError(
            f"{', '.join(missing[:3])}{more} of {what} "
            f"{'has' if len(missing) == 1 else 'have'} no counterpart in {other}: both must "
            "contain sequences with the same names"
        )


def _name(path: Path) -> str:
    return (path.name if path.is_dir() else path.stem).removesuffix(_ENDING)


def _holds_images(path: Path) -> bool:
    return path.is_dir() and any(f.is_file() and is_image(f) for f in path.iterdir())


def _is_video(path: Path) -> bool:
    kind, _ = mimetypes.guess_type(path.name)
    suffix = path.suffix.lower()
    return path.is_file() and (suffix in (*CONTAINERS, ".y4m") or str(kind).startswith("video/"))
