"""Measures several workers on this machine, with a network that takes a fixed time per frame.

The workers sleep instead of computing, so that two processors are enough for eight of them. What is
measured is everything else: starting, seeking, decoding, encoding, messages, and the coordinator.
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
        while not self._stop.wait(1.0):
            for name, process in {"coordinator": os.getpid(), **self._workers.processes}.items():
                try:
                    fields = Path(f"/proc/{process}/statm").read_text("ascii").split()
                except OSError:
                    continue
                self.memory.setdefault(name, []).append(int(fields[1]) * PAGE)

    def growth(self) -> dict[str, float]:
        """Return by how much memory grew from the first third of the time to the last, as a
        fraction.
        """
        found = {}
        for name, values in self.memory.items():
            third = max(1, len(values) // 3)
            early, late = max(values[third : 2 * third] or values), max(values[-third:])
            found[name] = late / early - 1
        return found


def measure(clip: Path, cuts: Path, workers: int, seconds: float) -> dict[str, Any]:
    """Upscale a clip, and return rates, times and memory."""
    os.environ[SECONDS] = str(seconds)
    setup = Setup(clip, "cpu", trust_engines=False, settings=Settings())
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalWorkers(workers, setup, command=WORKER) as started,
    ):
        times: list[tuple[float, float]] = []

        def watch(status: Status) -> None:
            if status.what == "scenes" or not times:
                times[:] = [(time.perf_counter(), time.process_time())]

        scheduler = Scheduler(started, watch=watch)
        begin = time.perf_counter()
        engine = scheduler.open()
        opened = time.perf_counter() - begin
        with Watch(started) as sampled:
            summary = share_file(
                clip,
                Path(folder) / "out.mp4",
                scheduler=scheduler,
                engine=engine,
                settings=Settings(),
                size=OutputSize(),
                reading=ReadOptions(),
                writing=WriteOptions(codec="mpeg4"),  # takes little time
                scene_list=cuts,
                watch=watch,
            )
        ((wall, cpu),) = times
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "workers": workers,
        "frames": summary.frames,
        "seconds_to_start": opened,
        "seconds_for_scenes": summary.seconds["scenes"],
        "seconds": wall,
        "frames_per_second": summary.frames / wall,
        "coordinator_share_of_a_core": cpu / wall,
        "seconds_of_workers": summary.seconds,
        "units": sum(worker.tasks for worker in summary.workers),
        "memory_growth": sampled.growth(),
        "memory": {name: values[-1] for name, values in sampled.memory.items()},
    }


@click.command()
@click.option("--workers", default="1,8", show_default=True, help="Numbers of workers.")
@click.option("--frames", default=2000, show_default=True)
@click.option("--seconds", default=0.05, show_default=True, help="Time of the network per frame.")
@click.option("--longest", default=200, show_default=True, help="Frames of the longest scene.")
@click.option("--json", "result", type=click.Path(path_type=Path), help="File for the figures.")
def main(workers: str, frames: int, seconds: float, longest: int, result: Path | None) -> None:
    """Measure the rates of several numbers of workers."""
    chosen = np.random.default_rng(1)
    lengths: list[int] = []
    while sum(lengths) < frames:
        lengths.append(min(int(chosen.integers(20, longest + 1)), frames - sum(lengths)))
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        clip, cuts = Path(folder) / "clip.mp4", Path(folder) / "cuts.txt"
        make_clip(clip, lengths)
        cuts.write_text("\n".join(str(sum(lengths[:n])) for n in range(len(lengths))))
        for number in map(int, workers.split(",")):
            runs.append(measure(clip, cuts, number, seconds))
            click.echo(
                f"{number} workers: {runs[-1]['frames_per_second']:.2f} frames/s, "
                f"{runs[-1]['frames_per_second'] / runs[0]['frames_per_second']:.2f} times the "
                f"first, coordinator {100 * runs[-1]['coordinator_share_of_a_core']:.1f} % of a "
                f"core, memory {max(runs[-1]['memory_growth'].values()):+.1%}"
            )
    if result is not None:
        found = {**environment(), "lengths": lengths, "seconds_per_frame": seconds, "runs": runs}
        result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
