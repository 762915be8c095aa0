"""Tests that the contact sheet shows every step of a degradation and can be saved and replayed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from rbvsr_deploy.commands.degradations import degradations
from rbvsr_deploy.training.degradations.clip_degradation import Degradation

SAMPLE = Path(__file__).parents[2] / "data" / "sample.mp4"


def show(*arguments: str | Path) -> str:
    options = ["--length", "8", "--crop", "32", *map(str, arguments)]
    result = CliRunner().invoke(degradations, [str(SAMPLE), *options])
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result.output


@pytest.mark.slow
def test_the_sheet_has_a_row_per_step_and_can_be_replayed(tmp_path: Path) -> None:
    """The sheet shows the ground truth, the sharpened one and a row per step. Replaying the JSON
    gives the same sheet; another seed gives a different one.
    """
    sheet, text = tmp_path / "sheet.png", tmp_path / "sheet.json"
    assert "steps, frames from" in show("--output", sheet, "--record", text, "--seed", "5")
    degradation = msgspec.json.decode(text.read_bytes(), type=Degradation)
    image = cv2.imread(str(sheet))
    assert image is not None
    rows = image.reshape(len(degradation.steps) + 2, -1, *image.shape[1:])
    assert all(row.std() > 5 for row in rows)
    assert all(not np.array_equal(a, b) for a, b in pairwise(rows))
    again, other = tmp_path / "again.png", tmp_path / "other.png"
    show("--output", again, "--replay", text, "--seed", "5")
    assert again.read_bytes() == sheet.read_bytes()
    show("--output", other, "--seed", "6")
    assert other.read_bytes() != sheet.read_bytes()


def test_the_json_reads_like_the_table(tmp_path: Path) -> None:
    """Names of steps in plain words, one value per frame."""
    show("--output", tmp_path / "sheet.png", "--record", tmp_path / "sheet.json")
    steps = json.loads((tmp_path / "sheet.json").read_text())["steps"]
    names = [step["step"] for step in steps]
    assert {"resize", "jpeg", "video compression", "reduction"} <= set(names)
    assert all(len(step["quality"]) == 8 for step in steps if step["step"] == "jpeg")


def test_wrong_parameters_are_reported_in_one_sentence(tmp_path: Path) -> None:
    text = tmp_path / "bad.json"
    text.write_text('{"length": 8, "steps": [{"step": "magic"}]}')
    assert "magic" in show("--output", tmp_path / "s.png", "--replay", text)
    text.write_text('{"length": 3, "steps": []}')
    output = show("--output", tmp_path / "s.png", "--replay", text)
    assert "8 frames, but parameters for 3" in output
    assert "54 frames" not in show("--output", tmp_path / "t.png")
    arguments = [str(SAMPLE), "--length", "60", "--fixed", "--output", str(tmp_path / "u.png")]
    result = CliRunner().invoke(degradations, arguments)
    assert "has 54 frames, but 60 are needed" in result.output
    assert not (tmp_path / "s.png").exists()
    assert not (tmp_path / "u.png").exists()
