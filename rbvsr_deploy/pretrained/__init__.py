"""The model shipped with the package: ``compact.safetensors``, and ``compact.plan`` made of it.

``MODEL_CARD.md`` beside them says how it was made and what it scores.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["DEFAULT_BUNDLE", "DEFAULT_CHECKPOINT"]

_HERE = Path(__file__).parent

DEFAULT_BUNDLE = _HERE / "compact.plan"
"""What ``rbvsr-run`` uses without ``--engine``: float32, for CPUs."""

DEFAULT_CHECKPOINT = _HERE / "compact.safetensors"
"""What ``rbvsr-export`` uses without ``--checkpoint``."""
