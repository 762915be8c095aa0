"""Checks output paths and publishes finished outputs by renaming, so that they appear complete."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.files import can_open_folders, is_special
from rbvsr_deploy.video.pyav import reason

__all__ = ["check_place", "check_target", "copied", "put_in_place", "sync"]

logger = logging.getLogger(__name__)


def check_target(target: Path, *, overwrite: bool, folder: bool) -> None:
    """Check that an output can be published.

    Args:
        target: path of the finished file or folder.
        overwrite: whether an existing file, or files of the same names in an existing folder,
            may be replaced.
        folder: whether the output is a folder of files rather than one file.

    Raises:
        MediaError: the target exists, is of the other kind, or fails :func:`check_place`.
    """
    check_place(target)
    with _examining(target):
        exists, is_folder = target.exists(), target.is_dir()
        is_empty = is_folder and not any(target.iterdir())
    if not folder:
        if is_folder:
            raise MediaError(f"the output {target} is a folder: give the name of a file")
        if exists and not overwrite:
            raise MediaError(f"{target} exists: choose another output, or allow overwriting it")
        return
    if exists and not is_folder:
        raise MediaError(f"the output {target} is a file, and a folder is needed: rename one")
    if is_folder and not is_empty and not overwrite:
        raise MediaError(
            f"the output folder {target} is not empty: choose another, or allow overwriting"
        )


def check_place(target: Path) -> None:
    """Check that a file or folder can exist at a path.

    Raises:
        MediaError: the path has no name, or its folder does not exist; it is a device, a pipe or a
            broken link, which a file would replace.
    """
    parent = target.parent
    with _examining(target):
        if not os.path.basename(os.path.abspath(target)):
            raise MediaError(f"the output {target} has no name: give the name of a file")
        if not parent.is_dir():
            problem = "is not a folder" if parent.exists() else "does not exist"
            raise MediaError(f"the output folder {parent} {problem}: create it, or choose another")
        if is_special(target):
            raise MediaError(
                f"the output {target} is a device, a pipe or a broken link: give the "
                "name of a file or a folder"
            )


def put_in_place(finished: Path, *, target: Path) -> None:
    """Rename a file or folder, already synced to disk, to the target.

    A folder replaces an empty folder; if the target holds files or is a link to a folder, the files
    are moved into it one by one.

    Raises:
        OSError: renaming fails.
    """
    if finished.is_dir() and target.is_dir() and (target.is_symlink() or any(target.iterdir())):
        for file in sorted(finished.iterdir()):
            os.replace(file, target / file.name)
        finished.rmdir()
        sync(target)
    else:
        if finished.is_dir() and target.is_dir() and not can_open_folders():
            target.rmdir()  # Windows does not replace it, even though it is empty
        os.replace(finished, target)
    try:
        sync(target.parent)
    except OSError as error:
        logger.warning(
            "%s is complete, but may be lost in a power failure: %s", target, reason(error)
        )


def copied(finished: Path, copy: Path) -> Path:
    """Copy a file or folder that stays where it is, and flush the copy to disk.

    Returns:
        The path of the copy.

    Raises:
        OSError: copying fails.
    """
    if finished.is_dir():
        shutil.copytree(finished, copy)
        for file in copy.iterdir():
            sync(file)
    else:
        shutil.copyfile(finished, copy)
    sync(copy)
    return copy


def sync(path: Path) -> None:
    """Flush a file or the entries of a folder to disk; Windows flushes folder entries itself.

    Raises:
        OSError: flushing fails.
    """
    is_folder = path.is_dir()
    if is_folder and not can_open_folders():
        return
    handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _examining(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MediaError(
            f"the output {target} cannot be examined ({reason(error)}): choose another"
        ) from error
