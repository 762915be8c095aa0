"""Tests the program for the first hour on a GPU with parts that need none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.support.tensorrt_double import small_bundle

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def hour(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import first_hour

    return first_hour


def part(hour: ModuleType, name: str, code: str, **options: Any) -> Any:
    return hour.Part(
        name, f"Part {name}", (sys.executable, "-c", code, "{out}", "{json}"), **options
    )


COUNT = "import sys; open(sys.argv[1] + '/ran', 'a').write('{}')"


@pytest.mark.slow
def test_every_kind_of_outcome_is_on_the_page(hour: ModuleType, tmp_path: Path) -> None:
    """A part passes, fails, takes too long or is left out; the others run all the same."""
    parts = [
        part(hour, "good", """import sys; open(sys.argv[2], "w").write('{"ms": 2.5}')"""),
        part(hour, "bad", "raise SystemExit('it ```broke```')"),
        part(hour, "slow", "import time; print('begun', flush=True); time.sleep(60)"),
        part(hour, "absent", "", needs="no-such-program"),
        part(hour, "environment", "import os; print(os.environ['X'])", environment=(("X", "y"),)),
    ]
    outcomes = hour.run_parts(parts, tmp_path, limit=3.0)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "good": "passed",
        "bad": "failed",
        "slow": "too slow",
        "absent": "left out",
        "environment": "passed",
    }
    assert outcomes["good"].figures == {"ms": 2.5}
    assert outcomes["slow"].output == "begun\n"
    text = (tmp_path / "first_hour.md").read_text(encoding="utf-8")
    assert "| Part good | passed |" in text
    assert "| Part slow | too slow |" in text
    assert "it '''broke'''" in text
    assert "no-such-program is not installed" in text
    assert text.count("```") % 2 == 0
    assert hour.load(tmp_path) == outcomes


def test_an_interrupted_run_continues(
    hour: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished parts are not run again, whatever came of them, unless asked for."""
    parts = [part(hour, name, COUNT.format(name)) for name in "abc"]
    run_part = hour.run_part

    def interrupted(which: Any, out: Path, **options: Any) -> Any:
        if which.name == "b":
            raise KeyboardInterrupt
        return run_part(which, out, **options)

    monkeypatch.setattr(hour, "run_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hour.run_parts(parts, tmp_path)
    report = json.loads((tmp_path / "first_hour.json").read_text(encoding="utf-8"))
    assert list(report["parts"]) == ["a"]
    assert "| Part b | not run |" in (tmp_path / "first_hour.md").read_text(encoding="utf-8")
    monkeypatch.setattr(hour, "run_part", run_part)
    hour.run_parts(parts, tmp_path)
    assert (tmp_path / "ran").read_text() == "abc"
    hour.run_parts(parts, tmp_path, again=["b"])
    assert (tmp_path / "ran").read_text() == "abcb"


def test_the_parts_exist(hour: ModuleType) -> None:
    """Every part's program, check and command exists, and names are unique."""
    import gpu_checks

    names = [one.name for one in hour.PARTS]
    assert len(set(names)) == len(names)
    for one in hour.PARTS:
        programs = [word for word in one.command if word.endswith(".py")]
        assert all(Path(word).exists() for word in programs), one.name
        if programs and Path(programs[0]).name == "gpu_checks.py":
            check = gpu_checks.main.commands[one.command[one.command.index(programs[0]) + 1]]
            known = {name for option in check.params for name in option.opts}
            after = one.command[one.command.index(programs[0]) :]
            assert {word for word in after if word.startswith("--")} <= known, one.name


@pytest.mark.slow
def test_checks_find_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks run on any engine; here on ONNX Runtime, which gives equal bits."""
    bundle = small_bundle(tmp_path / "small.plan").path
    program = [sys.executable, str(BENCHMARKS / "gpu_checks.py")]
    for command in (
        ["batches", "--sizes", "24x16*3", "--device", "cpu"],
        ["repeat", "--size", "24x16", "--frames", "5", "--device", "cpu"],
        ["speed", "--size", "24x16", "--frames", "5", "--repeats", "1", "--device", "cpu"],
    ):
        result = tmp_path / "result.json"
        done = subprocess.run(
            [*program, command[0], str(bundle), *command[1:], "--json", str(result)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(result.read_text(encoding="utf-8"))["failures"] == []
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_checks

    want = np.linspace(0, 4, 100, dtype=np.float32)
    assert gpu_checks.compared(want, want)["psnr"] == 200
    assert gpu_checks.compared(want + 0.4, want)["psnr"] == 20
    assert gpu_checks.compared(want * np.nan, want)["psnr"] < 0
