"""Benchmarks run and write what they say; how fast a machine is, no test asks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rbvsr_deploy.graphs import GRAPHS

ROOT = Path(__file__).parent.parent


def test_graphs_benchmark(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A bundle and a checkpoint side by side: every graph of both, a sum, and the ratio."""
    program = ROOT / "benchmarks" / "graphs.py"
    options = ["--size", "32x24", "--repeats", "1", "--device", "cpu"]
    options += ["--json", str(tmp_path / "graphs.json")]
    done = subprocess.run(
        [sys.executable, program, tiny_bundle, tiny_checkpoint, *options],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "ratio" in done.stdout
    result = json.loads((tmp_path / "graphs.json").read_text(encoding="utf-8"))
    assert [set(model["milliseconds"]) for model in result["models"]] == [set(GRAPHS)] * 2
    for model in result["models"]:
        took = model["milliseconds"]
        assert model["per_frame"] >= took["flow"] + sum(took.values()) - 0.1 > 0
