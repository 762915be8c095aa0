"""Locates the model shipped with the package: ``compact.safetensors``, and ``compact.plan``, its
bundle.

``MODEL_CARD.md`` in the same folder describes how it was trained and how it scores.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["DEFAULT_BUNDLE", "DEFAULT_CHECKPOINT"]

_HERE = Path(__file__).parent

DEFAULT_BUNDLE = _HERE / "compact.plan"
"""Bundle used where none is given: float32, for CPUs."""

DEFAULT_CHECKPOINT = _HERE / "compact.safetensors"
"""Checkpoint exported where none is given."""
