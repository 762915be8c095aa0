"""Does the work of one worker: opens an engine, and upscales units or whole files with it."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import logging
import os
import queue
import socket
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.cluster.index import checksum, listed
from rbvsr_deploy.cluster.messages import (
    Done,
    Failed,
    FileTask,
    FromWorker,
    Note,
    Piece,
    Ready,
    Refused,
    Scanned,
    ScanTask,
    Setup,
    Task,
    UnitTask,
)
from rbvsr_deploy.cluster.part_cuts import PartCuts
from rbvsr_deploy.cluster.reporter import CancelledError, Reporter
from rbvsr_deploy.cluster.staging import StagingFolder, read_parts
from rbvsr_deploy.cluster.versions import versions
from rbvsr_deploy.engines import Engine
from rbvsr_deploy.engines import open_engine as usual_engine
from rbvsr_deploy.errors import MediaError, RbvsrError, first_line
from rbvsr_deploy.files import total_size
from rbvsr_deploy.jobs.batch import was_finished
from rbvsr_deploy.jobs.frames import Run
from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.runtime.context import STAGE_SHARES
from rbvsr_deploy.runtime.output_size import output_sides
from rbvsr_deploy.runtime.scenes import CutDetector
from rbvsr_deploy.runtime.stream import StreamState
from rbvsr_deploy.video import Job, VideoSource, open_sink, open_source
from rbvsr_deploy.video.staging.job_folder import BusyError

__all__ = ["Worker", "work"]

_PASSED_ON = ("rbvsr_deploy.runtime", "rbvsr_deploy.engines")
"""Loggers whose warnings the coordinator does not have itself."""
_SAID_ONCE = ("rbvsr_deploy.video.interlacing", "rbvsr_deploy.video.timing")
"""Loggers of what is noticed while an input is read."""


def work(
    setup: Setup,
    tasks: queue.Queue[Task | Piece],
    send: Callable[[FromWorker], None],
    *,
    opened: Callable[[Worker], object],
    open_engine: Callable[..., Engine] | None,
) -> None:
    """Open a worker and do its tasks for ever; return only if it cannot be opened.

    Args:
        setup: engine and settings.
        tasks: what the coordinator sends, except for cancellations.
        send: called with every message for the coordinator, from any thread.
        opened: called with the worker before its first task.
        open_engine: opens another engine than :func:`rbvsr_deploy.engines.open_engine`.
    """
    try:
        worker = Worker(setup, send, open_engine=open_engine or usual_engine)
    except Exception as error:
        send(Refused(_sentence(error)))
        return
    opened(worker)
    while True:
        message = tasks.get()
        if isinstance(message, Piece):
            worker.take(message)
        else:
            worker.run(message)


class Worker(Closing):
    """Upscales one task after the other with one engine.

    Args:
        setup: engine and settings.
        send: called with every message for the coordinator, from any thread.
        open_engine: opens the engine.

    Raises:
        RbvsrError: the engine cannot be opened.
    """

    def __init__(
        self,
        setup: Setup,
        send: Callable[[FromWorker], None],
        *,
        open_engine: Callable[..., Engine],
    ) -> None:
        self._send = send
        self._cancelled: set[int] = set()
        self._staging = StagingFolder()
        self._refused: dict[int, str] = {}  # why, by task
        size = setup.size
        self._engine = open_engine(
            setup.model,
            device=setup.device,
            trust_engines=setup.trust_engines,
            size=None if size is None else lambda: size,
        )
        memory = setup.settings.memory or self._engine.free_memory() // 2
        self._settings = dataclasses.replace(setup.settings, memory=max(1, memory // setup.share))
        logging.getLogger().addHandler(logging.NullHandler())  # the coordinator says it all
        self._notes = _Notes(send)
        for name in _PASSED_ON:
            logging.getLogger(name).addHandler(self._notes)
        engine = self._engine.describe()
        send(Ready(engine, versions(engine), host=socket.gethostname(), process=os.getpid()))

    def cancel(self, number: int) -> None:
        """End a task soon, from any thread; it then fails."""
        self._cancelled.add(number)

    def take(self, piece: Piece) -> None:
        """Take a piece of the input of a task that follows."""
        if piece.number in self._refused:
            return
        try:
            self._staging.take(piece)
        except OSError as error:
            self._refused[piece.number] = _sentence(error)
            self._staging.drop(piece.number)

    def run(self, task: Task) -> None:
        """Do a task and send its result."""
        try:
            match task:
                case UnitTask(staged=True):
                    done = self._staged_unit(task)
                case UnitTask():
                    done = self._unit(task)
                case FileTask():
                    done = self._file(task)
                case ScanTask():
                    done = self._scan(task)
        except CancelledError:
            self._send(Failed(task.number, "it was cancelled", cancelled=True))
        except Exception as error:
            self._send(Failed(task.number, _sentence(error)))
        else:
            self._send(done)
        # PyAV's frames and their side data refer to each other: Python would find them after many
        # tasks only, and they are megabytes each.
        gc.collect()

    def discard(self) -> None:
        """Remove temporary files, whatever is being done; the process ends right after it."""
        self._staging.close()

    def close(self) -> None:
        for name in _PASSED_ON:
            logging.getLogger(name).removeHandler(self._notes)
        self._staging.close()
        self._engine.close()

    def _staged_unit(self, task: UnitTask) -> Done:
        if (why := self._refused.pop(task.number, None)) is not None:
            raise MediaError(why)
        try:
            done = self._unit(self._staging.localised(task))
            assert done.folder is not None
            name = done.folder
            for part in read_parts(done.folder, number=task.number):
                self._send(part)
                name = Path(part.folder)
            return msgspec.structs.replace(done, folder=name)
        finally:
            self._staging.drop(task.number)

    def _unit(self, task: UnitTask) -> Done:
        target = task.target
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(open_source(task.path, task.reading))
            height, width = output_sides(target, height=source.height, width=source.width)
            job = stack.enter_context(_job_of(task))
            sink = stack.enter_context(
                open_sink(
                    task.output,
                    source=source,
                    width=width,
                    height=height,
                    sample_aspect=None if target is None else target.sample_aspect,
                    job=job,
                    # Sound and subtitles are copied once, by the coordinator.
                    options=dataclasses.replace(task.writing, audio=False, subtitles=False),
                )
            )
            begin = StreamState.between_scenes(task.first)
            if task.state is not None:
                begin = StreamState.from_bytes(task.state)
            kept = None if task.staged else job  # another try has other storage
            reporter = Reporter(
                task.number, self._send, self._cancelled, first=begin.frames, job=kept
            )
            run = Run(
                self._engine,
                self._settings,
                source,
                sink,
                target=target,
                cuts=stack.enter_context(PartCuts(task)),
                begin=begin,
                progress=reporter.progress,
                report=lambda line: None,
            )
            reporter.begin(run.resumed)
            run.run()
            segments = job.segments
        made = sum(segment.frames for segment in segments)
        if made != task.stop - task.first:
            raise MediaError(
                f"{task.path} gave {made} frames from frame {task.first} on, and "
                f"{task.stop - task.first} before: it was changed during the run"
            )
        return Done(
            task.number,
            frames=task.stop - run.resumed,
            seconds=run.seconds,
            size=sum(file.size for segment in segments for file in segment.files),
            folder=job.folder,
            memory=run.memory,
            plan=run.plan,
        )

    def _file(self, task: FileTask) -> Done:
        if not task.overwrite and was_finished(task.path, task.output, task.reading, task.size):
            return Done(task.number, frames=0, seconds={}, size=0)
        reporter = Reporter(task.number, self._send, self._cancelled, whole=True)
        summary = upscale_file(
            task.path,
            task.output,
            engine=self._engine,
            settings=self._settings,
            size=task.size,
            scene_cuts=task.scene_cuts,
            reading=task.reading,
            writing=task.writing,
            overwrite=task.overwrite,
            keep_job=task.keep_job,
            progress=reporter.progress,
        )
        return Done(
            task.number,
            frames=summary.frames - summary.resumed_frames,
            seconds=summary.seconds,
            size=total_size(task.output),
            summary=summary,
        )

    def _scan(self, task: ScanTask) -> Done:
        start = time.perf_counter()
        stamps, sums, cuts = array("q"), array("I"), []
        detector = CutDetector() if task.detect else None
        reporter = Reporter(task.number, self._send, self._cancelled)
        with contextlib.ExitStack() as stack:
            if task.begin is None:  # what the others would say too
                for name in _SAID_ONCE:
                    stack.enter_context(_passed_on(name, self._notes))
            source = stack.enter_context(open_source(task.path, task.reading))
            source.keeps_captions = task.keeps_captions
            for number, frame in enumerate(
                source.frames_from(0 if task.begin is None else 1, pts=task.begin)
            ):
                stamp = number if frame.pts is None else frame.pts
                if task.stop is not None and stamp >= task.stop:
                    break
                if detector is not None and detector.is_cut(frame.image):
                    cuts.append(number)
                stamps.append(stamp)
                sums.append(checksum(frame))
                for stage in STAGE_SHARES:
                    reporter.progress(stage, number + 1, None)
            scanned = Scanned(
                stamps=stamps.tobytes(),
                sums=sums.tobytes(),
                cuts=cuts,
                changes=listed(source.changes),
                is_regular=isinstance(source, VideoSource) and source.is_regular,
            )
        seconds = {"scenes": time.perf_counter() - start}
        return Done(task.number, frames=0, seconds=seconds, size=0, scanned=scanned)


@contextlib.contextmanager
def _passed_on(logger: str, handler: logging.Handler) -> Iterator[None]:
    logging.getLogger(logger).addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger(logger).removeHandler(handler)


class _Notes(logging.Handler):
    """Passes warnings on to the coordinator."""

    def __init__(self, send: Callable[[FromWorker], None]) -> None:
        super().__init__(logging.WARNING)
        self._send_note = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send_note(Note(record.getMessage()))


def _job_of(task: UnitTask) -> Job:
    """Open the unit's job folder, or another one while a second worker has it."""
    for number in itertools.count(1):
        name = f"{task.first:09d}" + (f"-{number}" if number > 1 else "")
        with contextlib.suppress(BusyError):
            return Job(
                task.output,
                identity={"unit": f"{task.first} to {task.stop}", "work": task.work},
                overwrite=True,
                folder=task.folder / name,
            )
    raise AssertionError


def _sentence(error: BaseException) -> str:
    """Describe an error in one sentence."""
    if isinstance(error, RbvsrError):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "out of memory: use a smaller memory limit, or fewer workers"
    if isinstance(error, OSError) and error.strerror:
        return f"system error: {error.strerror}{f': {error.filename}' if error.filename else ''}"
    return f"internal error: {type(error).__name__}: {first_line(error)}"
