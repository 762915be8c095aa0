"""Tests that every failing call of the file system ends in one sentence with the path, and that the
same command then completes the same output.

``tests/support/faults.c`` is preloaded into a process that runs one small job in a child for every
call that the job makes below its folder, in Python and in libraries; each time, another one fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAULTS = ("EIO", "ESTALE", "ENOSPC", "EMFILE", "EDQUOT", "EROFS")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or shutil.which("cc") is None,
        reason="needs a C compiler on Linux",
    ),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "faults.so"
    source = ROOT / "tests" / "support" / "faults.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", path, source, "-ldl"], check=True)
    return path


@pytest.mark.parametrize("output", ["out.mp4", "frames"])
def test_every_call_fails_once(library: Path, output: str, tmp_path: Path) -> None:
    """The n-th call fails with another error each time; ``python -m tests.support.faults`` tries
    all of them.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.faults", output, ",".join(FAULTS), "--every", "7"],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(library), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    assert result["defects"] == []
    assert result["refused"] > 10
    assert result["completed"] > 0
