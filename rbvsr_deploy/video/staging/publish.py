"""Outputs appear complete or not at all: checks beforehand, and a rename at the end."""

from __future__ import annotations

import os
from pathlib import Path

from rbvsr_deploy.errors import MediaError

__all__ = ["check_parent", "check_target", "put_in_place", "sync"]


def check_target(target: Path, *, overwrite: bool, folder: bool) -> None:
    """Refuses an output that could not be published.

    Args:
        target: where the finished file or folder goes.
        overwrite: whether a file that exists may be replaced; in a folder that exists, files of
            the same names are.
        folder: whether a folder of files is published rather than one file.

    Raises:
        MediaError: the target exists, or its folder is missing.
    """
    check_parent(target)
    if not folder:
        if target.is_dir():
            raise MediaError(f"the output {target} is a folder: give the name of a file")
        if target.exists() and not overwrite:
            raise MediaError(f"{target} exists: choose another output, or allow overwriting it")
        return
    if target.exists() and not target.is_dir():
        raise MediaError(f"the output {target} is a file, and a folder is needed: rename one")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise MediaError(
            f"the output folder {target} is not empty: choose another, or allow overwriting"
        )


def check_parent(target: Path) -> None:
    """Refuses an output in a folder that does not exist.

    Raises:
        MediaError: there is no such folder.
    """
    parent = target.parent
    if not parent.is_dir():
        problem = "is not a folder" if parent.exists() else "does not exist"
        raise MediaError(f"the output folder {parent} {problem}: create it, or choose another")


def put_in_place(finished: Path, *, target: Path) -> None:
    """Renames a file or folder, which is on the disk already, to the target.

    A folder replaces an empty one; into one that holds files, its own are moved one by one.

    Raises:
        OSError: the disk refused.
    """
    if finished.is_dir() and target.is_dir() and any(target.iterdir()):
        for file in sorted(finished.iterdir()):
            os.replace(file, target / file.name)
        finished.rmdir()
        sync(target)
    else:
        os.replace(finished, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Brings a file or the entries of a folder to the disk.

    Raises:
        OSError: the disk refused.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
