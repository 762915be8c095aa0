"""The unfinished work for one output, kept in a hidden folder beside it.

::

    .clip_x4.mp4.job/
        lock                 held by the run that works on it; the kernel lets go if it is killed
        job.json             what the work is made from: another input or option starts over
        part-000001.packets  what the sink keeps of a part
        part-000001.json     the part is finished: written last, in one step
        part-000001.state    what the caller attached to it; of the last part only

Anything else in the folder is left from a run that was stopped, and removed by the next one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.files import write_atomically
from rbvsr_deploy.video.pyav import reason
from rbvsr_deploy.video.staging.parts import PartRecord, StoredFile
from rbvsr_deploy.video.staging.publish import check_parent, check_target, put_in_place, sync

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Job"]

logger = logging.getLogger(__name__)

_SCHEMA = 1
_LOCK, _JOURNAL = "lock", "job.json"


class Job:
    """The job folder of one output, held by one run at a time.

    Use it as a context manager around the sink that writes into it. Leaving it removes the folder,
    unless parts are finished and the output is not: then the next job for the same output
    continues behind them. ::

        with Job(output, identity={"input": ..., "model": ...}) as job:
            with open_sink(output, source=source, width=w, height=h, job=job) as sink:
                done = sum(part.frames for part in sink.finished_parts)
                ...

    Args:
        output: the file or folder that is to be made.
        identity: what the output is made from, by human names such as "input" or "model"; unless
            all of it is equal to that of the finished parts, they are given up.
        overwrite: whether an existing output may be replaced.
        keep: whether the folder stays after success.
        resume: whether finished parts of an earlier run are of use, and those of this one to a
            later run.

    Raises:
        MediaError: the output's folder is missing or cannot be written to, or another run works on
            the same output.
    """

    folder: Path
    """The job folder."""
    parts: list[PartRecord]
    """The finished parts; known once a sink is opened."""
    resumed_parts: int
    """How many of them an earlier run made."""
    started_over: str | None
    """Why finished parts were given up, as a clause such as "the model was A and is B"."""

    def __init__(
        self,
        output: Path,
        *,
        identity: dict[str, str],
        overwrite: bool = False,
        keep: bool = False,
        resume: bool = True,
    ) -> None:
        self.output = output
        self.overwrite = overwrite
        self.parts = []
        self.resumed_parts = 0
        self.started_over = None
        self._identity = dict(identity)
        self._keep = keep
        self._resume = resume
        self._started = self._published = False
        target = Path(os.path.abspath(output))
        self.folder = target.with_name(f".{target.name}.job")
        check_parent(output)
        self._handle: int | None = self._lock()
        try:
            if self._was_published():
                self._tidy()
        except BaseException:
            self.close()
            raise

    def check(self, *, folder: bool) -> None:
        """Refuses an output that could not be published.

        Args:
            folder: whether the output is a folder of files rather than one file.

        Raises:
            MediaError: it exists, or is of the other kind.
        """
        check_target(self.output, overwrite=self.overwrite, folder=folder)

    def start(self, settings: dict[str, str]) -> None:
        """Takes over the finished parts of an earlier run, or starts over.

        Called by the sink, as late as it can be: until then, nothing of the earlier work is lost.

        Args:
            settings: the sink's share of the identity.

        Raises:
            MediaError: the folder cannot be written to.
        """
        identity = {**self._identity, **settings}
        if any(self.folder.glob("part-*.json")):
            self.started_over = (
                self._difference(identity) if self._resume else "the input cannot be gone back in"
            )
            if self.started_over is None:
                self.parts = self._read_parts()
        self.resumed_parts = len(self.parts)
        # From here on, also if a signal comes now, what belongs to no finished part is removed.
        self._started = True
        self._tidy()
        self._identity = identity
        self._write_journal()

    def next_part(self, suffix: str) -> Path:
        """The file for the data of the part that is being made, which may not exist yet."""
        return self.folder / f"part-{len(self.parts) + 1:06d}{suffix}"

    def add_part(
        self,
        *,
        frames: int,
        note: dict[str, Any],
        media: dict[str, Any],
        files: list[StoredFile],
        attachment: bytes | None = None,
    ) -> None:
        """Records a finished part; when this returns, a power failure does not undo it.

        Args:
            frames: how many, at least 1.
            note: of the caller, to be read again after a resume; JSON must be able to hold it.
            media: of the sink, likewise.
            files: what the part consists of, on the disk already.
            attachment: of the caller, of any size; that of the part before is removed.

        Raises:
            TypeError: JSON cannot hold the note.
            MediaError: the folder cannot be written to; the parts before stay.
        """
        stored = None
        with self._writing():
            path = self.next_part(".state")
            if attachment is not None:
                path.write_bytes(attachment)
                sync(path)
                digest = hashlib.sha256(attachment).hexdigest()
                stored = StoredFile(path.name, len(attachment), digest)
            # The files' own names must be on the disk before the record that speaks of them.
            sync(self.folder)
            record = PartRecord(frames, note, media, tuple(files), stored)
            text = json.dumps(dataclasses.asdict(record), indent=1)
            write_atomically(self.next_part(".json"), text.encode())
            sync(self.folder)
        # As it will be read again: tuples have become lists.
        self.parts.append(PartRecord.from_json(json.loads(text)))
        for old in self.folder.glob("part-*.state"):
            if old != path:
                old.unlink(missing_ok=True)

    def attachment(self) -> bytes | None:
        """What was attached to the last finished part.

        Raises:
            MediaError: it cannot be read.
        """
        stored = self.parts[-1].attachment if self.parts else None
        if stored is None:
            return None
        try:
            return (self.folder / stored.name).read_bytes()
        except OSError as error:
            raise MediaError(f"cannot read {self.folder / stored.name}: {reason(error)}") from error

    def publish(self, finished: Path) -> None:
        """Makes a file or folder of the job folder the output.

        Args:
            finished: complete, and on the disk.

        Raises:
            MediaError: the disk refused, or the output has appeared meanwhile; the finished parts
                stay.
        """
        self.check(folder=finished.is_dir())
        try:
            if self._keep:
                finished = self._copied(finished)
            else:
                # Renaming keeps the inode. Killed between the two, the next run knows by it that
                # only tidying up is left.
                self._write_journal(published=_inode(finished))
            put_in_place(finished, target=self.output)
        except OSError as error:
            raise MediaError(f"cannot complete {self.output}: {reason(error)}") from error
        self._published = True

    def close(self) -> None:
        """Ends the work; calling it again does nothing.

        The folder stays where it holds finished parts of an output that is not published, or where
        it was asked for.
        """
        if self._handle is None:
            return
        try:
            if not (self._keep if self._published else self._resume):
                self.parts = []
            if self._started:
                self._tidy()
            # What cannot be removed now is removed, or used, by the next run.
            with contextlib.suppress(OSError):
                if not self.parts and {path.name for path in self.folder.iterdir()} == {_LOCK}:
                    (self.folder / _LOCK).unlink()
                    self.folder.rmdir()
        finally:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _copied(self, finished: Path) -> Path:
        """The same, or a copy where the parts consist of it."""
        copy = self.folder / f"copy{finished.suffix}"
        if finished.is_dir():
            shutil.copytree(finished, copy)
            for file in copy.iterdir():
                sync(file)
        elif any(self.folder / file.name == finished for p in self.parts for file in p.files):
            shutil.copyfile(finished, copy)
        else:
            return finished
        sync(copy)
        return copy

    def _lock(self) -> int:
        while True:
            try:
                self.folder.mkdir(exist_ok=True)
            except OSError as error:
                raise MediaError(
                    f"cannot write to the folder {self.output.parent} ({reason(error)}): "
                    "choose an output folder that can be written to"
                ) from error
            with self._writing():
                try:
                    handle = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
                except FileNotFoundError:
                    continue  # another run has just removed the folder
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise MediaError(
                    f"another run is working on {self.output}: wait for its end, or choose "
                    "another output"
                ) from None
            except OSError as error:
                logger.debug("the file system knows no locks: %s", error)
            if os.fstat(handle).st_nlink:
                return handle
            os.close(handle)  # it was removed before it was locked

    def _read_journal(self) -> dict[str, Any]:
        """What ``job.json`` holds, empty where it is missing or damaged."""
        try:
            data = json.loads((self.folder / _JOURNAL).read_bytes())
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    def _write_journal(self, published: list[int] | None = None) -> None:
        data = {"schema": _SCHEMA, "identity": self._identity, "published": published}
        with self._writing():
            write_atomically(self.folder / _JOURNAL, json.dumps(data, indent=1).encode())
            sync(self.folder)

    def _was_published(self) -> bool:
        """Whether an earlier run was stopped after the rename, with only the folder left."""
        try:
            return bool(self._read_journal().get("published") == _inode(self.output))
        except OSError:
            return False

    def _difference(self, identity: dict[str, str]) -> str | None:
        journal = self._read_journal()
        if journal.get("schema", _SCHEMA) != _SCHEMA:
            return "the unfinished work is that of another version of this program"
        stored = journal.get("identity")
        if not isinstance(stored, dict):
            return "the record of the unfinished work is damaged"
        for key in [*identity, *stored]:
            old, new = stored.get(key, "not known"), identity.get(key, "not known")
            if old != new:
                return f"the {key} was {old} and is {new}"
        return None

    def _read_parts(self) -> list[PartRecord]:
        """The finished parts up to the first that is damaged."""
        parts: list[PartRecord] = []
        while (path := self.folder / f"part-{len(parts) + 1:06d}.json").exists():
            try:
                record = PartRecord.from_json(json.loads(path.read_bytes()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                record = None
            if record is None or not all(file.is_whole(self.folder) for file in record.files):
                logger.warning(
                    "part %d of the unfinished %s is damaged: the work goes on before it",
                    len(parts) + 1,
                    self.output,
                )
                break
            parts.append(record)
        # Behind a part that has lost what was attached to it, nobody can go on.
        while parts and not (
            parts[-1].attachment is None or parts[-1].attachment.is_whole(self.folder)
        ):
            parts.pop()
        return parts

    def _tidy(self) -> None:
        """Removes what belongs to no finished part."""
        kept = {_LOCK}
        if self.parts:
            kept.add(_JOURNAL)
            kept.update(f"part-{number:06d}.json" for number in range(1, len(self.parts) + 1))
            kept.update(file.name for part in self.parts for file in part.files)
            if (last := self.parts[-1].attachment) is not None:
                kept.add(last.name)
        # From the bottom up, so that folders are empty when it is their turn.
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if str(path.relative_to(self.folder)) in kept:
                continue
            try:
                if path.is_dir() and not path.is_symlink():
                    if not any(path.iterdir()):
                        path.rmdir()
                else:
                    path.unlink()
            except OSError as error:
                logger.warning("cannot remove the unfinished %s: %s", path, reason(error))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MediaError(f"cannot write {self.output}: {reason(error)}") from error


def _inode(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_dev, status.st_ino]
