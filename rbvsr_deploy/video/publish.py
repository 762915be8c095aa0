"""Outputs appear complete or not at all: checks beforehand, a temporary name, a rename."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from pathlib import Path

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.pyav import reason

logger = logging.getLogger(__name__)


class Publication:
    """A file or folder that is built under a temporary name next to the target.

    Args:
        target: where the finished file or folder goes.
        overwrite: whether a file that exists may be replaced; in a folder that exists, files of
            the same names are.
        folder: whether a folder of files is published rather than one file.

    Raises:
        MediaError: the target exists, or its folder is missing or cannot be written to.
    """

    temp: Path
    """The temporary file or folder; it exists until ``publish`` or ``discard``."""

    def __init__(self, target: Path, *, overwrite: bool, folder: bool) -> None:
        self.target = target
        self._overwrite = overwrite
        self._folder = folder
        self._check()
        # The suffix stays: some formats look at it.
        self.temp = target.parent / f".{target.stem}.{secrets.token_hex(4)}.part{target.suffix}"
        try:
            if folder:
                self.temp.mkdir()
            else:
                self.temp.touch(exist_ok=False)
        except OSError as error:
            raise MediaError(
                f"cannot write to the folder {target.parent} ({reason(error)}): "
                "choose an output folder that can be written to"
            ) from error

    def publish(self) -> None:
        """Brings everything to the disk and renames it to the target.

        Raises:
            MediaError: the disk refused, or the target has appeared meanwhile.
        """
        try:
            files = sorted(self.temp.iterdir()) if self._folder else [self.temp]
            for file in files:
                _sync(file)
            self._check()
            if self._folder and self.target.exists():
                for file in files:
                    os.replace(file, self.target / file.name)
                self.temp.rmdir()
            else:
                os.replace(self.temp, self.target)
            _sync(self.target.parent)
        except OSError as error:
            self.discard()
            raise MediaError(f"cannot complete {self.target}: {reason(error)}") from error
        except MediaError:
            self.discard()
            raise

    def discard(self) -> None:
        """Removes the temporary file or folder; does nothing where it is gone already."""
        try:
            if self._folder:
                shutil.rmtree(self.temp, ignore_errors=True)
            else:
                self.temp.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("cannot remove the unfinished %s: %s", self.temp, reason(error))

    def _check(self) -> None:
        target, parent = self.target, self.target.parent
        if not parent.is_dir():
            problem = "is not a folder" if parent.exists() else "does not exist"
            raise MediaError(f"the output folder {parent} {problem}: create it, or choose another")
        if self._folder:
            self._check_folder()
        elif target.is_dir():
            raise MediaError(f"the output {target} is a folder: give the name of a file")
        elif target.exists() and not self._overwrite:
            raise MediaError(f"{target} exists: choose another output, or allow overwriting it")

    def _check_folder(self) -> None:
        target = self.target
        if target.exists() and not target.is_dir():
            raise MediaError(f"the output {target} is a file, and a folder is needed: rename one")
        if target.is_dir() and any(target.iterdir()) and not self._overwrite:
            raise MediaError(
                f"the output folder {target} is not empty: choose another, or allow overwriting"
            )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
