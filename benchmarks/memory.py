"""Measures the peak memory of ``rbvsr-run`` against the length of a clip that is a single scene.

Clips of the given lengths are made from a video by playing it back and forth, and upscaled with
``--memory`` as one scene. The resident memory of the process, including libraries, decoder and
encoder, is sampled while it runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import click
from common import environment, parse_size

from rbvsr_deploy.units import parse_bytes

INTERVAL = 0.25  # seconds between two samples


def make_clip(source: Path, path: Path, *, frames: int, size: tuple[int, int]) -> None:
    """Make a clip of a given length from a video played back and forth, which has no cut."""
    with av.open(str(source)) as container:
        forth = [
            frame.reformat(width=size[0], height=size[1], format="yuv420p")
            for frame, _ in zip(container.decode(video=0), range(frames), strict=False)
        ]
    back_and_forth = forth + forth[-2:0:-1]
    with av.open(str(path), "w") as container:
        rate = Fraction(25)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            frame = back_and_forth[number % len(back_and_forth)]
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 once it has ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def measure(clip: Path, output: Path, *, memory: str, options: list[str]) -> dict[str, Any]:
    """Run the command and return its peak, its curve (seconds, MiB) and its own summary."""
    command = [
        *(sys.executable, "-c", "from rbvsr_deploy.commands.run import run; run()"),
        *(str(clip), "-o", str(output), "--memory", memory, "--no-scene-cuts", "--json"),
        *options,
    ]
    curve = []
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            curve.append((round(time.monotonic() - start, 1), resident(process.pid) / 2**20))
            time.sleep(INTERVAL)
        if process.returncode:
            raise click.ClickException(f"{' '.join(command)} failed with {process.returncode}")
        out.seek(0)
        summary = json.load(out)
    return {
        "frames": summary["frames"],
        "peak_mib": round(max(mib for _, mib in curve), 1),
        "plan": summary["plan"],
        "seconds": summary["seconds"],
        "curve": [(seconds, round(mib, 1)) for seconds, mib in curve[:: max(1, len(curve) // 200)]],
    }


@click.command()
@click.argument("video", type=click.Path(path_type=Path, exists=True))
@click.option("--frames", default="200,2000", show_default=True, help="Clip lengths to measure.")
@click.option("--size", default="320x180", show_default=True, help="Width x height of the input.")
@click.option("--memory", default="1GiB", show_default=True)
@click.option("--max-scene", type=int, help="As for rbvsr-run.")
@click.option("--engine", type=click.Path(path_type=Path), help="As for rbvsr-run.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    video: Path,
    frames: str,
    size: str,
    memory: str,
    max_scene: int | None,
    engine: Path | None,
    json_path: Path | None,
) -> None:
    """Measure the peak memory of upscaling clips made of VIDEO."""
    parse_bytes(memory)
    width, height = parse_size(size)
    options = [] if max_scene is None else ["--max-scene", str(max_scene)]
    options += [] if engine is None else ["--engine", str(engine)]
    result: dict[str, Any] = {
        **environment(),
        "size": size,
        "memory": memory,
        "options": options,
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for number in (int(part) for part in frames.split(",")):
            clip = Path(folder, f"{number}.mp4")
            make_clip(video, clip, frames=number, size=(width, height))
            output = clip.with_name(f"{number}_x4.mp4")
            run = measure(clip, output, memory=memory, options=options)
            result["runs"].append(run)
            total = run["seconds"]["total"]
            print(f"{number} frames: peak {run['peak_mib']:.0f} MiB, {total:.0f} s", flush=True)
            for seconds, mib in run["curve"][:: max(1, len(run["curve"]) // 12)]:
                print(f"  {seconds:8.1f} s {mib:7.0f} MiB")
            if json_path is not None:
                json_path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    peaks = [run["peak_mib"] for run in result["runs"]]
    print(f"highest peak / lowest peak: {max(peaks) / min(peaks):.3f}")


if __name__ == "__main__":
    main()
