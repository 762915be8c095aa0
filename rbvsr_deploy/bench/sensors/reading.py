"""Defines what a sensor reader returns, and reads single files of sysfs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Reader", "Reading", "read_number", "read_text"]


@dataclass
class Reading:
    """Holds what the sensors of one source said at one moment."""

    watts: dict[str, float] = field(default_factory=dict)
    """Power by rail."""
    total_watts: float | None = None
    """Power of the whole board or GPU; ``None`` if no documented sum of rails gives it."""
    clocks_mhz: dict[str, float] = field(default_factory=dict)
    temperatures: dict[str, float] = field(default_factory=dict)
    """In °C."""
    throttling: list[str] | None = None
    """Reasons for which clocks are lowered now; ``None`` if unknown."""
    memory_bytes: int | None = None
    """Memory of the GPU that this process uses."""


class Reader(ABC):
    """Reads the sensors of one source."""

    name: str
    power_mode: str | None = None
    power_limit_watts: float | None = None

    @abstractmethod
    def read(self) -> Reading:
        """Read all sensors that answer now."""


def read_text(path: Path) -> str | None:
    """Return a file's text without surrounding white space and NUL, or ``None`` if it cannot be
    read now: drivers answer with an error while a part of the chip is switched off.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t") or None
    except OSError:
        return None


def read_number(path: Path) -> float | None:
    """Return the number in a file, or ``None`` if there is none now."""
    try:
        return float(read_text(path) or "")
    except ValueError:
        return None
