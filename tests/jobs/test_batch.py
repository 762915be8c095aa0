"""Tests several inputs in one command: separate jobs, one engine, one report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner, Result

from rbvsr_deploy import engines
from rbvsr_deploy.commands.run import run
from rbvsr_deploy.engines import Engine
from rbvsr_deploy.errors import EngineError, MediaError
from rbvsr_deploy.jobs.batch import outputs_for, upscale_each
from rbvsr_deploy.video import open_source
from rbvsr_deploy.video.images import write_image
from tests.conftest import short_clip
from tests.support import media

Run = Callable[..., Result]


@pytest.fixture
def inputs(sample: Path, tmp_path: Path) -> list[Path]:
    """Return a video, a text file with a video's extension, and an image folder."""
    clip = short_clip(sample, tmp_path / "clip.mp4", frames=3)
    (tmp_path / "text.mp4").write_text("this is not a video\n" * 100)
    (tmp_path / "frames").mkdir()
    for number in range(2):
        write_image(tmp_path / "frames" / f"{number}.png", image=media.gradient(number))
    return [clip, tmp_path / "text.mp4", tmp_path / "frames"]


@pytest.fixture
def go(tiny_bundle: Path) -> Run:
    def go(*arguments: object) -> Result:
        options = ("--engine", tiny_bundle, "--device", "cpu")
        return CliRunner().invoke(run, [str(a) for a in (*arguments, *options)])

    return go


def test_one_that_fails_does_not_stop_the_others(
    go: Run, inputs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first and the last are upscaled, next to their inputs; the report names the failed one
    and the reason; one engine is opened; the command fails.
    """
    opened = []
    real = engines.open_engine

    def open_engine(*arguments: Any, **options: Any) -> Engine:
        opened.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(engines, "open_engine", open_engine)
    result = go(*inputs)
    assert result.exit_code == 1
    assert len(opened) == 1
    folder = inputs[0].parent
    with open_source(folder / "clip_x4.mp4") as output:
        assert len(list(output)) == 3
    names = sorted(path.name for path in (folder / "frames_x4").iterdir())
    assert names == ["0.png", "1.png"]
    first, second, third, last = result.stdout.splitlines()
    assert first.startswith(f"{folder / 'clip_x4.mp4'}: 3 frames")
    assert second.startswith(f"{inputs[1]}: failed: {inputs[1]} is")
    assert third.startswith(f"{folder / 'frames_x4'}: 2 frames")
    assert last == "1 of 3 inputs failed"
    assert "Traceback" not in result.output
    assert not list(folder.glob(".*"))


def test_all_into_one_new_folder_as_json(go: Run, inputs: list[Path], tmp_path: Path) -> None:
    """-o creates the folder; --json prints a list with a summary or an error for every input."""
    out = tmp_path / "out"
    result = go(*inputs, "-o", out, "--json")
    assert result.exit_code == 1
    clip, text, frames = json.loads(result.stdout)
    assert (clip["frames"], frames["frames"]) == (3, 2)
    assert set(text) == {"input", "output", "error"}
    assert text["input"] == str(inputs[1])
    assert sorted(path.name for path in out.iterdir()) == ["clip_x4.mp4", "frames_x4"]
    clean = go(inputs[0], inputs[2], "-o", out, "--overwrite", "--json")
    assert clean.exit_code == 0, clean.output
    assert len(json.loads(clean.stdout)) == 2


def test_nothing_is_left_if_all_fail(go: Run, inputs: list[Path], tmp_path: Path) -> None:
    """The folder created for the outputs is removed again."""
    result = go(inputs[1], tmp_path / "missing.mp4", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "2 of 2 inputs failed"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--scene-list", "--before-after"])
def test_options_about_one_input(go: Run, inputs: list[Path], tmp_path: Path, option: str) -> None:
    """They are refused before any work, in a sentence that names them."""
    result = go(*inputs, option, tmp_path / "a.png")
    assert result.exit_code == 2
    assert f"{option} needs a single input, got 3" in result.stderr
    assert not (tmp_path / "clip_x4.mp4").exists()


def test_an_output_that_is_not_a_folder(go: Run, inputs: list[Path], tmp_path: Path) -> None:
    """Several inputs cannot be written to a file, existing or new."""
    (tmp_path / "file").write_text("mine")
    for name in ("file", "out.mp4"):
        result = go(*inputs, "-o", tmp_path / name)
        assert result.exit_code == 1
        assert "several inputs need a folder as output" in result.stderr
    assert not (tmp_path / "out.mp4").exists()
    assert go(*inputs, "-o", tmp_path / "nowhere" / "out").exit_code == 1


def test_two_results_of_one_name(tmp_path: Path) -> None:
    """They are refused before the second replaces the first, even if only the suffixes differ."""
    a, b = tmp_path / "a" / "clip.gif", tmp_path / "b" / "clip.wmv"
    assert outputs_for([a, b], None) == [a.with_name("clip_x4.mkv"), b.with_name("clip_x4.mkv")]
    for inputs, folder in (([a, b], tmp_path), ([a, a], None)):
        with pytest.raises(MediaError, match="would both be written as"):
            outputs_for(inputs, folder)


def test_ctrl_c_stops_all(tmp_path: Path) -> None:
    """Errors of one input are kept for the report; an interruption is not."""
    seen = []

    def upscale(path: Path, output: Path) -> NoReturn:
        seen.append(path.name)
        raise KeyboardInterrupt if path.name == "b" else EngineError("two\n lines")

    paths = [tmp_path / name for name in "abc"]
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        upscale_each(paths, paths, upscale=upscale, report=lines.append)
    assert seen == ["a", "b"]
    assert "Failed: two lines" in lines
