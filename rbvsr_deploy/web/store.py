"""Keeps jobs on disk, each in a folder of its own. ::

jobs/
    lock                      held by the server that uses the folder
    20261126-034659-1f0c2a/
        job.json              the record, replaced atomically
        lock                  held by the process that works on the job
        input/clip.mp4        or input/NAME/ with the images of a folder
        output/clip_x4.mp4    appears when it is complete; unfinished work is hidden next to it
        preview.html          the preview page
        preview.json run.json     what rbvsr-run printed, and below its messages
        preview.log run.log
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import secrets
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.files import make_private_folder, try_lock, write_atomically
from rbvsr_deploy.web.records import Kind, Record, Step, StepName
from rbvsr_deploy.web.uploads import Limits, UploadError, safe_name

__all__ = ["Job", "Store"]

logger = logging.getLogger(__name__)

_RECORD = "job.json"
_ABANDONED = 600.0
"""Seconds without a part of an upload, after which its job is removed."""
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")


class Job:
    """Represents one job on disk; its methods may be called from any thread.

    Args:
        folder: the job's folder.
        record: its record.
    """

    def __init__(self, folder: Path, record: Record) -> None:
        self.id = folder.name
        self.folder = folder
        self._record = record
        self._lock = threading.Lock()
        self._announced_left, self._files_left = record.size, record.files
        self.touch()

    @property
    def record(self) -> Record:
        """The current record."""
        return self._record

    @property
    def input(self) -> Path:
        """Path of the input, a file or a folder of images."""
        return self.folder / "input" / self.record.name

    @property
    def page(self) -> Path:
        """Path of the preview page."""
        return self.folder / "preview.html"

    @property
    def output_folder(self) -> Path:
        """Path of the folder in which the output appears."""
        return self.folder / "output"

    def output(self) -> Path | None:
        """Return the path of the complete output, or ``None`` while there is none."""
        try:
            found = sorted(p for p in self.output_folder.iterdir() if not p.name.startswith("."))
        except OSError:
            return None
        return found[0] if found else None

    def remove_output(self) -> None:
        """Remove the output, but not unfinished work."""
        while (path := self.output()) is not None:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def log(self, name: StepName) -> Path:
        """Return the path of a step's messages."""
        return self.folder / f"{name}.log"

    def result_file(self, name: StepName) -> Path:
        """Return the path of what a step printed."""
        return self.folder / f"{name}.json"

    def result(self, name: StepName) -> dict[str, Any]:
        """Return the report of a finished step; empty if there is none."""
        try:
            found = msgspec.json.decode(self.result_file(name).read_bytes())
        except (OSError, msgspec.DecodeError):
            return {}
        return found if isinstance(found, dict) else {}

    def change_step(self, name: StepName, **changes: Any) -> None:
        """Change fields of a step and store them.

        Raises:
            OSError: the record cannot be written.
        """
        with self._lock:
            step: Step = dataclasses.replace(self._record.step(name), **changes)
            self._save(self._record.with_step(name, step))

    def expect(self, size: int) -> None:
        """Count a file of an upload before it is received.

        Raises:
            UploadError: it is more than was announced.
        """
        if size > self._announced_left or self._files_left < 1:
            raise UploadError(
                f"{self.record.name} has more bytes or files than announced: upload it again"
            )
        self._announced_left -= size
        self._files_left -= 1

    def touch(self) -> None:
        """Note that the upload is in progress."""
        self._touched = time.monotonic()

    @property
    def is_abandoned(self) -> bool:
        """Whether the upload is incomplete, and no part of it has come for long."""
        return not self.record.uploaded and time.monotonic() - self._touched > _ABANDONED

    def finish_upload(self) -> None:
        """Record that the input is complete.

        Raises:
            UploadError: bytes or files are missing.
            OSError: the record cannot be written.
        """
        is_folder = self.record.kind == "folder"
        found = list(self.input.iterdir()) if is_folder else [self.input]
        size = sum(path.stat().st_size for path in found if path.exists())
        if (len(found), size) != (self.record.files, self.record.size):
            raise UploadError(f"the upload of {self.record.name} is incomplete: upload it again")
        with self._lock:
            self._save(dataclasses.replace(self._record, uploaded=True))

    def _save(self, record: Record) -> None:
        write_atomically(self.folder / _RECORD, msgspec.json.encode(record), private=True)
        self._record = record


