"""Tests the run that ends with the program that started it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rbvsr_deploy.files import try_lock

TETHERED = [sys.executable, "-m", "rbvsr_deploy.commands._tethered"]


def test_it_is_interrupted_when_its_input_ends(tmp_path: Path) -> None:
    """It waits for the lock, and is interrupted there."""
    lock = tmp_path / "lock"
    with lock.open("wb") as held:
        assert try_lock(held.fileno())
        process = subprocess.Popen(
            [*TETHERED, str(lock), "missing.mp4"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stderr.readline() == "Waiting for an earlier run to end\n"
        process.stdin.close()
        assert process.wait(20) == 130
        assert process.stderr.read() == ""
        process.stderr.close()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen({[*TETHERED, str(lock), 'missing.mp4']!r}, stdin=subprocess.PIPE)\n"
        "time.sleep(60)"
    )
    with lock.open("wb") as held:
        assert try_lock(held.fileno())
        parent = subprocess.Popen(
            [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True
        )
        assert parent.stderr is not None
        assert parent.stderr.readline() == "Waiting for an earlier run to end\n"
        parent.send_signal(signal.SIGKILL)
        assert parent.wait(20) == -signal.SIGKILL
        assert parent.stderr.read() == ""  # until the child closes it, which is its end
        parent.stderr.close()


def test_it_works_like_rbvsr_run(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*TETHERED, str(tmp_path / "lock"), "missing.mp4", "--no-such-option"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "Usage: rbvsr-run" in process.stderr.read()
        assert process.wait(20) == 2
