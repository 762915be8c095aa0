"""Kills ``rbvsr-run`` at random moments and resumes it, many times.

The result must equal that of an uninterrupted run: the packets of every stream with their bytes and
timestamps. Nothing may be left next to the output or in the folder for temporary files. The program
exits with 1 if anything differs or is left.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from common import environment, parse_size
from numpy.typing import NDArray

LOOKS = (
    lambda image: image,
    lambda image: 255 - image[::-1],
    lambda image: image[:, ::-1] // 2,
    lambda image: 255 - image[:, ::-1] // 2,
)
"""Transformations that make scenes differ; there is a cut between any two consecutive ones."""


def scenes_of(path: Path, *, scenes: int, length: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of several scenes, made from a video played back and forth."""
    with av.open(str(path)) as container:
        images = [
            frame.to_ndarray(format="rgb24")
            for frame, _ in zip(container.decode(video=0), range(length), strict=False)
        ]
    back_and_forth = images + images[-2:0:-1]
    for scene in range(scenes):
        for number in range(length):
            yield LOOKS[scene % len(LOOKS)](back_and_forth[number % len(back_and_forth)])


def make_clip(source: Path, path: Path, *, scenes: int, length: int, size: tuple[int, int]) -> None:
    """Make a clip of several scenes of a given length, with a tone as its audio."""
    rate, samples = 25, 1920  # audio samples per frame, at 48 kHz
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate, options={"crf": "23"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        audio = container.add_stream("aac", rate=25 * samples, layout="mono")
        for number, image in enumerate(scenes_of(source, scenes=scenes, length=length)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(width=size[0], height=size[1], format="yuv420p")
            frame.pts = number
            container.mux(video.encode(frame))
            at = np.arange(number * samples, (number + 1) * samples)
            pitch = 220 * (1 + number // rate % 4)
            wave = (8000 * np.sin(2 * np.pi * pitch * at / 48000)).astype(np.int16)
            sound = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
            sound.rate, sound.pts = 48000, int(at[0])
            container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def packets(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return timestamps, key frame flags and a digest of the bytes of every packet, by stream."""
    with av.open(str(path)) as container:
        found: dict[str, list[tuple[Any, ...]]] = {
            f"{stream.index} {stream.type}": [] for stream in container.streams
        }
        for packet in container.demux():
            if packet.size:
                digest = hashlib.sha256(bytes(packet)).hexdigest()
                found[f"{packet.stream.index} {packet.stream.type}"].append(
                    (packet.pts, packet.dts, packet.duration, packet.is_keyframe, digest)
                )
    return found


@dataclass
class Work:
    """Makes one output in a folder of its own, with another for temporary files."""

    clip: Path
    folder: Path
    options: list[str]
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.temporary = self.folder / "temporary"
        self.place = self.folder / "place"
        self.output = self.place / "out.mp4"
        self.log = self.folder / "log"
        for folder in (self.temporary, self.place):
            folder.mkdir(parents=True)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command."""
        program = "from rbvsr_deploy.commands.run import run; run()"
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-c", program, self.clip, "-o", self.output, *self.options],
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self.temporary)},
            )

    def run(self, *, limit: float | None = None) -> bool:
        """Run the command, kill it after ``limit`` seconds, and return whether it finished.

        A run that was killed after its output was in place has done its work: the next one removes
        the rest and refuses to make the output again.
        """
        was_done = self.output.exists()
        process = self.start()
        try:
            process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False
        if process.returncode and not (was_done and "out.mp4 exists" in self.message()):
            raise click.ClickException(
                f"the command failed with {process.returncode}: {self.message()}"
            )
        return True

    def message(self) -> str:
        """Return what the last run printed."""
        return self.log.read_text(errors="replace").strip()

    def finished_segments(self) -> int:
        """Count the finished segments in the job folder."""
        return len(list(self.place.glob(".*.job/part-*.json")))

    def strays(self, *, done: bool) -> list[str]:
        """List files that should not exist; while the work is unfinished, the job folder may."""
        allowed = {self.output} if done else {self.output, self.place / ".out.mp4.job"}
        found = [*self.place.iterdir(), *self.temporary.iterdir()]
        allowed.add(self.temporary / ".ses")  # ONNX Runtime's, one file shared by all runs
        return sorted(str(path.relative_to(self.folder)) for path in found if path not in allowed)


def survive(
    work: Work, *, kills: int, longest: float, rng: random.Random, earlier: int
) -> tuple[list[dict[str, Any]], bool]:
    """Kill and resume one output until it is complete or was killed ``kills`` times.

    Args:
        earlier: kills of earlier outputs, to number these.

    Returns:
        A record of each kill, and whether the output was completed.
    """
    events: list[dict[str, Any]] = []
    while len(events) < kills:
        moment = rng.uniform(0.0, longest)
        if work.run(limit=moment):
            return events, True
        event: dict[str, Any] = {
            "kill": earlier + len(events) + 1,
            "after_seconds": round(moment, 3),
            "finished_segments": work.finished_segments(),
            "output_exists": work.output.exists(),
            "strays": work.strays(done=False),
        }
        events.append(event)
        print(
            f"kill {event['kill']:>3} after {moment:6.2f} s: {event['finished_segments']} segments "
            f"finished{', output exists' * event['output_exists']}"
            + "".join(f"; stray {path}" for path in event["strays"]),
            flush=True,
        )
    return events, work.run()


def verdict(work: Work, reference: dict[str, list[tuple[Any, ...]]]) -> dict[str, Any]:
    """Compare the output with that of the uninterrupted run, and list files that are left."""
    found = packets(work.output)
    streams = {*reference, *found}
    return {
        "differing_streams": sorted(s for s in streams if reference.get(s) != found.get(s)),
        "strays": work.strays(done=True),
    }


@click.command()
@click.argument("clip", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("options", nargs=-1)
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Seed of the moments.")
@click.option("--engine", type=click.Path(path_type=Path), help="As for rbvsr-run.")
@click.option(
    "--scenes", default=0, help="Make a clip of this many scenes from CLIP, played back and forth."
)
@click.option("--length", default=60, show_default=True, help="Length of these scenes in frames.")
@click.option(
    "--size", default="96x54", show_default=True, help="Size of that clip, width x height."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    clip: Path,
    options: tuple[str, ...],
    kills: int,
    seed: int,
    engine: Path | None,
    scenes: int,
    length: int,
    size: str,
    json_path: Path | None,
) -> None:
    """Upscale CLIP, killed at random moments; OPTIONS after -- are passed to rbvsr-run.

    The clip should give several segments, or every run starts over: use scenes of 48 frames or
    more, or one of several hundred with --max-scene.
    """
    arguments = [*(() if engine is None else ("--engine", str(engine))), *options]
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        if scenes:
            made = folder / "clip.mp4"
            make_clip(clip, made, scenes=scenes, length=length, size=parse_size(size))
            clip = made
        whole = Work(clip, folder / "whole", arguments)
        start = time.monotonic()
        whole.run()
        longest = time.monotonic() - start
        reference = packets(whole.output)
        print(
            f"uninterrupted: {longest:.1f} s, "
            + ", ".join(f"{n} {len(p)}" for n, p in reference.items())
        )
        result: dict[str, Any] = {
            **environment(),
            "options": arguments,
            "seconds_uninterrupted": round(longest, 2),
            "outputs": [],
        }
        killed = 0
        while killed < kills:
            number = len(result["outputs"])
            work = Work(clip, folder / f"output-{number}", arguments)
            events, _ = survive(
                work, kills=kills - killed, longest=longest, rng=rng, earlier=killed
            )
            killed += len(events)
            outcome = {"kills": events, **verdict(work, reference), "message": work.message()}
            result["outputs"].append(outcome)
            print(
                f"output {number + 1}, {len(events)} kills: differing streams "
                f"{', '.join(outcome['differing_streams']) or 'none'}; left "
                f"{', '.join(outcome['strays']) or 'nothing'}",
                flush=True,
            )
    outcomes = result["outputs"]
    bad = [o for o in outcomes if o["differing_streams"] or o["strays"]]
    bad += [o for o in outcomes for event in o["kills"] if event["strays"]]
    result["passed"] = not bad
    result["kills"] = killed
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(
        f"{killed} kills, {len(outcomes)} outputs: "
        + ("FAILED" if bad else "all equal the uninterrupted run")
    )
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
