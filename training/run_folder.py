"""Creates the folder of a run, and reports failed writes to it in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.files import check_writable

__all__ = ["make_run_folder", "writes"]


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


def make_run_folder(folder: Path) -> None:
    """Create a run folder if it is missing, and check that checkpoints can be written to it.

    Raises:
        RbvsrError: the folder cannot be created or written to.
    """
    with writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder / "latest.pth")
