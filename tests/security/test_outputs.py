"""Tests output paths that are taken: the user's files are never replaced without consent."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rbvsr_deploy.commands.compare import compare
from rbvsr_deploy.commands.run import run
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.video import Job, open_source
from rbvsr_deploy.video.images import write_image
from tests.security.test_job_folder import snapshot
from tests.support import media
from tests.support.engine_doubles import BicubicEngine
from tests.support.sinks import job_sink, write_segments

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs need a POSIX system")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return media.make_video(tmp_path / "clip.mp4", size=(16, 16))


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """An image folder with two images."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(2):
        write_image(folder / f"{number}.png", image=media.gradient(number, width=16, height=16))
    return folder


def upscaled(path: Path, output: Path, **options: Any) -> None:
    upscale_file(path, output, engine=BicubicEngine(), overwrite=True, **options)


def refused(path: Path, output: Path, *, match: str, **options: Any) -> None:
    """Check that an output is refused in one sentence and nothing changes, despite overwriting."""
    places = {path.parent, output.parent}
    before = {place: snapshot(place) for place in places}
    with pytest.raises(MediaError, match=match) as caught:
        upscaled(path, output, **options)
    assert "\n" not in str(caught.value)
    assert {place: snapshot(place) for place in places} == before


class TestSpecialFiles:
    @pytest.mark.parametrize("name", ["out.mp4", "out.png", "out"])
    @pytest.mark.parametrize("kind", ["fifo", "socket", "device", "dangling link", "circular link"])
    def test_is_not_replaced(self, clip: Path, tmp_path: Path, name: str, kind: str) -> None:
        path = clip
        if name == "out.png":
            path = tmp_path / "in.png"
            write_image(path, image=media.gradient(0, width=16, height=16))
        output = tmp_path / name
        if kind == "fifo":
            os.mkfifo(output)
        elif kind == "socket":
            os.mknod(output, stat.S_IFSOCK | 0o600)
        elif kind == "device":
            try:
                os.mknod(output, stat.S_IFCHR | 0o600, os.makedev(1, 3))
            except PermissionError:
                pytest.skip("this user cannot create devices")
        else:
            output.symlink_to(tmp_path / "nowhere" if kind == "dangling link" else output)
        refused(path, output, match="is a device, a pipe or a broken link: give")
        assert not (tmp_path / "nowhere").exists()

    def test_null_device(self, clip: Path) -> None:
        """No job folder is created next to it, not even temporarily."""
        before = os.stat("/dev").st_mtime_ns
        with pytest.raises(MediaError, match="is a device"):
            Job(Path("/dev/null"), identity={}, overwrite=True)
        assert os.stat("/dev").st_mtime_ns == before

    def test_special_file_that_appears_during_the_run(self, clip: Path, tmp_path: Path) -> None:
        """The work is kept: after the special file is removed, the output is completed."""
        out = tmp_path / "out.mp4"
        with (
            open_source(clip) as source,
            job_sink(out, source=source, width=16, height=16, overwrite=True) as sink,
        ):
            for frame in source:
                sink.write(frame)
            os.mkfifo(out)
            with pytest.raises(MediaError, match="is a device, a pipe"):
                sink.finish()
        assert stat.S_ISFIFO(out.stat().st_mode)
        out.unlink()
        assert write_segments(clip, out, lengths=[12]).resumed_segments == 1
        assert media.stamps_of(out) == media.stamps_of(clip)

    @pytest.mark.parametrize("output", ["/", "//"])
    def test_root(self, clip: Path, output: str) -> None:
        with pytest.raises(MediaError, match="has no name: give"):
            upscaled(clip, Path(output))

    def test_parent_that_cannot_be_examined(self, clip: Path, tmp_path: Path) -> None:
        with pytest.raises(MediaError, match="cannot be examined"):
            upscaled(clip, tmp_path / ("x" * 5000) / "out.mp4")

    @pytest.mark.parametrize(
        ("option", "name"), [("before_after", "both.png"), ("page", "page.html")]
    )
    @pytest.mark.parametrize("kind", ["fifo", "link"])
    def test_extra_output(
        self, clip: Path, tmp_path: Path, option: str, name: str, kind: str
    ) -> None:
        extra = tmp_path / name
        os.mkfifo(extra) if kind == "fifo" else extra.symlink_to(tmp_path / "nowhere")
        refused(clip, tmp_path / "out.mp4", match="is a device, a pipe", **{option: extra})


