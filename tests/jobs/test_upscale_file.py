"""Tests single jobs: an error in any stage stops all of them and keeps the finished segments."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rbvsr_deploy.errors import EngineError, MediaError, RbvsrError
from rbvsr_deploy.jobs.summary import Summary
from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.runtime.stream import MAX_SCENE, Settings
from rbvsr_deploy.video import Frame, ImageSink, ImageSource, ReadOptions, open_source
from rbvsr_deploy.video.images import write_image
from tests.conftest import DATA
from tests.support.engine_doubles import ArithmeticEngine, BicubicEngine

FRAMES = 130
SCENES = (60, 125)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of one-pixel images, next to a list of where their scenes begin."""
    folder = tmp_path_factory.mktemp("job") / "in"
    folder.mkdir()
    for i in range(FRAMES):
        image = np.full((1, 1, 3), 7 * i * i % 97, np.uint8)
        write_image(folder / f"{i:03}.png", image=image)
    (folder.parent / "cuts.txt").write_text("\n".join(map(str, SCENES)))
    return folder


class FailsOnce(ArithmeticEngine):
    """Fails after a number of forward steps, if given."""

    def __init__(self, after: int | None = None) -> None:
        super().__init__()
        self.after = after

    def run(self, graph: str, **arguments: Any) -> tuple[Any, ...]:
        if graph == "forward" and self.items["forward"] == self.after:
            raise EngineError("graph 'forward' failed on cpu: out of memory")
        return super().run(graph, **arguments)


def run(folder: Path, output: Path, engine: ArithmeticEngine, **options: Any) -> Summary:
    cuts = folder.parent / "cuts.txt"
    return upscale_file(folder, output, engine=engine, scene_list=cuts, **options)


def levels(output: Path) -> list[int]:
    with open_source(output) as source:
        return [int(frame.image[0, 0, 0]) for frame in source]


def fails_at(method: Callable[..., Any], number: int, error: Exception) -> Callable[..., Any]:
    """Return the method wrapped to raise an error at the given call."""
    calls = 0

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise error
        return method(*arguments, **options)

    return failing


def _frames(source: ImageSource) -> Iterator[Frame]:
    for number, frame in enumerate(_READ(source)):
        if number == 100:
            raise MediaError("the disk is gone")
        yield frame


