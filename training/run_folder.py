"""The folder that a run writes to: what cannot be written is said in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.files import check_writable

__all__ = ["make_run_folder", "writes"]


@contextlib.contextmanager
def writes(path: Path) -> Iterator[None]:
    """Around whatever writes to a file or folder of the run.

    Raises:
        RbvsrError: in place of ``OSError``: a full disk and the like.
    """
    try:
        yield
    except OSError as error:
        raise RbvsrError(
            f"'{path}' cannot be written ({error.strerror or error}): make room, or choose another "
            "output folder; a checkpoint that was there stays, and the same command goes on from it"
        ) from None


def make_run_folder(folder: Path) -> None:
    """Make it, if it is missing, and find out whether checkpoints can be written there.

    Raises:
        RbvsrError: they cannot.
    """
    with writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder / "latest.pth")
