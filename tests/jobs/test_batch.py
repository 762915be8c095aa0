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
from rbvsr_deploy.jobs.batch import output_for, outputs_for, upscale_each, was_finished
from rbvsr_deploy.video import ReadOptions, open_source
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    """Two short clips of different names."""
    return [media.make_video(tmp_path / f"{n}.mp4", size=(16, 16), stamps=[0, 1001]) for n in "ab"]


@pytest.mark.slow
def test_a_batch_is_continued(go: Run, clips: list[Path]) -> None:
    """Finished inputs are skipped, and only the others are upscaled; exit code 0."""
    assert go(clips[0]).exit_code == 0
    made = clips[0].with_name("a_x4.mp4")
    before = made.stat()
    result = go(*clips, "--json")
    assert result.exit_code == 0, result.output
    skipped, summary = json.loads(result.stdout)
    assert skipped["skipped"] == f"{made} is finished already"
    assert summary["output"] == str(clips[1].with_name("b_x4.mp4"))
    assert (made.stat().st_ino, made.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    again = go(*clips)
    assert again.exit_code == 0
    assert again.stdout.count("is finished already") == 2
    assert go(*clips, "--overwrite").exit_code == 0
    assert made.stat().st_mtime_ns != before.st_mtime_ns


@pytest.mark.slow
@pytest.mark.parametrize("content", ["text", "another size"])
def test_another_file_in_the_place_of_an_output(go: Run, clips: list[Path], content: str) -> None:
    """It does not count as finished, and is not replaced."""
    taken = clips[0].with_name("a_x4.mp4")
    if content == "text":
        taken.write_text("mine")
    else:
        media.make_video(taken, size=(16, 16), stamps=[0, 1001])
    before = taken.read_bytes()
    result = go(*clips)
    assert result.exit_code == 1
    assert "exists: choose another output" in result.stderr
    assert taken.read_bytes() == before
    assert clips[1].with_name("b_x4.mp4").exists()


def test_finished_image_folders(tmp_path: Path) -> None:
    """A folder is finished if it has as many images, of the right size."""
    folder, output = tmp_path / "in", tmp_path / "out"
    for place, side in ((folder, 2), (output, 8)):
        place.mkdir()
        for number in range(3):
            image = media.gradient(number, width=side, height=side)
            write_image(place / f"{number}.png", image=image)
    assert was_finished(folder, output, ReadOptions())
    (output / "2.png").unlink()
    assert not was_finished(folder, output, ReadOptions())
    assert was_finished(folder, output, ReadOptions(frames=2))
    (tmp_path / "empty").mkdir()
    assert not was_finished(folder, tmp_path / "empty", ReadOptions())


@pytest.mark.slow
def test_own_outputs_are_left_out(go: Run, clips: list[Path], tmp_path: Path) -> None:
    """A second run on all files of a folder upscales no output again, and says so."""
    assert go(*clips).exit_code == 0
    everything = sorted(tmp_path.glob("*.mp4"))
    assert len(everything) == 4
    result = go(*everything, "--json")
    assert result.exit_code == 0, result.output
    skipped = {entry["input"]: entry["skipped"] for entry in json.loads(result.stdout)}
    assert f"it is the output of {clips[0]}" in skipped[str(tmp_path / "a_x4.mp4")]
    assert f"Left out: {tmp_path / 'b_x4.mp4'}" in result.stderr
    assert not list(tmp_path.glob("*_x4_x4*"))
    assert go(tmp_path / "a_x4.mp4").exit_code == 0  # alone
    assert (tmp_path / "a_x4_x4.mp4").exists()
    after = go(*sorted(tmp_path.glob("*.mp4")))
    assert after.exit_code == 0
    assert not list(tmp_path.glob("*_x4_x4_x4*"))


@pytest.mark.slow
def test_a_folder_has_one_meaning(go: Run, clips: list[Path], tmp_path: Path) -> None:
    """A path that ends in a separator, or an existing folder, is where outputs go, whether there
    is one input or several; missing parents are created.
    """
    (tmp_path / "there").mkdir()
    image = tmp_path / "one.png"
    write_image(image, image=media.gradient(0, width=8, height=8))
    for arguments, output, made in (
        ([clips[0]], f"{tmp_path}/new/", ["a_x4.mp4"]),
        (clips, f"{tmp_path}/both/", ["a_x4.mp4", "b_x4.mp4"]),
        ([clips[0]], f"{tmp_path}/there", ["a_x4.mp4"]),
        ([image], f"{tmp_path}/p/q/", ["one_x4.png"]),
        (clips, f"{tmp_path}/r/s", ["a_x4.mp4", "b_x4.mp4"]),
        ([clips[0]], f"{tmp_path}/frames", ["00000000.png", "00000001.png"]),
    ):
        result = go(*arguments, "-o", output)
        assert result.exit_code == 0, result.output
        assert sorted(path.name for path in Path(output).iterdir()) == made


def test_images_go_into_a_new_folder_directly(go: Run, inputs: list[Path], tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two/three/")):
        result = go(inputs[2], "-o", f"{tmp_path}/{name}")
        assert result.exit_code == 0, result.output
        made = sorted(path.name for path in (tmp_path / name).iterdir())
        assert made == ["0.png", "1.png"], number


def test_created_folders_do_not_stay_empty(go: Run, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    assert go(tmp_path / "text.mp4", "-o", f"{tmp_path}/a/b/").exit_code == 1
    assert not (tmp_path / "a").exists()


def test_standard_input_has_no_name(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no name can be derived from standard input"):
        output_for(Path("-"), f"{tmp_path}/")


def test_a_folder_is_overwritten_as_a_whole(
    go: Run, inputs: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Frames of a longer earlier output are removed; other files of the user are not."""
    output = tmp_path / "out"
    assert go(inputs[2], "-o", output).exit_code == 0
    older = output / "7.png"
    older.write_bytes((output / "1.png").read_bytes())
    (output / "notes.txt").write_text("mine")
    write_image(output / "logo.png", image=media.gradient(0, width=5, height=5))
    result = go(inputs[2], "-o", output, "--overwrite")
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in output.iterdir())
    assert names == ["0.png", "1.png", "logo.png", "notes.txt"]
    assert "also holds 1 image of other sizes, which is left there" in caplog.text