_READ = ImageSource.__iter__


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["read", "network", "write", "part"])
def test_an_error_in_any_stage(
    stage: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is raised, no thread is left, the first scene's frames stay; the same call then
    finishes the rest and leaves only the output.
    """
    whole = tmp_path / "whole"
    assert run(folder, whole, FailsOnce()).frames == FRAMES
    output = tmp_path / "out"
    full = MediaError("cannot write out: No space left on device")
    match stage:
        case "read":
            monkeypatch.setattr(ImageSource, "__iter__", _frames)
        case "write":
            monkeypatch.setattr(ImageSink, "write", fails_at(ImageSink.write, 80, full))
        case "part":
            monkeypatch.setattr(ImageSink, "end_segment", fails_at(ImageSink.end_segment, 2, full))
    engine = FailsOnce(80 if stage == "network" else None)
    before = set(threading.enumerate())
    with pytest.raises(RbvsrError):
        run(folder, output, engine)
    assert set(threading.enumerate()) == before
    assert not output.exists()
    assert (tmp_path / ".out.job").is_dir()
    monkeypatch.undo()

    lines: list[str] = []
    engine = FailsOnce()
    summary = run(folder, output, engine, report=lines.append)
    assert "Continuing: 60 frames are done already" in lines
    assert (summary.frames, summary.resumed_frames) == (FRAMES, 60)
    assert engine.items["clean"] == engine.items["forward"] == FRAMES - 60
    assert [(s.first_frame, s.frames) for s in summary.scenes] == [(0, 60), (60, 65), (125, 5)]
    assert levels(output) == levels(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


@pytest.fixture(scope="module", params=[20, 300, 1000])
def long_scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], list[int]]:
    """Return 350 images of one scene, options with a longest scene, and the levels they make."""
    folder = tmp_path_factory.mktemp("long") / "in"
    folder.mkdir()
    for i in range(350):
        write_image(folder / f"{i:03}.png", image=np.full((1, 1, 3), 7 * i * i % 97, np.uint8))
    settings = Settings(max_scene=request.param, refine_threshold=0.0)
    options: dict[str, Any] = {"settings": settings, "scene_cuts": False}
    whole = folder.with_name("whole")
    upscale_file(folder, whole, engine=FailsOnce(), **options)
    return folder, options, levels(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("after", "finished"), [(100, 0), (130, 120), (250, 240), (320, 240)])
def test_a_long_scene_is_continued_from_its_state(
    long_scene: tuple[Path, dict[str, Any], list[int]], after: int, finished: int, tmp_path: Path
) -> None:
    """It resumes in the middle of a scene, even of one propagated as a whole: the forward state,
    the last frame and the cleaning decision come from the file.
    """
    folder, common, whole = long_scene
    output = tmp_path / "out"
    with pytest.raises(EngineError):
        upscale_file(folder, output, engine=FailsOnce(after), **common)
    assert (tmp_path / ".out.job").exists() is bool(finished)
    engine = FailsOnce()
    summary = upscale_file(folder, output, engine=engine, **common)
    assert summary.resumed_frames == finished
    assert engine.items["forward"] == 350 - finished
    (scene,) = summary.scenes
    assert (scene.frames, scene.cleanings) == (350, 3)
    assert levels(output) == whole


def test_small_frames_that_wait_are_few(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the network propagates a scene, no more frames are read than the longest scene has,
    however small they are: a long video takes no more memory than a short one.
    """
    read = 0

    def endless(source: ImageSource) -> Iterator[Frame]:
        nonlocal read
        first = next(_READ(source))
        while True:
            read += 1
            yield first

    class Waits(ArithmeticEngine):
        def run(self, graph: str, **arguments: Any) -> tuple[Any, ...]:
            if graph == "forward":
                before = -1
                while before != read < 2 * MAX_SCENE:
                    before = read
                    time.sleep(0.3)
                raise EngineError("that is enough")
            return super().run(graph, **arguments)

    monkeypatch.setattr(ImageSource, "__iter__", endless)
    with pytest.raises(EngineError, match="that is enough"):
        run(folder, tmp_path / "out", Waits(), settings=Settings(max_scene=4))
    assert MAX_SCENE <= read < MAX_SCENE + 60


def test_progress_and_plan(folder: Path, tmp_path: Path) -> None:
    """Every stage counts every frame once and ends at the total."""
    seen: dict[str, list[int]] = {}

    def progress(stage: str, done: int, total: int | None) -> None:
        assert total == FRAMES
        seen.setdefault(stage, []).append(done)

    lines: list[str] = []
    settings = Settings(memory=2500)
    summary = run(
        folder,
        tmp_path / "out",
        ArithmeticEngine(),
        settings=settings,
        progress=progress,
        report=lines.append,
    )
    assert seen == {stage: list(range(1, FRAMES + 1)) for stage in ("clean", "backward", "forward")}
    assert summary.memory == 2500
    assert 1 <= summary.plan.window < 60  # more backward steps than frames, not more progress
    assert lines == []  # there is nothing to report


@pytest.mark.slow
def test_a_before_after_image_that_cannot_be_written_leaves_only_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may be full once everything is done: the output stays, and the error says so."""

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("rbvsr_deploy.jobs.before_after.write_atomically", full)
    image, output = tmp_path / "both.png", tmp_path / "out.mkv"
    with pytest.raises(MediaError, match=r"both\.png.*No space left.*out\.mkv is complete"):
        upscale_file(
            DATA / "sample.mp4",
            output,
            engine=BicubicEngine(),
            reading=ReadOptions(frames=2),
            before_after=image,
        )
    assert output.stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.mkv"]
