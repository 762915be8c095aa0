"""Lists the recipes that ship with the package, as files to train with or to edit."""

from __future__ import annotations

from pathlib import Path

__all__ = ["PRESETS"]

PRESETS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}
"""Recipe files by name. The first line of each file is a comment that describes it."""
