"""Runs workers on this machine: one process per GPU, or per share of the processor's cores."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec

from rbvsr_deploy.cluster.messages import (
    Cancel,
    Gone,
    Piece,
    Setup,
    Task,
    from_json,
    to_json,
)
from rbvsr_deploy.cluster.workers import Workers

__all__ = ["LocalWorkers"]

_COMMAND = (sys.executable, "-m", "rbvsr_deploy.cluster.process")
_SECONDS_TO_END = 5.0


class LocalWorkers(Workers):
    """Starts processes of this machine, which end when this process does.

    Args:
        count: number of workers.
        setup: engine and settings; each worker's share of the machine is filled in.
        command: starts a worker.
    """

    def __init__(self, count: int, setup: Setup, *, command: Sequence[str] = _COMMAND) -> None:
        super().__init__()
        self._command = command
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._threads: list[threading.Thread] = []
        gpus = [] if setup.device == "cpu" else _visible_gpus()
        self._setups: dict[str, tuple[Setup, dict[str, str]]] = {}
        for number in range(count):
            own = msgspec.structs.replace(setup, place=number, share=count)
            environment = dict(os.environ)
            if gpus:
                gpu = number % len(gpus)
                environment["CUDA_VISIBLE_DEVICES"] = gpus[gpu]
                same = [n for n in range(count) if n % len(gpus) == gpu]
                own = msgspec.structs.replace(
                    setup, place=same.index(number), share=len(same), on_gpu=True
                )
            self._setups[f"worker {number + 1}"] = own, environment

    def start(self) -> None:
        for name in self._setups:
            self.restart(name)

    @property
    def names(self) -> list[str]:
        return list(self._setups)

    @property
    def processes(self) -> dict[str, int]:
        """Process numbers of the workers by name."""
        return {name: process.pid for name, process in self._processes.items()}

    def send(self, name: str, message: Task | Piece | Cancel) -> None:
        self._write(self._processes[name], message)

    def restart(self, name: str) -> None:
        setup, environment = self._setups[name]
        process = subprocess.Popen(
            self._command,
            bufsize=0,  # nothing is left to be written when a worker is gone
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the workers
        )
        if (old := self._processes.get(name)) is not None:
            _end([old])
        self._processes[name] = process
        thread = threading.Thread(target=self._read, args=(name, process), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        self._write(process, setup)

    def stop(self, name: str) -> None:
        _end([self._processes[name]])

    def close(self) -> None:
        _end(list(self._processes.values()))
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _read(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Take the messages of a worker until it ends."""
        assert process.stdout is not None
        why = ""
        with io.BufferedReader(cast(io.FileIO, process.stdout)) as lines:
            for line in lines:
                try:
                    self._messages.put((name, from_json(line, of_worker=True)))
                except msgspec.MsgspecError:  # the end of a line is missing if it was killed
                    why = "sent something that is not a message"
        self._messages.put((name, Gone(why or _how(process.wait()))))

    @staticmethod
    def _write(process: subprocess.Popen[bytes], message: Setup | Task | Piece | Cancel) -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it is gone, as its other end will say
            line = memoryview(to_json(message) + b"\n")
            while line:
                line = line[process.stdin.write(line) :]


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes: by closing their standard input, or by force if that is not enough."""
    for process in processes:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
    for process in processes:
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"


def _visible_gpus() -> list[str]:
    """Return the GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
