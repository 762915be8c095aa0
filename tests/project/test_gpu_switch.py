"""Tests that GPU tests are skipped without a GPU, and fail if one is required."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rbvsr_deploy.engines.cuda.open import open_driver
from rbvsr_deploy.errors import EngineError

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("required", [False, True])
def test_a_skip_becomes_a_failure(tmp_path: Path, required: bool) -> None:
    """``RBVSR_REQUIRE_GPU=1``, as set by ``make test-gpu``, makes the difference."""
    try:
        open_driver()
    except EngineError:
        pass
    else:
        pytest.skip("this machine has a GPU")
    environment = {**os.environ, "RBVSR_REQUIRE_GPU": "1" if required else ""}
    # In a folder of its own: pytest would delete those of previous runs, which takes long.
    options = ["-q", "-rs", "-m", "gpu", "-k", "float32", f"--basetemp={tmp_path / 'inner'}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests/gpu"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if required:
        assert done.returncode == 1
        assert "RBVSR_REQUIRE_GPU is set, but there is no NVIDIA driver" in done.stdout
    else:
        assert done.returncode == 0, done.stdout
        assert "1 skipped" in done.stdout
