"""Parses and formats memory sizes and durations for people."""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["parse_bytes", "show_bytes", "show_duration"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}I": 1024**power for power, unit in enumerate("KMGT", start=1)}


def show_duration(seconds: float) -> str:
    """Format a duration in two units, such as "3 h 20 min"; at least a second."""
    whole = max(1, round(seconds))
    for unit, size, smaller, smaller_size in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller_size} {smaller}"
    return f"{whole} s"


def parse_bytes(text: str) -> int:
    """Return the bytes of a size such as "4GiB", "800 MB" or "1073741824".

    Raises:
        ValueError: the text is not a memory size, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    size = int(Fraction(match[1]) * _UNITS[match[2]]) if match and match[2] in _UNITS else 0
    if not 0 < size < 2**63:
        raise ValueError(f"{text!r} is not a valid memory size; use for example 4GiB or 800MB")
    return size


def show_bytes(size: int) -> str:
    """Format a size in binary units, such as "1.5 GiB"."""
    if size < 1024**3:
        return f"{size / 1024**2:.0f} MiB"
    return f"{size / 1024**3:.1f} GiB"
