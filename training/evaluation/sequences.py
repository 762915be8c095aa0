"""Which sequences are scored, and what each is held against."""

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
"""What ``rbvsr-run`` puts behind names."""


@dataclass(frozen=True)
class Item:
    """A sequence to score: each a video or a folder of pictures."""

    name: str
    results: Path | None
    """``None``: made of ``inputs`` by an engine."""
    truth: Path | None = None
    inputs: Path | None = None
    """Of low quality, a quarter of the size."""


def find_sequences(path: Path) -> dict[str, Path]:
    """The sequences at a path, by name and in order of their names.

    A folder of pictures, and a file, is one sequence. Any other folder is looked into: its videos
    and its folders of pictures are the sequences (VideoLQ's layout).

    Raises:
        MediaError: there is none, or two have one name.
    """
    if not path.exists():
        raise MediaError(f"{path} does not exist: give a video, a folder of frames, or of those")
    if path.is_file() or _holds_pictures(path):
        return {_name(path.resolve()): path}
    found: dict[str, Path] = {}
    for child in sorted(path.iterdir()):
        if child.name.startswith(".") or not (_is_video(child) or _holds_pictures(child)):
            continue
        name = _name(child)
        if name in found:
            raise MediaError(
                f"{found[name]} and {child} have one name: leave one sequence of each name"
            )
        found[name] = child
    if not found:
        raise MediaError(
            f"the folder {path} holds no pictures, no videos, and no folders of either"
        )
    return found


def pair_up(
    results: Path | None, *, truth: Path | None = None, inputs: Path | None = None
) -> list[Item]:
    """Sequences that belong together: by name, or, where there is but one of each, those.

    Args:
        results: ``None`` if an engine is to make them of the inputs.
        truth: what they should be.
        inputs: what they were made of.

    Raises:
        MediaError: a sequence is missing somewhere.
    """
    given = {"the results": results, "the truth": truth, "the inputs": inputs}
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
    """What is known of a part of an item before it is read."""

    path: Path
    size: tuple[int, int]
    """Width and height of the results, the truth and the enlarged inputs."""
    enlarged: bool
    count: int | None
    """Frames; ``None`` for videos, which tell but roughly."""


def check_items(items: Sequence[Item], *, border: int) -> tuple[int, int]:
    """Find out before long work what does not fit together.

    Args:
        items: one or more.
        border: pixels left out at each side.

    Returns:
        Longer and shorter side of the smallest pictures, in pixels without the border.

    Raises:
        MediaError: something cannot be opened, sizes or numbers of pictures differ, or the border
            leaves nothing.
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
                f"a border of {border} leaves nothing of the {width}x{height} pixels of "
                f"{item.name}: lower it, or give larger pictures"
            )
        sides.append(sorted((width - 2 * border, height - 2 * border)))
    return min(longer for _, longer in sides), min(shorter for shorter, _ in sides)


def _check_alike(opened: Sequence[_Opened]) -> None:
    first = opened[0]
    for other in opened[1:]:
        if other.size != first.size:
            times = f", enlarged by {SCALE}," * other.enlarged
            raise MediaError(
                f"{other.path} has frames of {_shown(other.size)}{times} and {first.path} of "
                f"{_shown(first.size)}: they must have one size"
            )
    counted = [one for one in opened if one.count is not None]
    for other in counted[1:]:
        if other.count != counted[0].count:
            raise MediaError(
                f"{other.path} has {other.count} frames and {counted[0].path} {counted[0].count}: "
                "they must have as many"
            )


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _check_names(
    names: Mapping[str, Path], others: Mapping[str, Path], what: str, other: str
) -> None:
    missing = sorted(names.keys() - others.keys())
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise MediaError(
            f"{', '.join(missing[:3])}{more} of {what} {'is' if len(missing) == 1 else 'are'} not "
            f"among {other}: both need sequences of the same names"
        )


def _name(path: Path) -> str:
    return (path.name if path.is_dir() else path.stem).removesuffix(_ENDING)


def _holds_pictures(path: Path) -> bool:
    return path.is_dir() and any(f.is_file() and is_image(f) for f in path.iterdir())


def _is_video(path: Path) -> bool:
    kind, _ = mimetypes.guess_type(path.name)
    suffix = path.suffix.lower()
    return path.is_file() and (suffix in (*CONTAINERS, ".y4m") or str(kind).startswith("video/"))
