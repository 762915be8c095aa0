"""Tests ``rbvsr-bench``: its files, its tables, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from rbvsr_deploy.bench import ceilings, timing
from rbvsr_deploy.bench.result import BenchResult
from rbvsr_deploy.bench.tables import COLUMNS, markdown_row
from rbvsr_deploy.commands.bench import bench
from tests.bench.conftest import BRIEF


def call(*arguments: object) -> Result:
    return CliRunner().invoke(bench, list(map(str, arguments)))


@pytest.mark.slow
def test_files_and_tables(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run writes JSON and a plot, prints a table that names every graph, and a row with as many
    cells as the table in the benchmarks' page has columns.
    """
    monkeypatch.setattr(timing, "QUICK", BRIEF)
    monkeypatch.setattr(ceilings, "_CPU_SIDE", 128)
    monkeypatch.setattr(ceilings, "_CPU_COPY", 2**20)
    output, plot = tmp_path / "result.json", tmp_path / "plot.svg"
    done = call(
        *("--engine", tiny_bundle, "--device", "cpu", "--quick", "--size", "32x24"),
        *("--frames", 3, "-o", output, "--plot", plot, "--submit"),
    )
    assert done.exit_code == 0, done.stderr
    result = msgspec.json.decode(output.read_bytes(), type=BenchResult)
    for name in (*result.graphs, "flow x2", "latency", "not comparable: a quick run"):
        assert name in done.stdout
    row = done.stdout.splitlines()[-1]
    assert row == markdown_row(result)
    assert row.count(" | ") == len(COLUMNS) - 1
    assert "quick, not comparable" in row
    assert plot.read_text(encoding="utf-8").startswith("<?xml")
    as_json = call(
        *("--engine", tiny_bundle, "--device", "cpu", "--quick", "--size", "32x24"),
        *("--frames", 2, "--json"),
    )
    assert json.loads(as_json.stdout)["protocol"]["scene_frames"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--size", "320"], 2, "'320' is not a size of up to 16384x16384; use for example 320x180"),
        (["--size", "0x4"], 2, "'0x4' is not a size"),
        (["--size", "16385x4"], 2, "'16385x4' is not a size"),
        (["--size", "4x" + "9" * 5000], 2, "is not a size"),
        (["--plot", "plot.jpg"], 2, "must end in .png or .svg"),
        (["--video", "missing.mp4"], 1, "missing.mp4"),
        (["--engine", "missing.plan"], 1, "missing.plan"),
        (["-o", "no/such/folder/result.json"], 1, "no/such/folder"),
        (["--frames", "1"], 2, "--frames"),
    ],
)
def test_wrong_input_is_one_sentence(arguments: list[str], code: int, message: str) -> None:
    done = call(*arguments)
    assert done.exit_code == code
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