class Store(Closing):
    """Holds all jobs; one server at a time uses the folder.

    Uploads that were interrupted with an earlier server are removed.

    Args:
        folder: created, for this user only, if it does not exist.
        limits: of new jobs.

    Raises:
        RbvsrError: another server uses the folder, or it cannot be used.
    """

    def __init__(self, folder: Path, *, limits: Limits | None = None) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.limits = limits or Limits()
        try:
            make_private_folder(self.folder)
            self._held = open(self.folder / "lock", "ab")  # noqa: SIM115
        except OSError as error:
            raise RbvsrError(
                f"the folder of jobs {folder} cannot be used ({error.strerror}): choose another"
            ) from None
        if not try_lock(self._held.fileno()):
            self._held.close()
            raise RbvsrError(
                f"another server is using the jobs in {folder}: open its page, or choose another "
                "folder"
            )
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        for path in sorted(self.folder.iterdir()):
            if _ID.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                self._load(path)

    def close(self) -> None:
        """Let another server use the folder."""
        self._held.close()

    def all(self) -> list[Job]:
        """Return all jobs whose upload is complete, the newest first."""
        return [job for job in reversed(self._all()) if job.record.uploaded]

    def get(self, name: str) -> Job | None:
        """Return a job by its id, or ``None`` if there is no such job."""
        with self._lock:
            return self._jobs.get(name)

    def new(self, name: str, *, kind: Kind, size: int, files: int) -> Job:
        """Create a job for an upload.

        Args:
            name: file or folder name of the input as given, however unsafe.
            kind: whether the input is a file or a folder of images.
            size: bytes of all files.
            files: number of files.

        Raises:
            UploadError: it is refused.
        """
        if kind == "file" and files != 1:
            raise UploadError(f"a file was announced as {files} files: upload one at a time")
        for abandoned in [job for job in self._all() if job.is_abandoned]:
            self.remove(abandoned)
        self.limits.check(size=size, files=files, free=self._free())
        now = time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
        record = Record(safe_name(name), kind, size=size, created=now, files=files)
        job = Job(self.folder / f"{stamp}-{secrets.token_hex(3)}", record)
        try:
            (job.input if kind == "folder" else job.input.parent).mkdir(parents=True)
            job.output_folder.mkdir()
        except OSError as error:
            shutil.rmtree(job.folder, ignore_errors=True)
            raise UploadError(f"{record.name} cannot be stored: {error.strerror}") from None
        with self._lock:
            self._jobs[job.id] = job
        return job

    def remove(self, job: Job) -> None:
        """Remove a job with all its files. No process may be working on it."""
        with self._lock:
            self._jobs.pop(job.id, None)
        # Without its record, what cannot be removed now is removed at the next start.
        with contextlib.suppress(OSError):
            (job.folder / _RECORD).unlink()
        shutil.rmtree(job.folder, ignore_errors=True)

    def _all(self) -> list[Job]:
        with self._lock:
            return list(self._jobs.values())

    def _free(self) -> int:
        """Return the free bytes of the disk, less what uploads in progress were promised."""
        promised = sum(job.record.size for job in self._all() if not job.record.uploaded)
        return shutil.disk_usage(self.folder).free - promised

    def _load(self, folder: Path) -> None:
        try:
            record = msgspec.json.decode((folder / _RECORD).read_bytes(), type=Record)
        except FileNotFoundError:
            shutil.rmtree(folder, ignore_errors=True)  # an upload that was never completed
            return
        except (OSError, msgspec.DecodeError) as error:
            logger.warning("the job in %s cannot be read and is left alone: %s", folder, error)
            return
        if record.name != safe_name(record.name):
            logger.warning("the job in %s has an unsafe name and is left alone", folder)
            return
        self._jobs[folder.name] = Job(folder, record)
