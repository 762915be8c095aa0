"""Tests that several processes give the bytes of one, whatever ends in between."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rbvsr_deploy.cluster.film import has_shared_work
from rbvsr_deploy.errors import EngineError, MediaError
from rbvsr_deploy.jobs.upscale_file import upscale_file
from rbvsr_deploy.runtime.scenes import read_scene_list
from rbvsr_deploy.video import ImageSink, ReadOptions, WriteOptions
from tests.cluster.conftest import COMMAND, MARK, alone, make_clip, scene, shared
from tests.support.cluster_worker import SHORTEST, TimedEngine

COORDINATOR = """
import sys
from pathlib import Path
from rbvsr_deploy.jobs import segments
from tests.cluster.conftest import shared
from tests.support.cluster_worker import short_segments
short_segments()
clip, output, model, workers = sys.argv[1:]
shared(Path(clip), Path(output), model=Path(model), workers=int(workers))
"""


def coordinator(clip: Path, output: Path, model: Path, workers: int) -> subprocess.Popen[bytes]:
    """Start a process that upscales with several workers."""
    arguments = map(str, (clip, output, model, workers))
    command = [sys.executable, "-c", COORDINATOR, *arguments]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def worker_processes() -> set[int]:
    """Return all processes of this machine that run a worker of these tests."""
    found, mark = set(), f"{MARK}={os.getpid()}".encode()
    for folder in Path("/proc").iterdir():
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if arguments[1:3] == [name.encode() for name in COMMAND[1:]] and mark in environment:
            found.add(int(folder.name))
    return found


def wait_until_gone(before: set[int]) -> None:
    """Wait for workers other than these to end."""
    deadline = time.monotonic() + 10
    while worker_processes() - before:
        assert time.monotonic() < deadline, "workers were left"
        time.sleep(0.05)


@pytest.mark.slow
def test_the_same_file_as_one_process(clip: Path, model: Path, tmp_path: Path) -> None:
    """Every byte is the same, and so are scenes, scene list and what is kept."""
    cuts = tmp_path / "cuts.txt"
    expected = alone(clip, tmp_path / "one.mp4", scene_list=cuts)
    summary = shared(clip, tmp_path / "two.mp4", model=model, scene_list=tmp_path / "cuts2.txt")
    assert (tmp_path / "two.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert (tmp_path / "cuts2.txt").read_text() == cuts.read_text()
    assert len(read_scene_list(cuts)) > 5
    assert summary.scenes == expected.scenes
    assert summary.kept == expected.kept
    assert (summary.frames, summary.resumed_frames) == (expected.frames, 0)
    assert sum(worker.frames for worker in summary.workers) == expected.frames
    assert all(worker.frames and worker.bytes for worker in summary.workers)
    assert not (tmp_path / ".two.mp4.job").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lengths", "reading", "suffix"),
    [
        ([40], {}, ".mp4"),
        ([9] * 30, {}, ".mp4"),
        ([9, 30, 4, 8, 20], {"start": 1, "frames": 50}, ".mp4"),
        ([9, 30, 4, 8, 20], {"deinterlace": True}, ".mp4"),
    ],
    ids=["one scene", "30 scenes", "excerpt", "deinterlaced"],
)
def test_other_inputs(
    lengths: list[int], reading: dict[str, int], suffix: str, model: Path, tmp_path: Path
) -> None:
    """A single scene, many, an excerpt, and frames that depend on those before them."""
    clip = make_clip(tmp_path / f"clip{suffix}", lengths)
    options = ReadOptions(**reading)  # type: ignore[arg-type]
    alone(clip, tmp_path / "one.mp4", reading=options)
    summary = shared(clip, tmp_path / "four.mp4", model=model, workers=3, reading=options)
    assert (tmp_path / "four.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert sum(worker.frames for worker in summary.workers) == summary.frames


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("output", ["frames", "film.mp4"])
def test_image_folders(output: str, model: Path, tmp_path: Path) -> None:
    """The images of a folder are shared like the frames of a video, to images and to a video; they
    keep their names and, where the output can, their metadata.
    """
    folder = tmp_path / "images"
    folder.mkdir()
    images = [image for number in range(8) for image in scene(number, 7)]
    for number, image in enumerate(images):
        # Natural order, and names that differ in length.
        Image.fromarray(image).save(folder / f"shot {number}.png", dpi=(300, 300))
    options = WriteOptions(codec="mpeg4") if output == "film.mp4" else WriteOptions()
    one, many = tmp_path / "one" / output, tmp_path / "many" / output
    one.parent.mkdir()
    many.parent.mkdir()
    expected = alone(folder, one, writing=options)
    summary = shared(folder, many, model=model, workers=3, writing=options)
    if output == "frames":
        assert contents(many) == contents(one)
        assert len(contents(many)) == len(images)
        assert {file.stat().st_mode for file in many.iterdir()} == {
            file.stat().st_mode for file in one.iterdir()
        }
    else:
        assert many.read_bytes() == one.read_bytes()
    assert summary.scenes == expected.scenes
    assert (summary.kept, summary.dropped) == (expected.kept, expected.dropped)
    assert sum(worker.frames > 0 for worker in summary.workers) == 3
    assert [path.name for path in many.parent.iterdir()] == [output]


@pytest.mark.slow
def test_a_video_to_images(clip: Path, model: Path, tmp_path: Path) -> None:
    """They are numbered as by one process, also after the coordinator failed in between."""
    alone(clip, tmp_path / "one")
    with pytest.MonkeyPatch.context() as patch:
        taken = ImageSink.take_segments

        def fail(self: ImageSink, *arguments: Any, **options: Any) -> None:
            taken(self, *arguments, **options)
            raise OSError("as if it was killed")

        patch.setattr(ImageSink, "take_segments", fail)
        with pytest.raises(OSError, match="as if"):
            shared(clip, tmp_path / "two", model=model)
    summary = shared(clip, tmp_path / "two", model=model)
    assert summary.resumed_frames > 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert min(contents(tmp_path / "two")) == "00000000.png"


@pytest.mark.slow
def test_two_images_with_one_name(model: Path, tmp_path: Path) -> None:
    """One sentence says so, although different workers write them."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(scene(0, 7) + scene(1, 7)):
        # The last of the first scene, and the first of the second.
        name = {6: "a06.gif", 7: "a06.gif.png"}.get(number, f"a{number:02d}.png")
        Image.fromarray(image).save(folder / name)
    with pytest.raises(MediaError, match=r"two images .* written as a06.gif.png: rename one"):
        shared(folder, tmp_path / "two", model=model)
    assert not (tmp_path / "two").exists()


