"""The unfinished work for one output, kept in a hidden folder beside it.

::

    .clip_x4.mp4.job/
        lock                 held by the run that works on it; the kernel lets go if it is killed
        job.json             what the work is made from: another input or option starts over
        part-000001.packets  what the sink keeps of a part
        part-000001.json     the part is finished: written last, in one step
        part-000001.state    what the caller attached to it; of the last part only

What else a run leaves there that was stopped is removed by the next one; a folder that holds
anything the program does not make is refused, as ``job_folder`` says.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.files import usual_mode
from rbvsr_deploy.video.pyav import reason
from rbvsr_deploy.video.staging.job_folder import JOURNAL, JobFolder
from rbvsr_deploy.video.staging.parts import PartRecord, StoredFile
from rbvsr_deploy.video.staging.publish import check_place, check_target, put_in_place, sync

__all__ = ["Job"]

logger = logging.getLogger(__name__)

_SCHEMA = 1
_LARGEST_RECORD = 2**24
"""Bytes of the JSON of a part; one scene takes a hundred."""
_NOT_A_RECORD = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class Job(Closing):
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
        MediaError: the output's folder is missing or cannot be written to, another run works on
            the same output, or what has the job folder's name is not this user's job folder.
    """

    folder: Path
    """The job folder."""
    storage: JobFolder
    """What is made and removed in it."""
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
        check_place(output)
        target = Path(os.path.abspath(output))
        self.folder = target.with_name(f".{target.name}.job")
        with self._writing():
            self.storage = JobFolder(self.folder, output=output)
        self._closed = False
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

    def start(
        self, settings: dict[str, str], *, fits: Callable[[PartRecord], bool] = lambda part: True
    ) -> None:
        """Takes over the finished parts of an earlier run, or starts over.

        Called by the sink, as late as it can be: until then, nothing of the earlier work is lost.

        Args:
            settings: the sink's share of the identity.
            fits: whether the record of a part and its files, which are whole, are what the sink
                can have made; called for one part after the other. It may raise KeyError,
                TypeError, ValueError or MediaError where they are not.

        Raises:
            MediaError: the folder cannot be written to.
        """
        identity = {**self._identity, **settings}
        with self._writing():
            begun = any(re.fullmatch(r"part-\d+\.json", name) for name in self.storage.names())
        if begun:
            self.started_over = (
                self._difference(identity) if self._resume else "the input cannot be gone back in"
            )
            if self.started_over is None:
                self.parts = self._read_parts(fits)
        self.resumed_parts = len(self.parts)
        # From here on, also if a signal comes now, what belongs to no finished part is removed.
        self._started = True
        self._tidy()
        self._identity = identity
        self._write_journal()

    def next_part(self, suffix: str) -> Path:
        """The path for the data of the part that is being made, where nothing is yet.

        Raises:
            MediaError: something else has taken the job folder's place.
        """
        self.storage.check()
        return self.folder / self._next(suffix)

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
            self.storage.check()
            state = self._next(".state")
            if attachment is not None:
                with self.storage.create(state) as file:
                    file.write(attachment)
                    file.flush()
                    os.fsync(file.fileno())
                digest = hashlib.sha256(attachment).hexdigest()
                stored = StoredFile(state, len(attachment), digest)
            # The files' own names must be on the disk before the record that speaks of them.
            self.storage.sync()
            record = PartRecord(frames, note, media, tuple(files), stored)
            data = record.to_bytes()
            self.storage.write(self._next(".json"), data)
            before = self.parts[-1].attachment if self.parts else None
            if before is not None:
                self.storage.remove(before.name)
        # As it will be read again: tuples have become lists.
        self.parts.append(PartRecord.from_bytes(data))

    def attachment(self) -> bytes | None:
        """What was attached to the last finished part.

        Raises:
            MediaError: it cannot be read.
        """
        stored = self.parts[-1].attachment if self.parts else None
        if stored is None:
            return None
        try:
            return self.storage.read(stored.name, at_most=stored.size)
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
        try:
            self.storage.check()
            self.check(folder=finished.is_dir())
            if self._keep:
                finished = self._copied(finished)
            else:
                # Renaming keeps the inode. Killed between the two, the next run knows by it that
                # only tidying up is left.
                self._write_journal(published=_inode(finished))
            if finished.is_file():
                finished.chmod(usual_mode())  # until now, it was for this user only
            put_in_place(finished, target=self.output)
        except OSError as error:
            raise MediaError(f"cannot complete {self.output}: {reason(error)}") from error
        self._published = True

    def close(self) -> None:
        """Ends the work; calling it again does nothing.

        The folder stays where it holds finished parts of an output that is not published, or where
        it was asked for.
        """
        if self._closed:
            return
        try:
            if not (self._keep if self._published else self._resume):
                self.parts = []
            # What cannot be removed now is removed, or used, by the next run.
            with contextlib.suppress(OSError, MediaError):
                if self._started:
                    self._tidy()
                if not self.parts:
                    self.storage.remove_if_empty()
        finally:
            self.storage.close()
            self._closed = True

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

    def _next(self, suffix: str) -> str:
        return f"part-{len(self.parts) + 1:06d}{suffix}"

    def _read_journal(self) -> dict[str, Any]:
        """What ``job.json`` holds, empty where it is missing or damaged."""
        try:
            data = json.loads(self.storage.read(JOURNAL, at_most=_LARGEST_RECORD))
        except (OSError, ValueError, RecursionError):
            return {}
        return data if isinstance(data, dict) else {}

    def _write_journal(self, published: list[int] | None = None) -> None:
        data = {"schema": _SCHEMA, "identity": self._identity, "published": published}
        with self._writing():
            self.storage.write(JOURNAL, json.dumps(data, indent=1).encode())

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

    def _read_parts(self, fits: Callable[[PartRecord], bool]) -> list[PartRecord]:
        """The finished parts up to the first that is damaged."""
        parts: list[PartRecord] = []
        with self._writing():
            names = set(self.storage.names())
        while (name := f"part-{len(parts) + 1:06d}.json") in names:
            try:
                record = PartRecord.from_bytes(self.storage.read(name, at_most=_LARGEST_RECORD))
                usable = all(file.is_whole(self.folder) for file in record.files) and fits(record)
            except (*_NOT_A_RECORD, OSError, MediaError):
                usable = False
            if not usable:
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
        kept: set[str] = set()
        if self.parts:
            kept.add(JOURNAL)
            kept.update(f"part-{number:06d}.json" for number in range(1, len(self.parts) + 1))
            kept.update(file.name for part in self.parts for file in part.files)
            if (last := self.parts[-1].attachment) is not None:
                kept.add(last.name)
        with self._writing():
            self.storage.clear(kept)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MediaError(f"cannot write {self.output}: {reason(error)}") from error


def _inode(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_dev, status.st_ino]
