"""How long something takes, for people."""

from __future__ import annotations

__all__ = ["show_duration"]


def show_duration(seconds: float) -> str:
    """Of two units, the larger first, such as "3 h 20 min"; at least a second."""
    whole = max(1, round(seconds))
    for unit, size, smaller, part in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"
