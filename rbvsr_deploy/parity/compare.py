"""Compares two engines: measures how far one network's results differ, over a clip and per graph.

Each engine runs the clip through its own stream, in step with the other, so that only a few frames
are held at once. From time to time the second engine repeats a run of a graph on the inputs that
the reference has just used, from the middle of the recurrence: an error then shows in the graph
that causes it, not in those that follow.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines import Engine, Network, open_engine
from rbvsr_deploy.engines.base import Array
from rbvsr_deploy.engines.tap import OnRun, TappedEngine
from rbvsr_deploy.errors import ExportError, MediaError, RbvsrError
from rbvsr_deploy.files import sha256
from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.parity.comparison import (
    Comparison,
    SceneDecisions,
    Tolerance,
    default_tolerance,
    find_failures,
)
from rbvsr_deploy.parity.differences import ImageErrorSum
from rbvsr_deploy.parity.graph_comparer import GraphComparer
from rbvsr_deploy.pixels import eight_bits
from rbvsr_deploy.runtime.scenes import CutDetector
from rbvsr_deploy.runtime.stream import SceneRecord, Settings, Stage, Stream, UpscaledFrame
from rbvsr_deploy.video import Source, open_source
from rbvsr_deploy.video.images import write_image

__all__ = [
    "FRAMES",
    "Comparison",
    "Tolerance",
    "compare_engines",
    "parse_model",
    "verify_bundle",
]

FRAMES = 30
"""Default number of frames of a clip to compare."""

_SAMPLES = 8
"""Number of frames that the comparison of single graphs is spread over."""


def parse_model(text: str) -> tuple[Path, str]:
    """Split a model argument, "model.plan" or "model.plan@cpu", into the file and its device.

    Everything after the last "@" in the file name is the device. A file with an "@" in its name is
    therefore given with a device, such as "me@home.plan@auto".

    Returns:
        The path, and the device for :func:`rbvsr_deploy.engines.open_engine`, "auto" if none is
        given.

    Raises:
        ValueError: there is an "@", but no file before it or no device after it.
    """
    path = Path(text)
    name, at, device = path.name.rpartition("@")
    if not at:
        return path, "auto"
    if not name or not device:
        raise ValueError(
            f"{text!r} lacks the {'device after' if name else 'file before'} its '@': write "
            "FILE or FILE@DEVICE, such as model.plan@cpu"
        )
    return path.with_name(name), device


def compare_engines(
    reference: Engine,
    other: Engine,
    source: Source,
    *,
    frames: int = FRAMES,
    cleanings: int | None = None,
    memory: int | None = None,
    tolerance: Tolerance | None = None,
    worst: Path | None = None,
    progress: Callable[[Stage, int, int | None], None] = lambda stage, done, total: None,
) -> Comparison:
    """Run a clip through two engines and measure how far apart they are.

    Args:
        reference: the engine to compare with.
        other: another engine, precision or bundle of a network of the same shape.
        source: the clip; cuts are detected once, for both.
        frames: compare at most this many frames from the clip's beginning.
        cleanings: fixed number of cleaning passes instead of each engine's own decision.
        memory: bytes that each of the two may use on its device; a quarter of the free memory if
            ``None``, as they may share one. The figures do not depend on it.
        tolerance: the allowed difference; chosen by the precisions if ``None``.
        worst: path of an image of the frame with the lowest PSNR: reference, other, and their
            absolute difference, amplified until its largest value is white, side by side.
        progress: called with a stage, the frames it has done in both engines together, and their
            total if known.

    Raises:
        RbvsrError: the networks differ, or out of memory.
        MediaError: the clip cannot be read to its end, or the image not written.
        EngineError: an engine failed.
        ValueError: ``frames``, ``cleanings`` or ``memory`` is out of range.
    """
    if frames < 1:
        raise ValueError(f"frames must be 1 or more, got {frames}")
    _check_networks(reference, other)
    total = None if source.frame_count is None else 2 * min(frames, source.frame_count)
    done: Counter[Stage] = Counter()

    def count(stage: Stage, more: int) -> None:
        done[stage] += more
        progress(stage, done[stage], total)

    size = (source.height, source.width)
    graphs = GraphComparer(reference, other, every=math.ceil((total or 2 * frames) / 2 / _SAMPLES))
    compared = ImageErrorSum()
    detector = CutDetector()
    sides = [
        _Side(
            engine,
            Settings(cleanings=cleanings, memory=memory or engine.free_memory() // 4),
            size=size,
            on_run=on_run,
            progress=count,
        )
        for engine, on_run in ((reference, graphs.add), (other, None))
    ]
    with sides[0].stream as stream, sides[1].stream as other_stream:
        for frame in itertools.islice(source, frames):
            image = eight_bits(frame.image)
            cut = detector.is_cut(image)
            compared.add(
                sides[0].frames(stream.push(image, cut=cut)),
                sides[1].frames(other_stream.push(image, cut=cut)),
            )
        compared.add(sides[0].frames(stream.flush()), sides[1].frames(other_stream.flush()))
    if not compared.per_frame:
        raise MediaError(f"{source.path} has no frames to compare: give another clip")
    if worst is not None:
        write_image(worst, image=compared.worst_image())
    tolerance = tolerance or default_tolerance(reference.network, other.network)
    errors, images, of_graphs = compared.errors.figures(), compared.images(), graphs.figures()
    return Comparison(
        reference=reference.describe(),
        other=other.describe(),
        clip=str(source.path),
        frames=len(compared.per_frame),
        width=source.width,
        height=source.height,
        pictures=errors,
        images=images,
        per_frame=compared.per_frame,
        worst_frame=compared.worst_frame,
        graphs=of_graphs,
        scenes=[
            SceneDecisions(
                a.first_frame, a.frames, (a.cleanings, b.cleanings), (a.residues, b.residues)
            )
            for a, b in zip(sides[0].scenes, sides[1].scenes, strict=True)
        ],
        tolerance=tolerance,
        failures=find_failures(errors, images, of_graphs, tolerance),
    )


def verify_bundle(
    bundle: Path,
    checkpoint: Path,
    clip: Path,
    *,
    frames: int = FRAMES,
    tolerance: Tolerance | None = None,
) -> dict[str, Any]:
    """Compare a bundle with the float32 torch model it was exported from.

    Args:
        bundle: path of the bundle; may be a temporary file with the final name.
        checkpoint: path of the model.
        clip: video, image or image folder.
        frames, tolerance: see :func:`compare_engines`.

    Returns:
        A record for the manifest: the clip and its SHA-256, the engines, and the figures of
        :class:`Comparison`.

    Raises:
        ExportError: they differ by more than is allowed.
        RbvsrError: as :func:`compare_engines`; or the clip or a model cannot be opened.
    """
    with (
        open_source(clip) as source,
        open_engine(checkpoint) as reference,
        open_engine(bundle, size=lambda: (source.height, source.width)) as other,
    ):
        compared = compare_engines(reference, other, source, frames=frames, tolerance=tolerance)
    if compared.failures:
        raise ExportError(
            f"on {clip} the bundle differs from the torch model by more than is allowed: "
            f"{'; '.join(compared.failures)}"
        )
    return {
        "clip": clip.name,
        "sha256": sha256(clip),
        "frames": compared.frames,
        "size": [compared.width, compared.height],
        "engine": str(compared.other),
        "reference": str(compared.reference),
        "cleanings": [list(scene.cleanings) for scene in compared.scenes],
        "pictures": asdict(compared.pictures),
        "images": asdict(compared.images),
        "graphs": {name: asdict(figures) for name, figures in compared.graphs.items()},
        "tolerance": asdict(compared.tolerance),
    }


def _check_networks(reference: Engine, other: Engine) -> None:
    shapes = [_network_shape(engine.network) for engine in (reference, other)]
    if shapes[0] != shapes[1]:
        names = [engine.describe().model for engine in (reference, other)]
        raise RbvsrError(
            f"{names[0]} is {shapes[0]} and {names[1]} is {shapes[1]}: only engines and precisions "
            "of one network can be compared; give two files made from the same checkpoint"
        )


def _network_shape(network: Network) -> str:
    name = "a RealBasicVSR" if network.has_cleaning else "a BasicVSR"
    return f"{name} of {network.channels} channels with a head of {network.head_channels}"


class _Side:
    """Runs the clip through one engine, and captures upscaled frames before they become uint8."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        size: tuple[int, int],
        on_run: OnRun | None,
        progress: Callable[[Stage, int], None],
    ) -> None:
        self._engine = engine
        self._compare = on_run
        self._height = size[0]
        self._waiting: deque[NDArray[np.float32]] = deque()
        self._bands: list[NDArray[np.float32]] = []
        self._rows = 0  # of the input, captured so far
        self.scenes: list[SceneRecord] = []
        self.stream = Stream(
            TappedEngine(engine, self._on_run),
            settings,
            size=size,
            any_values=True,  # counted
            progress=progress,
            on_scene=self.scenes.append,
        )
        self._plan = self.stream.plan

    def frames(
        self, upscaled: Iterator[UpscaledFrame]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
        """Yield each frame before and after it became uint8: (3, 4H, 4W) and (4H, 4W, 3)."""
        for frame in upscaled:
            yield self._waiting.popleft(), eight_bits(frame.image)

    def _on_run(self, graph: str, arrays: Mapping[str, Array], outputs: Sequence[Array]) -> None:
        if graph == "emit":
            self._capture(self._engine.download(arrays["picture"]))
        if self._compare is not None:
            self._compare(graph, arrays, outputs)

    def _capture(self, output: NDArray[Any]) -> None:
        """Take whole frames, or their next band with a halo above and below."""
        if self._plan is not self.stream.plan:
            # The device ran out of memory: frames that did not come out are upscaled again.
            self._plan = self.stream.plan
            self._waiting.clear()
            self._bands, self._rows = [], 0
        top, bottom = self._rows, min(self._rows + self._plan.band, self._height)
        above = min(top, self._engine.network.halo)
        band = output[:, :, SCALE * above : SCALE * (above + bottom - top)]
        self._bands.append(band.astype(np.float32))
        self._rows = bottom
        if bottom == self._height:
            self._waiting.extend(np.concatenate(self._bands, axis=2))
            self._bands, self._rows = [], 0
