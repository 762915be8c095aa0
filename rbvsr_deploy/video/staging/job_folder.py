"""Manages a job folder on disk: checks its ownership, locks it, and creates and removes its files.

The folder is next to the output under a predictable name, and its unused files are deleted.
Therefore an existing folder is used only if it belongs to this user and holds nothing but files of
a job folder. Links are never followed, and all operations are relative to the folder's descriptor,
so that a folder put in its place later is not affected.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import BinaryIO

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.files import is_junction, is_private, open_folder, open_no_follow, try_lock
from rbvsr_deploy.video.pyav import reason
from rbvsr_deploy.video.staging.publish import sync

__all__ = ["JOURNAL", "UNITS", "BusyError", "JobFolder", "is_stored_name", "job_folder"]

logger = logging.getLogger(__name__)

JOURNAL = "job.json"
_LOCK = "lock"
UNITS = "units"
"""Sub-folder with a job folder for every part that a worker encodes."""
_FOLDERS = ("pictures", "copy", UNITS)
_NAMES = re.compile(
    r"lock|job\.json|part-\d{6,}(-\d+)?\.(json|packets|state)|pictures|(joined|copy)(\.[^.]+)?"
    r"|units|frames\.index|scenes\.txt"
    # A record while it is written:
    r"|\.(job\.json|part-\d{6,}\.json|frames\.index|scenes\.txt)\.[^.]+\.part"
    r"|tmp\w+"  # from ``Spool``, on systems without unnamed files
)
_STORED = re.compile(r"part-\d{6,}(-\d+)?\.(packets|state)|pictures/(?!\.{1,2}$)[^/\0]+")
_OF_NFS = ".nfs"  # a removed file that is still open; vanishes when it is closed


def job_folder(output: Path) -> Path:
    """Return the path of an output's job folder."""
    target = Path(os.path.abspath(output))
    return target.with_name(f".{target.name}.job")


def is_stored_name(name: str) -> bool:
    """Return whether a segment's file can have this name, relative to the job folder."""
    # On Windows, backslashes separate folders too.
    return _STORED.fullmatch(name) is not None and len(PurePath(name).parts) <= 2


class BusyError(MediaError):
    """Another run holds the job folder."""


