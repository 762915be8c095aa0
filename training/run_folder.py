"""Creates and locks the folder of a run, and reports failed writes to it in one sentence."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.files import check_writable, open_no_follow, try_lock

__all__ = ["run_folder", "writes"]


@contextlib.contextmanager
def writes(path: Path) -> Iterator[None]:
    """Convert an ``OSError`` raised while writing to a file or folder of the run.

    Raises:
        RbvsrError: in place of ``OSError``, for example when the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise RbvsrError(
            f"'{path}' cannot be written ({error.strerror or error}): free some space, or choose "
            "another output folder; an existing checkpoint is kept, and the same command resumes it"
        ) from None


@contextlib.contextmanager
def run_folder(folder: Path, *, first: bool) -> Iterator[None]:
    """Create a run folder if it is missing, check that checkpoints can be written to it, and hold
    it until the run ends.

    Args:
        folder: the run folder.
        first: whether this is the first process of the run, which holds the folder for all.

    Raises:
        RbvsrError: the folder cannot be created or written to, or another run holds it.
    """
    with writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder / "latest.pth")
    if not first:
        yield
        return
    path = folder / "lock"
    with writes(path):
        handle = open_no_follow(path, os.O_RDWR | os.O_CREAT)
    try:
        if not try_lock(handle):
            raise RbvsrError(
                f"another run is training in '{folder}': wait for it, or choose another folder"
            )
        yield
    finally:
        os.close(handle)
