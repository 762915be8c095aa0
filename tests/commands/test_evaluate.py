"""Tests how ``rbvsr-eval`` shows its scores."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from rbvsr_deploy.commands.evaluate import evaluate
from rbvsr_deploy.video.images import write_image
from tests.conftest import moving_clip


def test_names_are_shown_unchanged(tmp_path: Path) -> None:
    """Brackets in the name of a sequence are not markup."""
    for name in ("[red]a", "b"):
        (tmp_path / name).mkdir()
        for number, image in enumerate(moving_clip(2, 48, 64)):
            write_image(tmp_path / name / f"{number}.png", image=image)
    result = CliRunner().invoke(evaluate, [str(tmp_path), "--metrics", "warping_error"])
    assert result.exit_code == 0, result.output
    assert "2 sequences, 4 frames" in result.stdout
    assert " [red]a " in result.stdout
    assert "[red]a (1 of 2)" in result.stderr


@pytest.mark.parametrize("numbers", ["1-3", "-1", "", "9" * 30, "a", "1,,2"])
def test_wrong_frame_numbers(numbers: str) -> None:
    """A usage error that says what is allowed."""
    result = CliRunner().invoke(evaluate, ["a.mp4", "--only-frames", numbers])
    assert result.exit_code == 2
    assert "use frame numbers from 0 on" in " ".join(result.stderr.split())
