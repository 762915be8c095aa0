"""Tests inputs that change: between an interrupted run and the next one, and during a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rbvsr_deploy.errors import EngineError, MediaError, RbvsrError
from rbvsr_deploy.jobs.summary import Summary
from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.video import open_source
from rbvsr_deploy.video.images import write_image
from tests.support import media
from tests.support.engine_doubles import ArithmeticEngine, BicubicEngine

FRAMES, SCENES = 190, (60, 120)


def pixel(path: Path, level: int) -> None:
    write_image(path, image=np.full((1, 1, 3), level, np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of one-pixel images in three scenes, next to a list of them."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(FRAMES):
        pixel(folder / f"{i:03}.png", 7 * i * i % 97)
    (tmp_path / "cuts.txt").write_text("\n".join(map(str, SCENES)))
    return folder


class Stops(ArithmeticEngine):
    """Fails after a number of forward steps."""

    def __init__(self, after: int | None = None) -> None:
        super().__init__()
        self.after = after

    def run(self, graph: str, **arguments: Any) -> tuple[Any, ...]:
        if graph == "forward" and self.items["forward"] == self.after:
            raise EngineError("the device was lost")
        return super().run(graph, **arguments)


def run(folder: Path, output: Path, engine: ArithmeticEngine, **options: Any) -> Summary:
    cuts = folder.with_name("cuts.txt")
    return upscale_file(folder, output, engine=engine, scene_list=cuts, **options)


def levels(output: Path) -> list[int]:
    with open_source(output) as source:
        return [int(frame.image[0, 0, 0]) for frame in source]


def resumed(folder: Path, change: Callable[[Path], object], *, output: str = "out") -> int:
    """Change the folder after two of its scenes are done; return how many frames are resumed.

    The result is that of a fresh run.
    """
    place = folder / output if "." in output else folder.with_name(output)
    with pytest.raises(EngineError):
        run(folder, place, Stops(after=150))
    change(folder)
    summary = run(folder, place, Stops())
    fresh = folder.with_name("fresh")
    run(folder, fresh, Stops())
    if "." not in output:
        assert levels(place) == levels(fresh)
    return summary.resumed_frames


def _touch(folder: Path) -> None:
    for file in folder.iterdir():
        os.utime(file, (1, 1))


CHANGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "nothing": (lambda folder: None, 120),
    "a file of the desktop": (lambda folder: (folder / ".DS_Store").touch(), 120),
    "a text file": (lambda folder: (folder / "notes.txt").write_text("x"), 120),
    "new times": (lambda folder: _touch(folder), 120),
    "an image of the third scene": (lambda folder: pixel(folder / "150.png", 1), 120),
    "an image of the second scene": (lambda folder: pixel(folder / "100.png", 1), 60),
    "the first image of the second scene": (lambda folder: pixel(folder / "060.png", 1), 0),
    "an image of the first scene": (lambda folder: pixel(folder / "007.png", 1), 0),
    "a removed image": (lambda folder: (folder / "100.png").unlink(), 60),
    "another name": (lambda folder: (folder / "100.png").rename(folder / "100a.png"), 60),
    "more images": (lambda folder: pixel(folder / "500.png", 1), 120),
    "an image in between": (lambda folder: pixel(folder / "100a.png", 1), 60),
}


@pytest.mark.slow
@pytest.mark.parametrize(("change", "frames"), CHANGES.values(), ids=CHANGES)
def test_segments_before_the_first_changed_image_are_kept(
    folder: Path, change: Callable[[Path], object], frames: int
) -> None:
    """The network looks ahead to the end of a scene and at the frame that ends it, so a segment
    depends on these, too.
    """
    assert resumed(folder, change) == frames


@pytest.mark.slow
def test_the_last_segment_depends_on_the_end(folder: Path) -> None:
    """If all frames are done, an appended image continues the last scene."""
    output = folder.with_name("out")
    run(folder, output, Stops(), keep_job=True)
    shutil.rmtree(output)
    assert run(folder, output, Stops(), keep_job=True).resumed_frames == FRAMES
    shutil.rmtree(output)
    pixel(folder / "500.png", 1)
    assert run(folder, output, Stops()).resumed_frames == 120


@pytest.mark.slow
def test_output_within_the_input(folder: Path) -> None:
    """The job folder and the output do not count as changes of the input."""
    assert resumed(folder, lambda folder: None, output="out.mkv") == 120


def test_a_moved_folder_of_the_same_name(folder: Path, tmp_path: Path) -> None:
    """Images are recognised by name and content, not by path."""
    with pytest.raises(EngineError):
        run(folder, tmp_path / "out", Stops(after=150))
    (tmp_path / "other").mkdir()
    shutil.copytree(folder, tmp_path / "other" / "in")
    shutil.copy(tmp_path / "cuts.txt", tmp_path / "other")
    again = run(tmp_path / "other" / "in", tmp_path / "out", Stops())
    assert again.resumed_frames == 120


def test_a_damaged_image_is_repaired(folder: Path) -> None:
    """The run that finds it keeps what is before it, and the next run continues there."""
    good = (folder / "150.png").read_bytes()
    (folder / "150.png").write_bytes(good[:45])
    with pytest.raises(MediaError, match=r"150\.png"):
        run(folder, folder.with_name("out"), Stops())
    (folder / "150.png").write_bytes(good)
    assert run(folder, folder.with_name("out"), Stops()).resumed_frames == 120


# ------------------------------------------------------------------------------- during a run


class Acts(BicubicEngine):
    """Calls a function before the first forward step, when the whole input is read."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self._act: Callable[[], object] | None = act

    def run(self, graph: str, **arguments: Any) -> tuple[Any, ...]:
        if graph == "forward" and self._act is not None:
            self._act()
            self._act = None
        return super().run(graph, **arguments)


