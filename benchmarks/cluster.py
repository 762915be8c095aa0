"""Measures several workers on this machine, with a network that takes a fixed time per frame.

The workers sleep instead of computing, so that two processors are enough for eight of them. What is
measured is everything else: starting, seeking, decoding, encoding, messages, and the coordinator.
Each number of workers gets a clip in proportion, so that all runs take about the same time. At the
end, one worker that does not sleep upscales a long clip, for the growth of memory.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from common import environment
from timed_worker import SECONDS

from rbvsr_deploy.cluster.film import share_file
from rbvsr_deploy.cluster.local import LocalWorkers
from rbvsr_deploy.cluster.messages import Setup
from rbvsr_deploy.cluster.scheduler import Scheduler
from rbvsr_deploy.cluster.work import Status
from rbvsr_deploy.runtime.output_size import OutputSize
from rbvsr_deploy.runtime.stream import Settings
from rbvsr_deploy.video import ReadOptions, WriteOptions

WORKER = (sys.executable, str(Path(__file__).with_name("timed_worker.py")))
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


class TimedScheduler(Scheduler):
    """Remembers when its last tasks were finished."""

    ended = 0.0

    def run(self, *arguments: Any, **options: Any) -> None:
        super().run(*arguments, **options)
        self.ended = time.perf_counter()


def scene_lengths(frames: int, longest: int) -> list[int]:
    """Return lengths of scenes, from 20 frames on, that make up a number of frames."""
    chosen = np.random.default_rng(1)
    lengths: list[int] = []
    while sum(lengths) < frames:
        lengths.append(min(int(chosen.integers(20, longest + 1)), frames - sum(lengths)))
    return lengths


def make_clip(path: Path, lengths: list[int]) -> None:
    """Write a video of 48x32 whose scenes have these lengths."""
    chosen = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=24, options={"crf": "23", "g": "48"})
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        number = 0
        for scene, length in enumerate(lengths):
            base = chosen.integers(0, 128, (4, 6, 3)).repeat(8, axis=0).repeat(8, axis=1)
            image = (base + 53 * scene % 128).astype(np.uint8)
            for shift in range(length):
                frame = av.VideoFrame.from_ndarray(np.roll(image, shift, axis=1), format="rgb24")
                frame = frame.reformat(format="yuv420p")
                frame.pts = number
                number += 1
                container.mux(video.encode(frame))
        container.mux(video.encode(None))


class Watch:
    """Samples memory and processor time of this process and its workers."""

    def __init__(self, workers: LocalWorkers) -> None:
        self._workers = workers
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.memory: dict[str, list[int]] = {}

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        stopped = False
        while not stopped:  # once at least
            for name, process in {"coordinator": os.getpid(), **self._workers.processes}.items():
                try:
                    fields = Path(f"/proc/{process}/statm").read_text("ascii").split()
                except OSError:
                    continue
                self.memory.setdefault(name, []).append(int(fields[1]) * PAGE)
            stopped = self._stop.wait(1.0)

    def cpu(self) -> float:
        """Return the processor time that the workers have used, in seconds."""
        total = 0.0
        for process in self._workers.processes.values():
            stat = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()
            total += (int(stat[11]) + int(stat[12])) / TICKS
        return total

    def growth(self) -> dict[str, float]:
        """Return by how much memory grew from the second third of the time to the last, as a
        fraction.
        """
        found = {}
        for name, values in self.memory.items():
            third = max(1, len(values) // 3)
            early, late = max(values[third : 2 * third] or values), max(values[-third:])
            found[name] = late / early - 1
        return found


def measure(lengths: list[int], workers: int, seconds: float) -> dict[str, Any]:
    """Upscale a clip of scenes of these lengths, and return rates, times and memory."""
    os.environ[SECONDS] = str(seconds)
    with tempfile.TemporaryDirectory() as folder:
        clip, cuts = Path(folder) / "clip.mp4", Path(folder) / "cuts.txt"
        make_clip(clip, lengths)
        cuts.write_text("\n".join(str(sum(lengths[:n])) for n in range(len(lengths))))
        setup = Setup(clip, "cpu", trust_engines=False, settings=Settings())
        with LocalWorkers(workers, setup, command=WORKER) as started:
            found = _run(clip, cuts, started)
    return {"workers": workers, "lengths": lengths, **found}


def _run(clip: Path, cuts: Path, started: LocalWorkers) -> dict[str, Any]:
    times: list[tuple[float, float, float]] = []

    def now() -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), sampled.cpu()

    def watch(status: Status) -> None:
        if status.what == "scenes" or not times:
            times[:] = [now()]

    sampled = Watch(started)
    scheduler = TimedScheduler(started, watch=watch)
    begin = time.perf_counter()
    engine = scheduler.open()
    opened = time.perf_counter() - begin
    with sampled:
        summary = share_file(
            clip,
            clip.with_name("out.mp4"),
            scheduler=scheduler,
            engine=engine,
            settings=Settings(),
            size=OutputSize(),
            reading=ReadOptions(),
            writing=WriteOptions(codec="mpeg4"),  # takes little time
            scene_list=cuts,
            watch=watch,
        )
        (before,), after = times, now()
    wall, coordinator, cpu = (b - a for a, b in zip(before, after, strict=True))
    return {
        "frames": summary.frames,
        "seconds_to_start": opened,
        "seconds_for_scenes": summary.seconds["scenes"],
        "seconds": wall,
        "seconds_to_join": after[0] - scheduler.ended,
        "frames_per_second": summary.frames / wall,
        "coordinator_share_of_a_core": coordinator / wall,
        "processor_seconds_of_workers": cpu,
        "seconds_of_workers": summary.seconds,
        "units": sum(worker.tasks for worker in summary.workers),
        "memory_growth": sampled.growth(),
        "memory": {name: values[-1] for name, values in sampled.memory.items()},
    }


@click.command()
@click.option("--workers", default="1,2,8", show_default=True, help="Numbers of workers.")
@click.option("--frames", default=1250, show_default=True, help="Frames for each worker.")
@click.option("--seconds", default=0.05, show_default=True, help="Time of the network per frame.")
@click.option("--longest", default=200, show_default=True, help="Frames of the longest scene.")
@click.option("--memory", default=10000, show_default=True, help="Frames for the memory; 0: none.")
@click.option("--json", "result", type=click.Path(path_type=Path), help="File for the figures.")
def main(
    workers: str, frames: int, seconds: float, longest: int, memory: int, result: Path | None
) -> None:
    """Measure the rates of several numbers of workers, and the growth of memory."""
    found = {**environment(), "load": os.getloadavg()[0], "seconds_per_frame": seconds}
    runs: list[dict[str, Any]] = []
    for number in map(int, workers.split(",")):
        run = measure(scene_lengths(number * frames, longest), number, seconds)
        runs.append(run)
        click.echo(
            f"{number} workers: {run['frames']} frames, {run['frames_per_second']:.2f} frames/s, "
            f"{run['frames_per_second'] / runs[0]['frames_per_second']:.2f} times the first, "
            f"coordinator {100 * run['coordinator_share_of_a_core']:.1f} % of a core, memory "
            f"{_growth(run)}"
        )
    found["runs"] = runs
    if memory:
        found["memory"] = run = measure(scene_lengths(memory, longest), 1, 0.0)
        click.echo(f"memory over {run['frames']} frames: {_growth(run)}")
    if result is not None:
        result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _growth(run: dict[str, Any]) -> str:
    """Describe the memory of the coordinator and of the worker whose memory grew most."""
    growth = dict(run["memory_growth"])
    own = growth.pop("coordinator")
    return f"of the coordinator {own:+.1%}, of the workers at most {max(growth.values()):+.1%}"


if __name__ == "__main__":
    main()
