"""What several programs here share: clips in, figures out."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy import __version__
from rbvsr_deploy.engines import Engine
from rbvsr_deploy.runtime.stream import Settings, Stream

Pictures = list[NDArray[np.uint8]]


def environment(engine: Engine | None = None) -> dict[str, Any]:
    """What a program ran on, for its JSON."""
    return {
        "machine": platform.processor() or platform.machine(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "rbvsr_deploy": __version__,
        "date": time.strftime("%Y-%m-%d"),
        **({} if engine is None else {"engine": str(engine.describe())}),
    }


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of "320x180"."""
    try:
        width, height = (int(part) for part in text.split("x"))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no size: write it like 320x180") from None
    return width, height


def parse_numbers(text: str) -> list[int]:
    """Different whole numbers of "0,1,2", in rising order."""
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise click.BadParameter(f"{text!r}: write whole numbers like 0,1,2,4") from None


def read_clip(path: Path, *, frames: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The first frames of a video, area-averaged to a width and height: (T, H, W, 3) RGB."""
    with av.open(str(path)) as container:
        images = [
            frame.reformat(
                width=size[0], height=size[1], format="rgb24", interpolation="AREA"
            ).to_ndarray()
            for frame, _ in zip(container.decode(video=0), range(frames), strict=False)
        ]
    if len(images) < frames:
        raise click.ClickException(f"{path} has {len(images)} frames, {frames} are needed")
    return np.stack(images)


def upscale(
    engine: Engine, images: NDArray[np.uint8], settings: Settings, *, cuts: Iterable[int] = ()
) -> Pictures:
    """Pictures of a clip; a new scene begins with every frame whose number is among the cuts."""
    pictures: Pictures = []
    starts = set(cuts)
    with Stream(engine, settings, size=images.shape[1:3]) as stream:
        for number, image in enumerate(images):
            pictures += [p.image for p in stream.push(image, cut=number in starts)]
        pictures += [p.image for p in stream.flush()]
    return pictures


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Absolute difference of two pictures, in levels of 255."""
    return np.abs(one.astype(np.float32) - other.astype(np.float32))
