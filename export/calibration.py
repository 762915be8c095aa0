"""Runs calibration clips through the runtime, as in a normal run with scene detection, cleaning,
refinement and propagation, and records the inputs of the graphs.

Inputs of the recurrent graphs are sampled across the whole clip, because value ranges grow as
states propagate: those of a first step, with a zero state, differ from those of the hundredth.
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

__all__ = ["FRAMES", "MIN_FRAMES", "Clip", "read_clip", "record_inputs", "upscale_clip"]

FRAMES = 60
"""Maximum number of frames used per clip, counted from its start."""

MIN_FRAMES = 8
"""Minimum length of a clip: states that propagate less far do not represent recurrence."""

WINDOW = (144, 256)
"""H and W of the centre crop of larger frames: a published-size network takes seconds per frame on
a CPU, and the footage is run several times.
"""

SAMPLES = 8
"""Number of inputs recorded per graph, clip and pass over the clip."""


@dataclass(frozen=True, eq=False)
class Clip:
    """Holds the frames of a calibration clip that are used."""

    name: str
    sha256: str
    """Checksum of the file; for a folder, of its files' names and contents."""
    size: tuple[int, int]
    """H and W of the whole frames."""
    images: NDArray[np.uint8]
    """(T, H, W, 3) RGB: centre crops of the first frames."""
    cuts: frozenset[int]
    """Indices of the frames that begin a scene, except frame 0."""

    def excerpt(self, start: int, stop: int, *, window: tuple[int, int]) -> Clip:
        """Return a centre crop of frames ``start`` to ``stop`` (exclusive)."""
        cuts = frozenset(cut - start for cut in self.cuts if start < cut < stop)
        images = np.ascontiguousarray(_middle(self.images[start:stop], window))
        return Clip(self.name, self.sha256, self.size, images, cuts)


def read_clip(path: Path) -> Clip:
    """Read a video or an image folder for calibration.

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
            f"at least {MIN_FRAMES} are needed for states to propagate: use a longer clip"
        )
    return Clip(path.name, sha256(path), size, np.stack(images), frozenset(cuts))


def _middle(images: NDArray[np.uint8], window: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a centre crop of (..., H, W, 3), at most as large as the window."""
    height, width = images.shape[-3:-1]
    top, left = max(0, height - window[0]) // 2, max(0, width - window[1]) // 2
    return images[..., top : top + window[0], left : left + window[1], :]


def upscale_clip(engine: Engine, clip: Clip) -> NDArray[np.uint8]:
    """Upscale a clip as in a normal run: (T, 4H, 4W, 3) RGB."""
    upscaled = []
    with Stream(engine, Settings(), size=clip.images.shape[1:3]) as stream:
        for number, image in enumerate(clip.images):
            upscaled += [f.image for f in stream.push(image, cut=number in clip.cuts)]
        upscaled += [f.image for f in stream.flush()]
    return np.stack(upscaled)


def record_inputs(
    engine: Engine, clip: Clip, graphs: Sequence[str], *, every: int
) -> tuple[NDArray[np.uint8], dict[str, list[dict[str, NDArray[Any]]]]]:
    """Upscale a clip and record the inputs of some graphs.

    Args:
        engine: runs the clip; is left open.
        clip: the clip to run.
        graphs: names of the graphs to record.
        every: record every this many-th run of a graph.

    Returns:
        The result of :func:`upscale_clip`, and the samples of each graph: per recorded run, the
        (N, ...) arrays by input name.
    """
    samples: dict[str, list[dict[str, NDArray[Any]]]] = {graph: [] for graph in graphs}
    runs: Counter[str] = Counter()

    def record(graph: str, inputs: Mapping[str, Array], outputs: Sequence[Array]) -> None:
        runs[graph] += 1
        if graph in samples and runs[graph] % every == 0:
            samples[graph].append(
                {name: engine.download(array).copy() for name, array in inputs.items()}
            )

    return upscale_clip(TappedEngine(engine, record), clip), samples
