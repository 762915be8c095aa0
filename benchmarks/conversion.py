"""Measures what a frame's conversion from RGB costs the thread that writes, and how fast it is.

The writing thread hands frames to converters and takes them back in order; the encoder, which it
would run in between, is left out.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import environment, parse_numbers, parse_size

from rbvsr_deploy.video.colour.colour import RGB_COLOUR
from rbvsr_deploy.video.colour.conversion import from_rgb
from rbvsr_deploy.video.encoding.conversions import Conversions


def measure(images: Any, *, pix_fmt: str, threads: int, repeats: int) -> dict[str, float]:
    """Return milliseconds per frame: CPU time of the writing thread, and of the process; wall."""
    best: dict[str, float] = {}
    for _ in range(repeats):
        start = time.thread_time(), time.process_time(), time.perf_counter()
        if threads == 0:
            for image in images:
                from_rgb(image, pix_fmt=pix_fmt, colour=RGB_COLOUR)
        else:
            with Conversions[None](
                pix_fmt=pix_fmt, colour=RGB_COLOUR, threads=threads
            ) as conversions:
                for image in images:
                    list(conversions.add(image, None))
                list(conversions.rest())
        end = time.thread_time(), time.process_time(), time.perf_counter()
        for name, a, b in zip(("writer", "process", "wall"), start, end, strict=True):
            took = 1000 * (b - a) / len(images)
            best[name] = round(min(took, best.get(name, took)), 3)
    return best


@click.command()
@click.option("--size", default="1280x720", show_default=True, help="Width x height of the output.")
@click.option("--pix-fmt", default="yuv420p", show_default=True)
@click.option("--threads", default="0,1,2", show_default=True, help="0: in the writing thread.")
@click.option("--frames", default=40, show_default=True)
@click.option("--repeats", default=5, show_default=True, help="The best one counts.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    size: str, pix_fmt: str, threads: str, frames: int, repeats: int, json_path: Path | None
) -> None:
    """Measure the conversion of RGB for an encoder, in milliseconds per frame."""
    width, height = parse_size(size)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(8)] * (frames // 8)
    results = {
        count: measure(images, pix_fmt=pix_fmt, threads=count, repeats=repeats)
        for count in parse_numbers(threads)
    }
    print(f"{'threads':>8}{'writer':>9}{'process':>9}{'wall':>9}   ms per frame, {size} {pix_fmt}")
    for count, took in results.items():
        print(f"{count:>8}{took['writer']:>9.3f}{took['process']:>9.3f}{took['wall']:>9.3f}")
    if json_path is not None:
        report = {**environment(), "size": size, "pix_fmt": pix_fmt, "milliseconds": results}
        json_path.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