class JobFolder:
    """Holds a job folder, created if missing, until it is closed.

    File names are relative to the folder and may have one sub-folder, separated by a slash.

    Args:
        path: path of the folder.
        output: the job's output, for messages.

    Raises:
        MediaError: the folder cannot be created, is a link or not a folder, belongs to another
            user, holds foreign files, or is held by another run.
        OSError: a file operation fails, here or in any method.
    """

    def __init__(self, path: Path, *, output: Path) -> None:
        self.path = path
        self._output = output
        self._handle: int | None = None
        self._lock: int | None = None
        try:
            while not self._take():
                self.close()
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Check that the folder was not removed or replaced.

        Raises:
            MediaError: the folder was removed or replaced.
        """
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._identity:
            raise MediaError(
                f"{self.path}, which keeps the work on {self._output}, was removed or replaced "
                "during the run: start again, in a folder where nobody else can write"
            )

    def names(self) -> list[str]:
        """Return the names of all files and sub-folders, each sub-folder after its contents."""
        return [name for name, _ in self._entries()]

    def read(self, name: str, *, at_most: int) -> bytes:
        """Read a file.

        Raises:
            OSError: it is missing, not a regular file, or larger than ``at_most`` bytes.
        """
        with self._inside(name) as (folder, last):
            handle = open_no_follow(last, os.O_RDONLY, dir_fd=folder)
        with os.fdopen(handle, "rb") as file:
            data = file.read(at_most + 1)
        if len(data) > at_most:
            raise OSError(0, f"{name} is too large")
        return data

    def create(self, name: str, *, mode: int = 0o600) -> BinaryIO:
        """Create a file and open it for writing.

        Raises:
            FileExistsError: the name is taken by a file, folder or link.
        """
        with self._inside(name) as (folder, last):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            return os.fdopen(open_no_follow(last, flags, mode=mode, dir_fd=folder), "wb")

    def emptied(self, name: str) -> Path:
        """Create an empty file in place of any existing one, and return its path for a library that
        opens files by name.

        Raises:
            MediaError: the folder was removed or replaced.
        """
        self.remove(name)
        self.create(name).close()
        self.check()
        return self.path / name

    def make_folder(self, name: str) -> Path:
        """Create a sub-folder unless it exists, and return its path.

        Raises:
            MediaError: the folder was removed or replaced.
        """
        with self._inside(name) as (folder, last), contextlib.suppress(FileExistsError):
            os.mkdir(last, dir_fd=folder)
        self.check()
        return self.path / name

    def take(self, file: Path, name: str) -> None:
        """Link a file of this user into the folder, in place of any existing one, or copy it where
        the file system has no links.
        """
        self.remove(name)
        with self._inside(name) as (folder, last):
            try:
                os.link(file, last, dst_dir_fd=folder, follow_symlinks=False)
                return
            except (OSError, NotImplementedError):
                pass
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(open(open_no_follow(file, os.O_RDONLY), "rb"))
            mode = stat.S_IMODE(os.fstat(source.fileno()).st_mode)
            target = stack.enter_context(self.create(name, mode=mode))
            shutil.copyfileobj(source, target, 2**20)
            target.flush()
            os.fsync(target.fileno())

    def write(self, name: str, data: bytes) -> None:
        """Write a record atomically; when this returns, it is on disk."""
        temporary = f".{name}.{secrets.token_hex(4)}.part"
        try:
            with self.create(temporary) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            with self._inside(temporary) as (folder, old), self._inside(name) as (_, new):
                os.replace(old, new, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove(temporary)
            raise
        self.sync()

    def sync(self) -> None:
        """Flush the folder's directory entries to disk."""
        if self._handle is not None:
            os.fsync(self._handle)

    def remove(self, name: str) -> None:
        """Remove a file, or a link but not its target; ignore a missing file."""
        with self._inside(name) as (folder, last), contextlib.suppress(FileNotFoundError):
            os.unlink(last, dir_fd=folder)

    def clear(self, kept: set[str]) -> None:
        """Remove all files of a job folder except the lock and the given names.

        Files that cannot be removed are left, with a warning.
        """
        # The journal goes last: segments left without it would be of unknown origin.
        for name, is_folder in sorted(self._entries(), key=lambda entry: entry[0] == JOURNAL):
            if name == _LOCK or name in kept or not _NAMES.fullmatch(name.partition("/")[0]):
                continue
            try:
                if not is_folder:
                    self.remove(name)
                elif name == UNITS:
                    self.check()
                    shutil.rmtree(self.path / name)
                elif not any(other.startswith(f"{name}/") for other in kept):
                    with self._inside(name) as (folder, last):
                        os.rmdir(last, dir_fd=folder)
            except OSError as error:
                logger.warning(
                    "cannot remove the unfinished %s: %s", self.path / name, reason(error)
                )

    def remove_if_empty(self) -> None:
        """Remove the folder itself if it holds only the lock.

        Raises:
            MediaError: the folder was removed or replaced.
        """
        if self.names() == [_LOCK]:
            self.check()
            if self._handle is None and self._lock is not None:
                # Windows does not remove open files, so no other run can have opened it since.
                os.close(self._lock)
                self._lock = None
            self.remove(_LOCK)
            os.rmdir(self.path)

    def close(self) -> None:
        """Release the folder; calling it again does nothing."""
        for handle in (self._lock, self._handle):
            # A failing close closes nevertheless, and nothing of value was written through these.
            if handle is not None:
                with contextlib.suppress(OSError):
                    os.close(handle)
        self._lock = self._handle = None

    def _take(self) -> bool:
        """Create, open, check and lock the folder; return false if it was removed in between."""
        _make(self.path)
        try:
            self._handle = open_folder(self.path)
            status = os.lstat(self.path) if self._handle is None else os.fstat(self._handle)
            self._identity = (status.st_dev, status.st_ino)
            self._refuse_foreign(status)
            if self._handle is not None and hasattr(os, "fchmod"):
                # Earlier versions left the mode to the umask; some file systems have one mode only.
                with contextlib.suppress(OSError):
                    os.fchmod(self._handle, 0o700)
            self._remove_special()
            with self._inside(_LOCK) as (folder, last):
                self._lock = open_no_follow(last, os.O_RDWR | os.O_CREAT, dir_fd=folder)
        except FileNotFoundError:
            return False  # another run has just removed the folder
        except NotADirectoryError:
            kind = "a link" if self.path.is_symlink() else "not a folder"
            raise self._refusal(f"is {kind}: remove it") from None
        if not try_lock(self._lock):
            raise BusyError(
                f"another run is working on {self._output}: wait until it ends, or choose "
                "another output"
            )
        return os.fstat(self._lock).st_nlink > 0  # 0: removed before it was locked

    def _refuse_foreign(self, status: os.stat_result) -> None:
        """Refuse a folder that this program did not create for this user."""
        if not is_private(status) and not _usual_here(status, parent=self.path.parent):
            if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
                raise self._refusal("belongs to another user: have it removed")
            raise self._refusal(
                "can be written to by others: remove it or, if its content can be trusted, "
                f"chmod go-w {self.path}"
            )
        entries = [entry for entry in self._entries() if not entry[0].startswith(_OF_NFS)]
        names = {name for name, _ in entries}
        for name, is_folder in entries:
            known = _NAMES.fullmatch(name.partition("/")[0]) is not None
            if not known or (is_folder and name not in _FOLDERS):
                raise self._refusal(f"holds '{name}', which is not a job's file: move it away")
        if names and not names & {_LOCK, JOURNAL}:
            raise self._refusal(f"holds '{min(names)}', but no '{_LOCK}': move it away")

    def _refusal(self, why: str) -> MediaError:
        return MediaError(
            f"{self.path}, which would keep the work on {self._output}, {why}, or choose "
            "another output"
        )

    def _remove_special(self) -> None:
        """Remove links, FIFOs and devices, which this program never creates."""
        for name, is_folder in self._entries():
            if is_folder:
                continue
            with (
                contextlib.suppress(FileNotFoundError),  # another run may have removed it just now
                self._inside(name) as (folder, last),
            ):
                if not stat.S_ISREG(os.stat(last, dir_fd=folder, follow_symlinks=False).st_mode):
                    os.unlink(last, dir_fd=folder)

    def _entries(self) -> list[tuple[str, bool]]:
        """List (name, is a folder) of all entries, each sub-folder after its contents, except those
        of the units, which are job folders themselves.
        """
        found: list[tuple[str, bool]] = []
        with os.scandir(self.path if self._handle is None else self._handle) as entries:
            top = sorted((entry.name, _is_folder(entry)) for entry in entries)
        for name, is_folder in top:
            if is_folder and name != UNITS:
                # Another run may have removed it just now.
                with (
                    contextlib.suppress(FileNotFoundError),
                    self._inside(f"{name}/") as (folder, last),
                    os.scandir(last if folder is None else folder) as entries,
                ):
                    found += sorted(
                        (f"{name}/{entry.name}", _is_folder(entry)) for entry in entries
                    )
            found.append((name, is_folder))
        return found

    @contextlib.contextmanager
    def _inside(self, name: str) -> Iterator[tuple[int | None, str | Path]]:
        """Yield the descriptor of the folder that contains a name, and the name within it."""
        if self._handle is None:
            self.check()
            yield None, self.path / name
            return
        folder, _, last = name.rpartition("/")
        if not folder:
            yield self._handle, last
            return
        handle = open_folder(folder, dir_fd=self._handle)
        assert handle is not None
        try:
            yield handle, last
        finally:
            os.close(handle)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder itself, and not a link to one."""
    return entry.is_dir(follow_symlinks=False) and not is_junction(
        entry.stat(follow_symlinks=False)
    )


def _make(path: Path) -> None:
    """Create a private folder unless the path exists."""
    # On Windows, this mode would set an access list that the published output would inherit.
    mode = 0o700 if hasattr(os, "geteuid") else 0o777
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return
    except OSError as error:
        raise MediaError(
            f"cannot write to the folder {path.parent} ({reason(error)}): choose an output folder "
            "that can be written to"
        ) from error
    sync(path.parent)


def _usual_here(status: os.stat_result, *, parent: Path) -> bool:
    """Return whether a new private folder gets the same owner and mode: some file systems (memory
    cards, Windows, networks) support only one of each.
    """
    trial = tempfile.mkdtemp(prefix=".", suffix=".job", dir=parent)
    try:
        usual = os.lstat(trial)
    finally:
        os.rmdir(trial)
    return (usual.st_uid, stat.S_IMODE(usual.st_mode) & 0o022) == (
        status.st_uid,
        stat.S_IMODE(status.st_mode) & 0o022,
    )
