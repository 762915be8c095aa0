"""Which frames of an input an excerpt holds."""

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
    """No frame of the input is in the excerpt that is asked for."""


def cut_out(
    items: Iterable[tuple[_Item, Fraction, Fraction]], options: ReadOptions, *, path: Path
) -> Iterator[_Item]:
    """Yields the items of an excerpt: those whose time is ``options.start`` or later and before
    ``options.end``, ``options.frames`` at most. Nothing behind it is asked for.

    Args:
        items: each with its time and its duration, in seconds; times are counted from the input's
            first frame, increase, and may begin anywhere before the excerpt.
        options: how the input is read.
        path: of the input, for messages.

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
            f"{path} is {_seconds(length)} long, and the excerpt begins at {_seconds(start)}: "
            "begin earlier"
        )
    if not taken:
        until = "its end" if end is None else _seconds(end)
        raise EmptyExcerptError(
            f"no frame of {path} begins between {_seconds(start)} and {until}: take a longer "
            "excerpt"
        )


def count(frames: int, options: ReadOptions, *, rate: Fraction) -> int:
    """How many of an input's frames are in an excerpt, if they come at a constant rate."""
    begin = math.ceil((options.start or 0) * rate)
    stop = frames if options.end is None else min(frames, math.ceil(options.end * rate))
    left = max(0, stop - begin)
    return left if options.frames is None else min(left, options.frames)


def _seconds(time: Fraction) -> str:
    return f"{float(time):.3f}".rstrip("0").rstrip(".") + " s"
