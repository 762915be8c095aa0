"""Measures what the checks of untrusted files and values cost: opening a bundle, and looking for
NaN and infinity while a clip is upscaled, as a share of the run that contains it.

All times are processor time, so that other work on the machine does not count.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import click
from common import environment, parse_size, read_clip, upscale

from rbvsr_deploy.bundle import open_bundle
from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE
from rbvsr_deploy.runtime import propagation, refinement, scene
from rbvsr_deploy.runtime.settings import Settings

REPETITIONS = 20
CHECKS = (
    (propagation, "begin_check"),
    (propagation, "check_finite"),
    (refinement, "check_finite"),
    (scene, "check_finite"),
)


@contextlib.contextmanager
def timed_checks() -> Iterator[list[float]]:
    """Yield a list that gets the seconds of every check of values inside the block."""
    seconds: list[float] = []

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            start = time.process_time()
            try:
                result = work(*arguments, **named)
            finally:
                seconds.append(time.process_time() - start)
            # A check that has begun is a function, which completes it.
            return timed(result) if callable(result) else result

        return call

    with contextlib.ExitStack() as stack:
        for module, name in CHECKS:
            stack.enter_context(mock.patch.object(module, name, timed(getattr(module, name))))
        yield seconds


def opening(bundle: Path) -> float:
    """Return the least milliseconds of several attempts to open and check a bundle."""
    times = []
    for _ in range(REPETITIONS):
        start = time.process_time()
        open_bundle(bundle)
        times.append(time.process_time() - start)
    return 1000 * min(times)


@click.command()
@click.argument("clip", type=click.Path(path_type=Path))
@click.option("--engine", "bundle", default=DEFAULT_BUNDLE, type=click.Path(path_type=Path))
@click.option("--size", default="320x180", callback=lambda _, __, text: parse_size(text))
@click.option("--frames", default=16)
@click.option("--json", "path", type=click.Path(path_type=Path), required=True)
def main(clip: Path, bundle: Path, size: tuple[int, int], frames: int, path: Path) -> None:
    images = read_clip(clip, frames=frames, size=size)
    with open_engine(bundle, device="cpu") as engine:
        upscale(engine, images[:2], Settings())  # the first run allocates memory
        start = time.process_time()
        with timed_checks() as seconds:
            upscale(engine, images, Settings())
        total = time.process_time() - start
        result = {
            **environment(engine),
            "size": list(size),
            "frames": frames,
            "opening, ms": round(opening(bundle), 1),
            "checks": len(seconds),
            "checks, s": sum(seconds),
            "upscaling, s": total,
            "share": sum(seconds) / total,
        }
    path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(
        f"opening {bundle.name}: {result['opening, ms']} ms; {len(seconds)} checks of values: "
        f"{100 * sum(seconds) / total:.3f} % of {total:.1f} s for {frames} frames"
    )


if __name__ == "__main__":
    main()
