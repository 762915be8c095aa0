"""Tests what is read from the messages of rbvsr-run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rbvsr_deploy.commands._progress import ProgressDisplay
from rbvsr_deploy.web.progress import Progress, last_error, read_messages, read_progress


def test_progress_as_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines of rbvsr-run itself are understood."""
    now = 100.0
    monkeypatch.setattr("rbvsr_deploy.commands._progress.time.monotonic", lambda: now)
    with ProgressDisplay() as display:
        display("clean", 0, 400)
        now += 50
        display("clean", 200, 400)
    log = tmp_path / "log"
    log.write_text(f"Engine: x\n{capsys.readouterr().err}Something else\n")
    assert read_progress(log, now=os.stat(log).st_mtime) == Progress(0.05, 15 * 60 + 50)


def test_progress_moves_between_lines(tmp_path: Path) -> None:
    """It approaches the end by the time since the last line, and does not reach it."""
    log = tmp_path / "log"
    log.write_text("forward: 12 of 36 frames (40% done), 1 min 40 s left\n")
    began = os.stat(log).st_mtime
    assert read_progress(log, now=began) == Progress(0.4, 100)
    half = read_progress(log, now=began + 50)
    assert half is not None
    assert (half.fraction, half.seconds_left) == pytest.approx((0.7, 50))
    late = read_progress(log, now=began + 900)
    assert late is not None
    assert late.fraction < 1
    assert late.seconds_left == pytest.approx(10)


@pytest.mark.parametrize(
    "text", ["", "Engine: x\n", "forward: 3 of unknown frames\n", "forward: 3 of 3 frames\n"]
)
def test_unknown_progress(tmp_path: Path, text: str) -> None:
    log = tmp_path / "log"
    assert read_progress(log, now=0) is None
    log.write_text(text)
    assert read_progress(log, now=0) is None


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a\nError: x is not a video: give one\n", "x is not a video: give one"),
        ("Error: out of memory (--memory)\n", "out of memory"),
        ("Error: out of memory (--memory, --max-scene)\n", "out of memory"),
        ("Error: Invalid value for '--start': 'x' is not valid.\n", "'x' is not valid."),
        ("no error\n", ""),
    ],
)
def test_the_error_names_no_option(tmp_path: Path, text: str, error: str) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    assert last_error(log) == error


def test_messages_are_short_and_safe(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 10**6 + b"\n\x1b[31m\xff end\n")
    text = read_messages(log)
    assert len(text) < 2**15 + 100
    assert text.endswith("\\x1b[31m\ufffd end\n")
    assert read_messages(tmp_path / "none") == ""
