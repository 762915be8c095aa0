"""Remembers which inputs of a batch are finished, so that a long list is not opened again.

The list is a file in the user's cache folder; without it, outputs are opened and looked at.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from rbvsr_deploy.engines.user_folders import cache_folder, cache_key
from rbvsr_deploy.errors import MissingDependencyError

__all__ = ["FinishedInputs"]


class FinishedInputs:
    """Holds the inputs of one batch that are known to be finished.

    Args:
        inputs, outputs: absolute paths of the batch.
        options: everything else that was asked for, as text.
    """

    def __init__(self, inputs: Sequence[Path], outputs: Sequence[Path], *, options: str) -> None:
        self._file: Path | None = None
        self._known: set[str] = set()
        with contextlib.suppress(MissingDependencyError, OSError):
            folder = cache_folder() / "batches"
            folder.mkdir(parents=True, exist_ok=True)
            names = [os.fsdecode(path) for path in (*inputs, *outputs)]
            self._file = folder / f"{cache_key(options, names)}.jsonl"
            self._known = set(self._file.read_text("utf-8", errors="replace").splitlines())

    def has(self, path: Path, output: Path) -> bool:
        """Return whether an input is finished, and neither it nor its output has changed since."""
        line = _state(path, output)
        return line is not None and line in self._known

    def add(self, path: Path, output: Path) -> None:
        """Remember that an input is finished."""
        line = _state(path, output)
        if self._file is None or line is None or line in self._known:
            return
        self._known.add(line)
        with contextlib.suppress(OSError), self._file.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def _state(path: Path, output: Path) -> str | None:
    """Describe an input and its output; ``None`` if one cannot be described by size and time."""
    states = []
    for file in (path, output):
        try:
            status = file.stat()
        except OSError:
            return None
        if file.is_dir():
            return None
        states.append([os.fsdecode(file), status.st_size, status.st_mtime_ns, status.st_ino])
    return json.dumps(states)
