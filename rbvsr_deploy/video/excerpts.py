"""Selects the frames of an excerpt."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.options import ReadOptions

__all__ = ["EmptyExcerptError", "count", "cut_out"]

_Item = TypeVar("_Item")


class EmptyExcerptError(MediaError):
    """The requested excerpt contains no frame of the input."""


def cut_out(
    items: Iterable[tuple[_Item, Fraction, Fraction]], options: ReadOptions, *, path: Path
) -> Iterator[_Item]:
    """Yield the items of an excerpt, without requesting any item after its end.

    These are the items from ``options.start`` to before ``options.end``, at most
    ``options.frames`` of them.

    Args:
        items: items with their time and duration in seconds. Times count from the first frame of
            the input and increase; the first one may be anywhere before the excerpt.
        options: how to read the input.
        path: path of the input, for messages.

    Raises:
        EmptyExcerptError: the excerpt is empty.
    """
    start, end = options.start or Fraction(0), options.end
    length = Fraction(0)
    taken = 0
    for item, time, duration in items:
        length = time + duration
        if end is not None and time >= end:
            break
        if time >= start:
            yield item
            taken += 1
            if taken == options.frames:
                break
    if not taken and length <= start:
        raise EmptyExcerptError(
            f"{path} is {_seconds(length)} long, but the excerpt starts at {_seconds(start)}: "
            "start earlier"
        )
    if not taken:
        until = "its end" if end is None else _seconds(end)
        raise EmptyExcerptError(
            f"{path} has no frame between {_seconds(start)} and {until}: choose a longer excerpt"
        )


def count(frames: int, options: ReadOptions, *, rate: Fraction) -> int:
    """Return the number of frames in an excerpt, given a constant frame rate."""
    begin = math.ceil((options.start or 0) * rate)
    stop = frames if options.end is None else min(frames, math.ceil(options.end * rate))
    left = max(0, stop - begin)
    return left if options.frames is None else min(left, options.frames)


def _seconds(time: Fraction) -> str:
    return f"{float(time):.3f}".rstrip("0").rstrip(".") + " s"
