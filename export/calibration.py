"""What the graphs see and make of real footage: clips go through the runtime as in a run, scenes,
cleaning, refinement and propagation included.

Inputs of the recurrent graphs are recorded where states have come a long way: the ranges of a first
step, with no state before it, are not those of the hundredth.

The one module of the export that knows the runtime.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines.base import Array, Engine
from rbvsr_deploy.engines.tap import TappedEngine
from rbvsr_deploy.errors import ExportError
from rbvsr_deploy.files import sha256
from rbvsr_deploy.pixels import eight_bits
from rbvsr_deploy.runtime.scenes import CutDetector
from rbvsr_deploy.runtime.stream import Settings, Stream
from rbvsr_deploy.video import open_source

__all__ = ["FRAMES", "MIN_FRAMES", "Clip", "pictures", "read_clip", "record_inputs"]

FRAMES = 60
"""Frames that are taken of a clip at most: its first ones."""

MIN_FRAMES = 8
"""Of a clip: states that have not come at least this far tell nothing about recurrence."""

WINDOW = (144, 256)
"""H and W of the part that is taken from the middle of larger frames: a published-size network
takes seconds per frame on a CPU, and the footage goes through it several times.
"""

SAMPLES = 8
"""How many inputs of a graph are recorded per clip and pass over it."""


@dataclass(frozen=True, eq=False)
class Clip:
    """The part of a calibration clip that is used."""

    name: str
    sha256: str
    """Of the file; of a folder, of its files' names and contents."""
    size: tuple[int, int]
    """H and W of the whole frames."""
    images: NDArray[np.uint8]
    """(T, H, W, 3) RGB: the middle of the first frames."""
    cuts: frozenset[int]
    """Numbers of the frames that a scene begins with, the first frame apart."""

    def excerpt(self, start: int, stop: int, *, window: tuple[int, int]) -> Clip:
        """The middle of some of the frames."""
        cuts = frozenset(cut - start for cut in self.cuts if start < cut < stop)
        images = np.ascontiguousarray(_middle(self.images[start:stop], window))
        return Clip(self.name, self.sha256, self.size, images, cuts)


def read_clip(path: Path) -> Clip:
    """Read a video or a folder of pictures for calibration.

    Raises:
        MediaError: it is missing or cannot be read.
        ExportError: it has fewer than :data:`MIN_FRAMES` frames.
    """
    detector = CutDetector()
    images: list[NDArray[np.uint8]] = []
    cuts = set()
    with open_source(path) as source:
        for frame in source:
            image = eight_bits(frame.image)
            if detector.is_cut(image):
                cuts.add(len(images))
            images.append(_middle(image, WINDOW).copy())
            if len(images) == FRAMES:
                break
        size = (source.height, source.width)
    if len(images) < MIN_FRAMES:
        raise ExportError(
            f"the calibration clip '{path}' has {len(images)} frame{'s' * (len(images) != 1)}, and "
            f"at least {MIN_FRAMES} are needed for states to propagate: give a longer one"
        )
    return Clip(path.name, sha256(path), size, np.stack(images), frozenset(cuts))


def _middle(images: NDArray[np.uint8], window: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle of (..., H, W, 3), at most as large as the window."""
    height, width = images.shape[-3:-1]
    top, left = max(0, height - window[0]) // 2, max(0, width - window[1]) // 2
    return images[..., top : top + window[0], left : left + window[1], :]


def pictures(engine: Engine, clip: Clip) -> NDArray[np.uint8]:
    """What a run makes of a clip: (T, 4H, 4W, 3) RGB."""
    made = []
    with Stream(engine, Settings(), size=clip.images.shape[1:3]) as stream:
        for number, image in enumerate(clip.images):
            made += [p.image for p in stream.push(image, cut=number in clip.cuts)]
        made += [p.image for p in stream.flush()]
    return np.stack(made)


def record_inputs(
    engine: Engine, clip: Clip, graphs: Sequence[str], *, every: int
) -> tuple[NDArray[np.uint8], dict[str, list[dict[str, NDArray[Any]]]]]:
    """Run a clip and record the inputs of some graphs.

    Args:
        engine: runs the clip; stays open.
        clip: the clip.
        graphs: names of the graphs to record.
        every: of this many runs of a graph, record the last one.

    Returns:
        The result of :func:`pictures`; and samples by graph, (N, ...) arrays by the input's name.
    """
    samples: dict[str, list[dict[str, NDArray[Any]]]] = {graph: [] for graph in graphs}
    runs: Counter[str] = Counter()

    def record(graph: str, inputs: Mapping[str, Array], outputs: Sequence[Array]) -> None:
        runs[graph] += 1
        if graph in samples and runs[graph] % every == 0:
            samples[graph].append(
                {name: engine.download(array).copy() for name, array in inputs.items()}
            )

    return pictures(TappedEngine(engine, record), clip), samples