class TestLinks:
    """A link's target is never replaced; the link itself may be, if overwriting is allowed."""

    def test_to_a_file(self, clip: Path, tmp_path: Path) -> None:
        other, out = tmp_path / "other.mp4", tmp_path / "out.mp4"
        other.write_text("mine")
        out.symlink_to(other)
        with pytest.raises(MediaError, match="exists"):
            write_segments(clip, out, lengths=[12])
        upscaled(clip, out)
        assert other.read_text() == "mine"
        assert not out.is_symlink()

    @pytest.mark.parametrize("empty", [True, False])
    def test_to_a_folder(self, frames: Path, tmp_path: Path, empty: bool) -> None:
        other, out = tmp_path / "other", tmp_path / "out"
        other.mkdir()
        if not empty:
            (other / "mine.txt").write_text("mine")
        out.symlink_to(other)
        upscaled(frames, out)
        assert out.is_symlink()
        names = {path.name for path in other.iterdir()}
        assert names == {"0.png", "1.png"} | (set() if empty else {"mine.txt"})


class TestConflictingPaths:
    @pytest.mark.parametrize("way", ["same", "dots", "link", "other name"])
    def test_before_after_is_the_input(self, tmp_path: Path, way: str) -> None:
        path = tmp_path / "in.png"
        write_image(path, image=media.gradient(0, width=16, height=16))
        extra = tmp_path / "both.png"
        if way == "same":
            extra = path
        elif way == "dots":
            extra = tmp_path / "x" / ".." / "in.png"
        elif way == "link":
            extra.symlink_to(path)
        else:
            os.link(path, extra)
        refused(path, tmp_path / "out.png", match="is the input itself", before_after=extra)

    @pytest.mark.parametrize("exists", [False, True])
    def test_before_after_is_the_output(self, tmp_path: Path, exists: bool) -> None:
        path, output = tmp_path / "in.png", tmp_path / "out.png"
        write_image(path, image=media.gradient(0, width=16, height=16))
        if exists:
            output.write_text("old")
        extra = tmp_path / "." / "out.png"
        refused(path, output, match="is the output itself", before_after=extra)

    @pytest.mark.parametrize("name", ["0.png", "new.png"])
    @pytest.mark.parametrize("where", ["input", "output"])
    def test_before_after_in_an_image_folder(
        self, frames: Path, tmp_path: Path, where: str, name: str
    ) -> None:
        output = tmp_path / "out"
        output.mkdir()
        (output / "0.png").write_text("old")
        extra = (frames if where == "input" else output) / name
        refused(frames, output, match=f"would be inside the {where}: choose", before_after=extra)

    @pytest.mark.parametrize("which", ["input", "output"])
    def test_scene_list(self, clip: Path, tmp_path: Path, which: str) -> None:
        """The scene list is written after the output."""
        output = tmp_path / "out.mp4"
        scene_list = clip if which == "input" else output
        refused(clip, output, match=f"is the {which} itself", scene_list=scene_list)

    @pytest.mark.parametrize(("option", "name"), [("before_after", "a.png"), ("page", "a.html")])
    def test_scene_list_and_extra_output(
        self, clip: Path, tmp_path: Path, option: str, name: str
    ) -> None:
        options = {"scene_list": tmp_path / name, option: tmp_path / name}
        refused(clip, tmp_path / "out.mp4", match="is the scene list itself", **options)

    def test_image_in_the_output_folder(self, tmp_path: Path) -> None:
        """The output image would have the name of the input."""
        folder = tmp_path / "images"
        folder.mkdir()
        write_image(folder / "in.png", image=media.gradient(0, width=16, height=16))
        before = snapshot(tmp_path)
        refused(folder / "in.png", folder, match="in the output folder")
        assert snapshot(tmp_path) == before


class TestCommands:
    """The commands exit with code 1 and a one-line error."""

    def assert_refused(self, result: Result, words: str) -> None:
        assert result.exit_code == 1, result.output
        assert "Traceback" not in result.output
        (error,) = (line for line in result.stderr.splitlines() if line.startswith("Error: "))
        assert words in error

    def test_run(self, frames: Path, tmp_path: Path) -> None:
        path = frames / "0.png"
        before = snapshot(tmp_path)
        for arguments, words in (
            (("-o", "/dev/null"), "is a device"),
            (("--before-after", path), "is the input itself"),
            (("--before-after", frames / "0_x4.png"), "is the output itself"),
        ):
            command = [path, *arguments, "--overwrite", "--device", "cpu"]
            self.assert_refused(CliRunner().invoke(run, [str(word) for word in command]), words)
        assert snapshot(tmp_path) == before

    def test_compare(self, frames: Path, tiny_checkpoint: Path) -> None:
        """The image of the worst frame replaces existing files, so it may not be the input."""
        before = snapshot(frames)
        model, clip = str(tiny_checkpoint), str(frames / "0.png")
        result = CliRunner().invoke(compare, [model, model, "--clip", clip, "--worst", clip])
        self.assert_refused(result, "is the input itself")
        assert snapshot(frames) == before
