"""Runs the steps of jobs one at a time, each as a child process of ``rbvsr-run``.

A child lives only as long as its standard input is open. Closing it is how a step is cancelled, and
the system closes it if the server is killed: no work continues that nobody sees. What was finished
until then is resumed by the same command.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.web.progress import last_error
from rbvsr_deploy.web.records import Settings, StepName
from rbvsr_deploy.web.store import Job, Store

__all__ = ["Runner"]

logger = logging.getLogger(__name__)

_PREVIEWED = 3
"""Number of frames in a preview."""
_STEPS: tuple[StepName, ...] = ("preview", "run")


class Runner(Closing):
    """Holds the queue of steps; previews go before runs. Its methods may be called from any thread.

    Steps that an earlier server has left are queued again.

    Args:
        store: the jobs.
        command: program and first arguments of a child; the path of a lock file follows, which the
            child holds, then the arguments of ``rbvsr-run``.
        models: path by name of each model that users can choose; ``None`` is the included one.
        options: arguments for every step, such as a device.
        grace: seconds that a cancelled child has to end before it is killed.
    """

    def __init__(
        self,
        store: Store,
        *,
        command: Sequence[str],
        models: Mapping[str, Path | None],
        options: Sequence[str] = (),
        grace: float = 60.0,
    ) -> None:
        self.models = dict(models)
        self._store = store
        self._command, self._options = list(command), list(options)
        self._grace = grace
        self._changed = threading.Condition()
        self._current: tuple[Job, StepName] | None = None
        self._tether: IO[bytes] | None = None
        self._cancelled = self._closing = False
        for job in store.all():
            for name in _STEPS:
                if job.record.step(name).is_active:
                    job.change_step(name, state="waiting")
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the running step, which the next server resumes."""
        with self._changed:
            self._closing = True
            self._let_go()
            self._changed.notify_all()
        self._thread.join()

    def start(self, job: Job, name: StepName, settings: Settings) -> None:
        """Put a step in the queue, unless it is there or running.

        A finished step is done again; an unfinished run resumes if its settings are the same.

        Raises:
            OSError: the record cannot be written, or an old output not removed.
        """
        with self._changed:
            if job.record.step(name).is_active or self._store.get(job.id) is not job:
                return
            if name == "run":
                job.remove_output()
            job.change_step(name, state="waiting", settings=settings, asked=time.time(), message="")
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Cancel all steps of a job; a running one ends soon.

        Raises:
            OSError: the record cannot be written.
        """
        with self._changed:
            for name in _STEPS:
                if job.record.step(name).state == "waiting":
                    job.change_step(name, state="cancelled")
            if self._is_running(job):
                self._cancelled = True
                self._let_go()

    def remove(self, job: Job) -> None:
        """Cancel a job and remove it with all its files.

        Raises:
            OSError: the record cannot be written.
        """
        with self._changed:
            self.cancel(job)
            self._changed.wait_for(lambda: not self._is_running(job))
            self._store.remove(job)

    def is_cancelling(self, job: Job) -> bool:
        """Return whether a step of the job was cancelled and has not ended yet."""
        with self._changed:
            return self._cancelled and self._is_running(job)

    def ahead_of(self, job: Job, name: StepName) -> list[Job]:
        """Return the jobs whose steps end before a waiting step begins, in order."""
        with self._changed:
            current = [self._current[0]] if self._current is not None else []
            queue = self._queue()
            first = queue.index((job, name)) if (job, name) in queue else 0
            return [*current, *(other for other, _ in queue[:first])]

    def _is_running(self, job: Job) -> bool:
        return self._current is not None and self._current[0] is job

    def _queue(self) -> list[tuple[Job, StepName]]:
        waiting = [
            (job, name)
            for job in self._store.all()
            for name in _STEPS
            if job.record.step(name).state == "waiting"
        ]

        def place(task: tuple[Job, StepName]) -> tuple[bool, float]:
            return task[1] == "run", task[0].record.step(task[1]).asked

        return sorted(waiting, key=place)

    def _let_go(self) -> None:
        """Make the child end."""
        if self._tether is not None:
            with contextlib.suppress(OSError):
                self._tether.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._queue())
                if self._closing:
                    return
                job, name = self._current = self._queue()[0]
                self._cancelled = False
            began = time.monotonic()
            try:
                job.change_step(name, state="running", message="")
                code = self._run(job, name)
                self._finish(job, name, code=code, seconds=time.monotonic() - began)
            except Exception as error:  # such as a full disk: the queue continues
                logger.exception("job %s", job.id)
                with contextlib.suppress(OSError):
                    job.change_step(name, state="failed", message=f"the server failed: {error}")
            finally:
                with self._changed:
                    self._current = None
                    self._changed.notify_all()

    def _run(self, job: Job, name: StepName) -> int:
        """Run a child to its end and return its exit code."""
        if name == "run" and job.output() is not None:
            return 0  # it was finished when an earlier server was killed
        # New files, as a child of an earlier server may be writing its last words to the old ones.
        for old in (job.log(name), job.result_file(name), *([job.page] * (name == "preview"))):
            old.unlink(missing_ok=True)
        with open(job.log(name), "xb") as log, open(job.result_file(name), "xb") as result:
            process = subprocess.Popen(
                self._command_line(job, name),
                stdin=subprocess.PIPE,
                stdout=result,
                stderr=log,
                cwd=job.folder,
                start_new_session=True,  # Ctrl-C is for the server, which ends the child itself
            )
        with self._changed:
            self._tether = process.stdin
            if self._cancelled or self._closing:
                self._let_go()
        try:
            return self._wait(process)
        finally:
            with self._changed:
                self._let_go()
                self._tether = None

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        deadline = None
        while True:
            try:
                return process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                if deadline is None and (self._cancelled or self._closing):
                    deadline = time.monotonic() + self._grace
                if deadline is not None and time.monotonic() > deadline:
                    process.kill()

    def _command_line(self, job: Job, name: StepName) -> list[str]:
        settings = job.record.step(name).settings
        model = self.models.get(settings.model, next(iter(self.models.values())))
        folder = job.output_folder
        if name == "preview":
            what = [f"--preview={_PREVIEWED}", f"--report={job.page}", "--overwrite"]
        else:
            is_file = job.record.kind == "file"
            what = [f"--output={folder if is_file else folder / f'{job.record.name}_x4'}"]
        return [
            *self._command,
            str(job.folder / "lock"),
            str(job.input),
            *what,
            "--json",
            *([f"--engine={model}"] if model is not None else []),
            *self._options,
            *settings.arguments(),
        ]

    def _finish(self, job: Job, name: StepName, *, code: int, seconds: float) -> None:
        if code == 0 or (name == "run" and job.output() is not None):
            job.change_step(name, state="done", seconds=seconds)
        elif self._cancelled:
            job.change_step(name, state="cancelled", seconds=seconds)
        elif not self._closing:  # else the next server resumes it
            message = last_error(job.log(name)) or _sentence(code)
            job.change_step(name, state="failed", seconds=seconds, message=message)


def _sentence(code: int) -> str:
    if code < 0:
        return (
            f"the system ended the work (signal {-code}), perhaps because memory ran out; what is "
            "finished so far is kept"
        )
    return f"the work ended with exit code {code} and without a message"
