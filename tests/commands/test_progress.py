"""Tests the progress displays: a bar if standard error is a terminal, lines if it is not."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from rbvsr_deploy.commands import _progress as progress
from rbvsr_deploy.commands._progress import (
    CompileDisplay,
    FramesDisplay,
    ProgressDisplay,
    TrainingDisplay,
)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_training_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """One at the start and the end of a phase, and every five seconds; the estimate of the time
    left starts after the phase's first iteration, which includes setup.
    """
    with TrainingDisplay() as display:
        display("flow", 1, 2)
        clock.now += 1
        display("flow", 2, 2)
        for done in range(1, 5):
            clock.now += 3 if done > 1 else 60
            display("restoration", done, 2004)
    assert lines(capsys) == [
        "flow: 1 of 2 iterations",
        "flow: 2 of 2 iterations",
        "restoration: 1 of 2004 iterations",
        "restoration: 3 of 2004 iterations, 1 h 40 min left",
    ]


def test_frames_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Resumed work takes no time in this run; the last frame is reported."""
    with ProgressDisplay() as display:
        display("clean", 100, 100)
        display("backward", 50, 100)
        clock.now += 10
        display("backward", 100, 100)  # 0.35 of the work in 10 s, 0.55 to go
        display("forward", 99, 100)
        display("forward", 100, 100)
    assert lines(capsys) == [
        "backward: 100 of 100 frames (45% done), 16 s left",
        "forward: 100 of 100 frames",
    ]


def test_lines_of_several_sequences(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """One when a sequence begins, and its progress every five seconds."""
    with FramesDisplay(2) as display:
        display("a", 1, None)
        clock.now += 6
        display("a", 2, None)
        display("b", 1, 9)
    assert lines(capsys) == ["a (1 of 2)", "a (1 of 2): frame 2 of unknown", "b (2 of 2)"]


def test_lines_of_a_compilation(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each graph, not for each of its steps."""
    with CompileDisplay() as display:
        for graph in ("flow", "clean"):
            display(graph, "Tactics", 0, 9)
            display(graph, "Tactics", 1, 9)
    assert lines(capsys) == ["compiling flow", "compiling clean"]


def on_a_terminal(program: str) -> list[str]:
    """Run a program on a pseudo terminal and return the lines it drew there, bars as "|"."""
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stderr=its_end,
        stdout=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"},
    )
    os.close(its_end)
    shown = b""
    while True:
        try:
            block = os.read(terminal, 4096)
        except OSError:  # Linux reports the closed other end like this
            break
        if not block:
            break
        shown += block
    os.close(terminal)
    assert process.communicate(timeout=60)[0] == b""
    assert process.returncode == 0
    screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).split("\r")
    return [re.sub(r" +[━╸╺]+ +", " | ", line.strip()) for line in screen if line.strip()]


def test_a_bar_for_each_phase_on_a_terminal() -> None:
    """Two full bars are left on the screen, and nothing is written to standard output."""
    program = """
from rbvsr_deploy.commands._progress import TrainingDisplay
with TrainingDisplay() as display:
    for phase, total in (("flow", 2), ("restoration", 3)):
        for done in range(1, total + 1):
            display(phase, done, total)
"""
    assert on_a_terminal(program)[-2:] == [
        "flow: 2 of 2 iterations | 0:00:00",
        "restoration: 3 of 3 iterations | 0:00:00",
    ]


def test_names_are_shown_unchanged_on_a_terminal() -> None:
    """Brackets in the name of a sequence are not markup."""
    program = """
import time
from rbvsr_deploy.commands._progress import FramesDisplay
with FramesDisplay(1) as display:
    display("[red]clip", 1, 2)
    time.sleep(0.2)
"""
    assert any(line.startswith("[red]clip (1 of 1) | frame 1") for line in on_a_terminal(program))