def _replaced(path: Path, other: Path) -> None:
    shutil.copy(other, path.with_name("incoming"))
    path.with_name("incoming").rename(path)


def _patched(path: Path) -> None:
    """Change one byte in place, and restore the time of the last change."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(status.st_size // 2)
        byte = file.read(1)
        file.seek(status.st_size // 2)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


DURING: dict[str, Callable[[Path, Path], object]] = {
    "replaced": _replaced,
    "overwritten": lambda path, other: shutil.copyfile(other, path),
    "patched": lambda path, other: _patched(path),
    "removed": lambda path, other: path.unlink(),
    "appended to": lambda path, other: path.write_bytes(path.read_bytes() + b"more"),
}


@pytest.mark.parametrize("change", DURING.values(), ids=DURING)
@pytest.mark.parametrize("kind", ["video", "images"])
def test_change_during_a_run(
    tmp_path: Path, kind: str, change: Callable[[Path, Path], object]
) -> None:
    """Nothing is published: its frames would be of one file, and the rest of another."""
    source = media.make_video(tmp_path / "clip.mp4", size=(16, 16), audio="aac")
    other = media.make_video(tmp_path / "other.mp4", size=(16, 16), stamps=[0, 1001])
    victim, output = source, tmp_path / "out.mp4"
    if kind == "images":
        source = tmp_path / "in"
        source.mkdir()
        for number in range(3):
            image = media.gradient(number, width=16, height=16)
            write_image(source / f"{number}.png", image=image)
        victim, other = source / "1.png", source / "2.png"
    engine = Acts(lambda: change(victim, other))
    with pytest.raises(RbvsrError, match=victim.name) as caught:
        upscale_file(source, output, engine=engine)
    assert "\n" not in str(caught.value)
    assert not output.exists()


@pytest.mark.parametrize("what", ["mode", "link"])
def test_harmless_changes_during_a_run(tmp_path: Path, what: str) -> None:
    """Another mode or another link to the file leaves its content alone."""
    clip = media.make_video(tmp_path / "clip.mp4", size=(16, 16))
    act = (lambda: clip.chmod(0o600)) if what == "mode" else lambda: os.link(clip, tmp_path / "b")
    upscale_file(clip, tmp_path / "out.mp4", engine=Acts(act))
    assert (tmp_path / "out.mp4").exists()