@pytest.mark.slow
def test_killed_workers(
    clip: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that are killed at work are started again, and their work goes on after its last
    finished segment.
    """
    monkeypatch.setenv("DOUBLE_SECONDS", "0.02")
    alone(clip, tmp_path / "one.mp4")
    lines: list[str] = []
    before, chosen, killed = worker_processes(), random.Random(3), 0

    def kill() -> None:
        nonlocal killed
        while not stop.wait(0.3) and killed < 2:
            # Not those that are still starting: these take most of the time here.
            if running := [p for p in worker_processes() - before if _is_at_work(p)]:
                os.kill(chosen.choice(running), signal.SIGKILL)
                killed += 1

    stop, killer = threading.Event(), threading.Thread(target=kill)
    killer.start()
    try:
        summary = shared(clip, tmp_path / "two.mp4", model=model, report=lines.append)
    finally:
        stop.set()
        killer.join()
    assert killed == 2
    assert (tmp_path / "two.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert sum(worker.retries for worker in summary.workers) >= 1
    assert any("was ended by SIGKILL; trying again" in line for line in lines), lines
    wait_until_gone(before)


def _is_at_work(process: int) -> bool:
    """Return whether a worker has open packets."""
    try:
        names = [os.readlink(file) for file in Path(f"/proc/{process}/fd").iterdir()]
    except OSError:
        return False
    return any(name.endswith(".packets") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("then", [3, 1, None])
def test_a_killed_coordinator(
    then: int | None, clip: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers end by themselves, and another number of workers, or none, finishes the work."""
    alone(clip, tmp_path / "one.mp4")
    output, before = tmp_path / "two.mp4", worker_processes()
    monkeypatch.setenv("DOUBLE_SECONDS", "0.02")
    process = coordinator(clip, output, model, 2)
    units = tmp_path / ".two.mp4.job" / "units"
    while not list(units.glob("*/part-000001.json")):  # a segment is finished
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    wait_until_gone(before)
    assert not output.exists()
    assert has_shared_work(output)
    monkeypatch.setenv("DOUBLE_SECONDS", "0")
    if then is None:
        alone(clip, output)
    else:
        summary = shared(clip, output, model=model, workers=then)
        assert summary.resumed_frames >= SHORTEST
        made = sum(worker.frames for worker in summary.workers)
        assert made == summary.frames - summary.resumed_frames
    assert output.read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert not units.parent.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_worker_that_hangs(
    clip: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one does its unit, and it is ended by force."""
    monkeypatch.setenv("DOUBLE_SECONDS", "0.02")
    alone(clip, tmp_path / "one.mp4")
    before, stopped = worker_processes(), threading.Event()

    def stop() -> None:
        while not stopped.wait(0.1):
            for process in worker_processes() - before:
                if _is_at_work(process) and not stopped.is_set():
                    os.kill(process, signal.SIGSTOP)
                    stopped.set()

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        summary = shared(clip, tmp_path / "two.mp4", model=model)
    finally:
        stopped.set()
        thread.join()
    assert (tmp_path / "two.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert sum(worker.frames for worker in summary.workers) >= summary.frames
    wait_until_gone(before)


@pytest.mark.slow
def test_workers_and_coordinators_are_killed_again_and_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are those of one process, nothing is left, and no frame is upscaled more than three
    times. ``KILLS=20`` takes longer.
    """
    kills = int(os.environ.get("KILLS", "3"))
    lengths_of = random.Random(5)
    lengths = [lengths_of.randrange(8, 40) for _ in range(7 * kills)]
    clip, log = make_clip(tmp_path / "clip.mp4", lengths), tmp_path / "log"
    alone(clip, tmp_path / "one.mp4")
    monkeypatch.setenv("DOUBLE_SECONDS", "0.02")
    monkeypatch.setenv("DOUBLE_LOG", str(log))
    output, before, chosen = tmp_path / "two.mp4", worker_processes(), random.Random(4)
    while not output.exists():
        process = coordinator(clip, output, model, chosen.choice((2, 3, 4)))
        while process.poll() is None:
            time.sleep(chosen.uniform(0.3, 0.8) if kills else 0.1)
            running = [p for p in worker_processes() - before if _is_at_work(p)]
            if kills and len(running) > 1:
                kills -= 1
                os.kill(chosen.choice([*running, process.pid]), signal.SIGKILL)
        wait_until_gone(before)
    assert not kills
    assert output.read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert not (tmp_path / ".two.mp4.job").exists()
    worked_on = Counter(memoryview(log.read_bytes()).cast("I"))
    assert max(worked_on.values()) <= 3, worked_on.most_common(5)


@pytest.mark.slow
def test_work_of_one_process_is_continued_by_several(
    clip: Path, model: Path, tmp_path: Path
) -> None:
    """It is continued even from within a scene."""

    class Stops(TimedEngine):
        def run(self, graph: str, **arguments: Any) -> tuple[Any, ...]:
            if graph == "reconstruct" and self.items["reconstruct"] == 40:
                raise EngineError("graph 'reconstruct' failed on cpu: it was switched off")
            return super().run(graph, **arguments)

    alone(clip, tmp_path / "one.mp4")
    output = tmp_path / "two.mp4"
    with pytest.raises(EngineError):
        upscale_file(clip, output, engine=Stops(0))
    summary = shared(clip, output, model=model)
    assert summary.resumed_frames == 36  # 24 + 12: within the scene of 31 frames
    assert output.read_bytes() == (tmp_path / "one.mp4").read_bytes()
