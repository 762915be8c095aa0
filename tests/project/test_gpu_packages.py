"""Tests the choice of packages for GPU tests, and what ``make test-gpu`` runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import packages

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("major", "built_for"), [(12, "cu12"), (13, "cu13"), (14, "cu13")])
def test_packages_suit_the_driver(major: int, built_for: str) -> None:
    """A driver of CUDA 12 (R535) gets packages of CUDA 12, a newer one the newest."""
    found = packages.packages(major)
    assert [name for name in found if name.startswith("tensorrt")] == [f"tensorrt-{built_for}"]
    assert ("torch>=2.9,<2.11" in found) == (major == 12)


def test_old_and_missing_drivers_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence says why; the machine's own TensorRT is not installed a second time."""
    monkeypatch.setattr(packages, "cuda_major", lambda: 11)
    with pytest.raises(SystemExit, match="the NVIDIA driver supports CUDA 11, and 12 is needed"):
        packages.main()
    monkeypatch.setattr(packages, "cuda_major", lambda: 12)
    monkeypatch.setattr(sys, "argv", ["packages.py", "--without-tensorrt"])
    packages.main()
    assert "tensorrt" not in capsys.readouterr().out


def test_make_collects_the_gpu_tests_alone() -> None:
    """Other folders need extras that its environment lacks."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "test-gpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "RBVSR_REQUIRE_GPU=1 .venv-gpu/bin/python -m pytest -m gpu -W default tests/gpu" in (
        done.stdout
    )
    assert "tests/gpu/packages.py" in done.stdout
