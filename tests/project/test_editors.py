"""Tests that editors find the packages that are folders beside ``rbvsr_deploy`` in the checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

import jedi
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("code", "place"),
    [
        ("from rbvsr_deploy.engines.base import Engine", "engines/base.py"),
        ("from rbvsr_deploy.export.verify import verify_graphs", "export/verify.py"),
        ("from rbvsr_deploy.training.run import train", "training/run.py"),
    ],
)
def test_go_to_definition(code: str, place: str) -> None:
    """An editor opened on the checkout, after ``make``, finds a name's definition."""
    subprocess.run(["make", "--silent", "links"], cwd=ROOT, check=True)
    # An editor knows the folder it has open, not the finder of an editable install.
    project = jedi.Project(ROOT, sys_path=[str(ROOT)])
    (found,) = jedi.Script(code, path=ROOT / "x.py", project=project).goto(1, len(code) - 1)
    assert found.module_path is not None
    assert found.module_path.resolve() == (ROOT / place).resolve()
    assert found.line > 1
