"""Decides where the time of an output begins, for all of its streams."""

from __future__ import annotations

import math
from fractions import Fraction

from rbvsr_deploy.video.base import Source

__all__ = ["output_shift"]

# Seconds by which frames may be off the grid of an output with a constant rate.
_NOTABLE = Fraction(5, 1000)


def output_shift(source: Source, *, container: str, constant_rate: bool) -> Fraction:
    """Return the seconds by which times in the output are later than those of the source.

    A source's times begin at 0, see ``Source.origin``. That is how MP4, MOV, Matroska, WebM, AVI
    and FLV mean it. The clock of a transport stream starts anywhere: that of the input is kept, as
    segments of one programme have to fit together.

    Args:
        source: the source, opened.
        container: FFmpeg's name of the output's format.
        constant_rate: whether the output has a rate instead of timestamps. Its first frame then
            is on the grid of that rate, so that all others are, too.
    """
    if container == "mpegts" and source.excerpt is None:
        return max(Fraction(0), source.origin)
    if constant_rate:
        place = source.first_time * source.rate
        if abs(place - round(place)) / source.rate > _NOTABLE:
            return (math.ceil(place) - place) / source.rate
    return Fraction(0)
