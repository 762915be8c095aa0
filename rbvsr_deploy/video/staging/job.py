"""Keeps the unfinished work for an output in a hidden folder next to it.

::

    .clip_x4.mp4.job/
        lock                 held by the current run; the kernel releases it if the run is killed
        job.json             identity of the work: with another input or option, it starts over
        part-000001.packets  the sink's data of a segment
        part-000001.json     record of a finished segment, written last and atomically
        part-000001.state    the caller's attachment; large ones for the last segment only
        frames.index         of a job that several workers share: its frames and scenes
        units/               and the job folders of its parts, until they are taken over

Other files that an interrupted run leaves there are removed by the next run. A folder that holds
anything else is refused, see ``job_folder``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.files import usual_mode
from rbvsr_deploy.video.pyav import reason
from rbvsr_deploy.video.staging.job_folder import JOURNAL, JobFolder, job_folder
from rbvsr_deploy.video.staging.journal import (
    LARGEST_RECORD,
    difference,
    inode,
    read_journal,
    write_journal,
)
from rbvsr_deploy.video.staging.parts import SegmentRecord, StoredFile
from rbvsr_deploy.video.staging.publish import check_place, check_target, copied, put_in_place, sync

__all__ = ["Job"]

logger = logging.getLogger(__name__)

_SMALL = 2**16
"""Attachments of up to so many bytes are kept for every segment, in case later ones are lost."""
_NOT_A_RECORD = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class Job(Closing):
    """Manages the job folder of one output, which one run at a time can hold.

    Use it as a context manager around the sink that writes into it. Leaving it removes the folder,
    unless the output is unfinished and has finished segments: the next job for the same output
    then resumes after them. ::

        with Job(output, identity={"input": ..., "model": ...}) as job:
            with open_sink(output, source=source, width=w, height=h, job=job) as sink:
                done = sum(segment.frames for segment in sink.finished_segments)
                ...

    Args:
        output: the file or folder to produce.
        identity: what the output depends on, under readable names such as "input" or "model";
            finished segments with another identity are discarded.
        overwrite: whether an existing output may be replaced.
        keep: whether to keep the folder after success.
        work: names of other files and folders that unfinished work consists of; they are kept like
            segments.
        folder: path of the job folder, if not the usual one.
        resume: whether to use finished segments of an earlier run, and to leave those of this
            run to a later one.
        still_valid: returns whether what a finished segment was made of is the same as now. It may
            raise KeyError, TypeError, ValueError or MediaError instead of returning false.
        verify: called right before the output is published; an error prevents that.

    Raises:
        MediaError: the output's folder is missing or not writable, another run works on the same
            output, or the job folder's path is taken by anything but this user's job folder.
    """

    folder: Path
    """Path of the job folder."""
    storage: JobFolder
    """File operations in the job folder."""
    segments: list[SegmentRecord]
    """Finished segments, available once a sink is opened."""
    resumed_segments: int
    """Number of segments from an earlier run."""
    started_over: str | None
    """Why finished segments were discarded, as a clause such as "the model was A and is B"."""

    def __init__(
        self,
        output: Path,
        *,
        identity: dict[str, str],
        overwrite: bool = False,
        keep: bool = False,
        resume: bool = True,
        work: Collection[str] = (),
        folder: Path | None = None,
        still_valid: Callable[[SegmentRecord], bool] = lambda part: True,
        verify: Callable[[], None] = lambda: None,
    ) -> None:
        self.output = output
        self.overwrite = overwrite
        self.segments = []
        self.resumed_segments = 0
        self.started_over = None
        self._identity = dict(identity)
        self._keep = keep
        self._resume = resume
        self._work = frozenset(work)
        self._still_valid = still_valid
        self._verify = verify
        self._started = self._published = False
        check_place(output)
        self.folder = folder or job_folder(output)
        with self._writing():
            self.storage = JobFolder(self.folder, output=output)
        self._closed = False
        try:
            if self._was_published():
                self._tidy()
        except BaseException:
            self.close()
            raise

    @property
    def identity(self) -> dict[str, str]:
        """What the output depends on, with the sink's settings once a sink is opened."""
        return dict(self._identity)

    def check(self, *, folder: bool) -> None:
        """Check that the output can be published.

        Args:
            folder: whether the output is a folder of files rather than one file.

        Raises:
            MediaError: the output exists, or is of the other kind.
        """
        check_target(self.output, overwrite=self.overwrite, folder=folder)

    def start(
        self,
        settings: dict[str, str],
        *,
        fits: Callable[[SegmentRecord], bool] = lambda segment: True,
    ) -> None:
        """Take over the finished segments of an earlier run, or start over.

        The sink calls it as late as possible; until then, no earlier work is discarded.

        Args:
            settings: settings of the sink that belong to the identity.
            fits: returns whether this sink can have written a segment; called for each segment in
                order, with undamaged files. It may raise KeyError, TypeError, ValueError or
                MediaError instead of returning false.

        Raises:
            MediaError: the folder cannot be written to.
        """
        identity = {**self._identity, **settings}
        with self._writing():
            names = self.storage.names()
        begun = any(name in self._work or re.fullmatch(r"part-\d+\.json", name) for name in names)
        if begun:
            self.started_over = (
                difference(read_journal(self.storage), identity)
                if self._resume
                else "the input cannot be rewound"
            )
            if self.started_over is None:
                self.segments = self._read_segments(fits)
        self.resumed_segments = len(self.segments)
        if self.started_over is not None:
            self._tidy()
        # From here on, even after a signal, files outside finished segments are removed.
        self._started = True
        self._tidy()
        self._identity = identity
        self._write_journal()

    def next_segment(self, suffix: str) -> Path:
        """Return the unused path for the data of the current segment.

        Raises:
            MediaError: the job folder was removed or replaced.
        """
        self.storage.check()
        return self.folder / self._next(suffix)

    def add_segment(
        self,
        *,
        frames: int,
        note: dict[str, Any],
        media: dict[str, Any],
        files: list[StoredFile],
        attachment: bytes | None = None,
    ) -> None:
        """Record a finished segment durably: it survives a power failure after this returns.

        Args:
            frames: number of frames, at least 1.
            note: JSON-serialisable data of the caller, available after a resume.
            media: JSON-serialisable data of the sink, available after a resume.
            files: the files of the segment, already synced to disk.
            attachment: binary data of the caller; replaces that of the previous segment if that
                is large.

        Raises:
            TypeError: the note is not JSON-serialisable.
            MediaError: the folder cannot be written to; earlier segments are kept.
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
            # The files' directory entries must be on disk before the record that refers to them.
            self.storage.sync()
            record = SegmentRecord(frames, note, media, tuple(files), stored)
            data = record.to_bytes()
            self.storage.write(self._next(".json"), data)
            before = self.segments[-1].attachment if self.segments else None
            if before is not None and before.size > _SMALL:
                self.storage.remove(before.name)
        # As after a resume: tuples have become lists.
        self.segments.append(SegmentRecord.from_bytes(data))

    def take_segments(
        self,
        folder: Path,
        segments: Sequence[SegmentRecord],
        *,
        note: dict[str, Any],
        media: dict[str, Any],
        attachment: bytes,
        keep_names: bool = False,
    ) -> None:
        """Record consecutive segments that another job has finished, as one; see
        :meth:`add_segment`.

        Args:
            folder: folder of that job, which keeps its files.
            segments: its segments.
            note, media, attachment: those of the new segment.
            keep_names: whether the names of the files are part of the output.
        """
        files = [file for segment in segments for file in segment.files]
        taken = []
        for number, file in enumerate(files, 1):
            suffix = f"-{number}" if len(files) > 1 else ""
            name = file.name if keep_names else self._next(f"{suffix}{Path(file.name).suffix}")
            with self._writing():
                self.storage.take(folder / file.name, name)
            taken.append(dataclasses.replace(file, name=name))
        with self._writing():
            for parent in {Path(file.name).parent for file in taken}:
                sync(self.folder / parent)
        self.add_segment(
            frames=sum(segment.frames for segment in segments),
            note=note,
            media=media,
            files=taken,
            attachment=attachment,
        )

    def attachment(self) -> bytes | None:
        """Return the attachment of the last finished segment, if any.

        Raises:
            MediaError: the attachment cannot be read.
        """
        stored = self.segments[-1].attachment if self.segments else None
        if stored is None:
            return None
        try:
            return self.storage.read(stored.name, at_most=stored.size)
        except OSError as error:
            raise MediaError(f"cannot read {self.folder / stored.name}: {reason(error)}") from error

    def publish(self, finished: Path) -> None:
        """Publish a file or folder of the job folder as the output.

        Args:
            finished: the complete file or folder, already synced to disk.

        Raises:
            MediaError: writing fails, or the output now exists; finished segments are kept.
        """
        try:
            self.storage.check()
            self.check(folder=finished.is_dir())
            self._verify()
            if self._keep:
                used = any(self.folder / f.name == finished for p in self.segments for f in p.files)
                if used or finished.is_dir():
                    finished = copied(finished, self.folder / f"copy{finished.suffix}")
            else:
                # Renaming keeps the inode. If this run is killed after the rename, the next run
                # recognises the output by it and only cleans up.
                self._write_journal(published=inode(finished))
            if finished.is_file():
                finished.chmod(usual_mode())  # was private to this user
            put_in_place(finished, target=self.output)
        except OSError as error:
            raise MediaError(f"cannot complete {self.output}: {reason(error)}") from error
        self._published = True

    def close(self) -> None:
        """End the work; calling it again does nothing.

        The folder is kept if it holds finished segments of an unpublished output, or on request.
        """
        if self._closed:
            return
        try:
            if not (self._keep if self._published else self._resume):
                self.segments = []
            # The next run removes or uses anything that cannot be removed now.
            with contextlib.suppress(OSError, MediaError):
                if self._started:
                    self._tidy()
                if not self.segments:
                    self.storage.remove_if_empty()
        finally:
            self.storage.close()
            self._closed = True

    def _next(self, suffix: str) -> str:
        return f"part-{len(self.segments) + 1:06d}{suffix}"

    def _write_journal(self, published: list[int] | None = None) -> None:
        with self._writing():
            write_journal(self.storage, self._identity, published=published)

    def _was_published(self) -> bool:
        """Return whether an earlier run was interrupted between publishing and cleaning up."""
        try:
            return bool(read_journal(self.storage).get("published") == inode(self.output))
        except OSError:
            return False

    def _read_segments(self, fits: Callable[[SegmentRecord], bool]) -> list[SegmentRecord]:
        """Read the finished segments before the first damaged one."""
        segments: list[SegmentRecord] = []
        with self._writing():
            names = set(self.storage.names())
        while (name := f"part-{len(segments) + 1:06d}.json") in names:
            try:
                record = SegmentRecord.from_bytes(self.storage.read(name, at_most=LARGEST_RECORD))
                usable = all(file.is_whole(self.folder) for file in record.files) and fits(record)
            except (*_NOT_A_RECORD, OSError, MediaError):
                usable = False
            if not usable:
                logger.warning(
                    "segment %d of the unfinished %s is damaged: resuming before it",
                    len(segments) + 1,
                    self.output,
                )
                break
            if not self._is_still_valid(record):
                logger.warning(
                    "the input of segment %d of the unfinished %s has changed: resuming before it",
                    len(segments) + 1,
                    self.output,
                )
                break
            segments.append(record)
        # Work cannot resume after a segment whose attachment is lost.
        while segments and not (
            segments[-1].attachment is None or segments[-1].attachment.is_whole(self.folder)
        ):
            segments.pop()
        return segments

    def _is_still_valid(self, record: SegmentRecord) -> bool:
        try:
            return self._still_valid(record)
        except (*_NOT_A_RECORD, MediaError):
            return False

    def _tidy(self) -> None:
        """Remove all files that do not belong to finished segments."""
        kept: set[str] = set()
        if self._started and not self._published and self._resume:
            with self._writing():
                kept.update(self._work.intersection(self.storage.names()))
        if self.segments or kept:
            kept.add(JOURNAL)
        if self.segments:
            kept.update(f"part-{number:06d}.json" for number in range(1, len(self.segments) + 1))
            kept.update(file.name for part in self.segments for file in part.files)
            attachments = [part.attachment for part in self.segments]
            kept.update(a.name for a in attachments if a is not None and a.size <= _SMALL)
            if (last := attachments[-1]) is not None:
                kept.add(last.name)
        with self._writing():
            self.storage.clear(kept)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MediaError(f"cannot write {self.output}: {reason(error)}") from error
