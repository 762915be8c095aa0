"""Keeps exports of the tests' networks from one run to the next, in ``build/exports``.

The exporter takes half a minute for them. They are made again as soon as any source that takes part
in an export, or a library, has changed.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import portalocker

__all__ = ["kept_export", "kept_export_unless_made"]

_ROOT = Path(__file__).parents[2]
_SOURCES = (
    "rbvsr_deploy/*.py",
    "rbvsr_deploy/bundle/*.py",
    "engines/*.py",
    "export/*.py",
    "tests/conftest.py",
    "tests/support/kept_exports.py",
    "tests/support/published_graphs.py",
)
_LIBRARIES = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy", "safetensors")
_SECONDS_UNUSED = 24 * 3600
"""Time after which exports of other sources are removed."""


def kept_export(name: str, make: Callable[[Path], object]) -> Path:
    """Return the path of an export, which no test may change.

    Args:
        name: of its file.
        make: writes it to a path, unless one of the same sources and libraries is there.
    """
    with portalocker.Lock(_folder() / f"{name}.lock", timeout=600):
        return _made(name, make)


def kept_export_unless_made(name: str, make: Callable[[Path], object]) -> Path | None:
    """Like :func:`kept_export`, but return ``None`` at once if another process is making it."""
    how = portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING
    try:
        with portalocker.Lock(
            _folder() / f"{name}.lock", timeout=0, fail_when_locked=True, flags=how
        ):
            return _made(name, make)
    except portalocker.LockException:
        return None


def _made(name: str, make: Callable[[Path], object]) -> Path:
    path = _folder() / name
    if not path.exists():
        unfinished = path.with_name(f"unfinished-{name}")
        make(unfinished)
        os.replace(unfinished, path)
    return path


@functools.cache
def _folder() -> Path:
    digest = hashlib.sha256()
    for pattern in _SOURCES:
        for source in sorted(_ROOT.glob(pattern)):
            digest.update(f"{source.name} {source.stat().st_size}\n".encode())
            digest.update(source.read_bytes())
    for library in _LIBRARIES:
        digest.update(f"{library} {metadata.version(library)}\n".encode())
    exports = _ROOT / "build" / "exports"
    folder = exports / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)  # in use
    for other in exports.iterdir():
        if time.time() - other.stat().st_mtime > _SECONDS_UNUSED:
            shutil.rmtree(other, ignore_errors=True)
    return folder
