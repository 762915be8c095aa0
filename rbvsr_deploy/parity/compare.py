"""Parity of two engines: how far one network's results are apart, over a clip and graph by graph.

Both engines run the clip through a stream of their own, in step with each other, so that no more
than a few pictures are held at once. Now and then a graph is run once more by the second engine, on
what the reference has just given the same graph, taken from the middle of its recurrence: an error
shows in the graph that makes it, and not in those that follow.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines import Description, Engine, Network, open_engine
from rbvsr_deploy.engines.base import Array
from rbvsr_deploy.errors import (
    DeviceMemoryError,
    EngineError,
    ExportError,
    MediaError,
    RbvsrError,
)
from rbvsr_deploy.files import sha256
from rbvsr_deploy.graphs import GRAPHS, SCALE, graph_names
from rbvsr_deploy.parity.differences import (
    Errors,
    ErrorSum,
    FrameErrors,
    ImageErrors,
    PictureErrors,
)
from rbvsr_deploy.pixels import eight_bits
from rbvsr_deploy.runtime.propagation import HALO
from rbvsr_deploy.runtime.scenes import CutDetector
from rbvsr_deploy.runtime.stream import Picture, SceneRecord, Settings, Stage, Stream
from rbvsr_deploy.video import Source, open_source
from rbvsr_deploy.video.images import write_image

__all__ = [
    "FRAMES",
    "Comparison",
    "GraphErrors",
    "SceneDecisions",
    "Tolerance",
    "compare_engines",
    "default_tolerance",
    "parse_model",
    "verify_bundle",
]

FRAMES = 30
"""How many frames of a clip are compared unless told otherwise."""

_SAMPLES = 8
"""Over how many frames of the clip the comparison of single graphs is spread."""


@dataclass(frozen=True)
class GraphErrors:
    """Of one graph, given the same inputs in both engines."""

    calls: int
    outputs: dict[str, Errors]
    """By the output's name."""


@dataclass(frozen=True)
class SceneDecisions:
    """A scene, and what dynamic refinement decided for it in the reference and in the other."""

    first_frame: int
    frames: int
    cleanings: tuple[int, int]
    residues: tuple[list[float], list[float]]
    """Mean absolute change of each cleaning pass, on the 0-255 scale."""

    @property
    def agree(self) -> bool:
        """Whether both were cleaned equally often."""
        return self.cleanings[0] == self.cleanings[1]


@dataclass(frozen=True)
class Tolerance:
    """What two engines may differ by, over all pictures before they become uint8; becoming uint8
    may add one level.

    Raises:
        ValueError: a bound is negative.
    """

    min_psnr: float | None = None
    """In dB."""
    max_difference: float | None = None
    """In units of the range [0, 1]."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")


@dataclass(frozen=True)
class Comparison:
    """How far a second engine is from the reference."""

    reference: Description
    other: Description
    clip: str
    """Path of the video, picture or folder."""
    frames: int
    width: int
    """Of the clip, in pixels."""
    height: int
    pictures: Errors
    """Over all pictures, before they are clamped and become uint8."""
    images: ImageErrors
    per_frame: list[FrameErrors]
    worst_frame: int
    """Number of the frame with the lowest PSNR."""
    graphs: dict[str, GraphErrors]
    """In the order a frame goes through them."""
    scenes: list[SceneDecisions]
    tolerance: Tolerance
    failures: list[str]
    """What is out of tolerance, a clause each; empty if the two agree."""


def parse_model(text: str) -> tuple[Path, str]:
    """A model file and the device it is to run on: "model.plan" or "model.plan@cpu".

    What follows the last "@" of the last part of the path is always the device. A file with an "@"
    in its name is therefore given with a device, such as "me@home.plan@auto".

    Returns:
        The path, and the device for :func:`rbvsr_deploy.engines.open_engine`, "auto" if none is
        given.

    Raises:
        ValueError: there is an "@", but no file before it or no device behind it.
    """
    path = Path(text)
    name, at, device = path.name.rpartition("@")
    if not at:
        return path, "auto"
    if not name or not device:
        raise ValueError(
            f"{text!r} lacks the {'device behind' if name else 'file before'} its '@': write "
            "FILE or FILE@DEVICE, such as model.plan@cpu"
        )
    return path.with_name(name), device


def default_tolerance(reference: Network, other: Network) -> Tolerance:
    """What is allowed between two precisions: 1/1000 of the range in float32, 50 dB where one is
    float16, 40 dB where one is quantised.
    """
    if reference.quantised or other.quantised:
        return Tolerance(min_psnr=40.0)
    if "float16" in (reference.precision, other.precision):
        return Tolerance(min_psnr=50.0)
    return Tolerance(max_difference=1e-3)


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
        reference: what the other is held against.
        other: another engine, precision or bundle of a network of the same shape.
        source: the clip; cuts in it are looked for once, for both.
        frames: of the clip's beginning that are compared at most.
        cleanings: fixed number of cleaning passes instead of each engine's own decision.
        memory: bytes that each of the two may use on its device; a quarter of what is free if
            ``None``, as they may share one. Not a matter of the figures.
        tolerance: what is allowed; by the precisions if ``None``.
        worst: where to write a picture of the frame with the lowest PSNR: reference, other, and
            their absolute difference, amplified until its largest value is white, side by side.
        progress: called with a stage, the frames it has done in both engines together, and their
            total where it is known.

    Raises:
        RbvsrError: the networks differ, or the memory does not suffice.
        MediaError: the clip cannot be read to its end, or the picture not be written.
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
    graphs = _Graphs(reference, other, every=math.ceil((total or 2 * frames) / 2 / _SAMPLES))
    pictures = PictureErrors()
    detector = CutDetector()
    sides = [
        _Side(
            engine,
            Settings(cleanings=cleanings, memory=memory or engine.free_memory() // 4),
            size=size,
            on_call=on_call,
            progress=count,
        )
        for engine, on_call in ((reference, graphs.add), (other, None))
    ]
    with sides[0].stream as stream, sides[1].stream as other_stream:
        for frame in itertools.islice(source, frames):
            image = eight_bits(frame.image)
            cut = detector.is_cut(image)
            pictures.add(
                sides[0].pictures(stream.push(image, cut=cut)),
                sides[1].pictures(other_stream.push(image, cut=cut)),
            )
        pictures.add(sides[0].pictures(stream.flush()), sides[1].pictures(other_stream.flush()))
    if not pictures.per_frame:
        raise MediaError(f"{source.path} holds no frame to compare: give another clip")
    if worst is not None:
        write_image(worst, image=pictures.worst_picture())
    tolerance = tolerance or default_tolerance(reference.network, other.network)
    errors, images, of_graphs = pictures.errors.figures(), pictures.images(), graphs.figures()
    return Comparison(
        reference=reference.describe(),
        other=other.describe(),
        clip=str(source.path),
        frames=len(pictures.per_frame),
        width=source.width,
        height=source.height,
        pictures=errors,
        images=images,
        per_frame=pictures.per_frame,
        worst_frame=pictures.worst_frame,
        graphs=of_graphs,
        scenes=[
            SceneDecisions(
                a.first_frame, a.frames, (a.cleanings, b.cleanings), (a.residues, b.residues)
            )
            for a, b in zip(sides[0].scenes, sides[1].scenes, strict=True)
        ],
        tolerance=tolerance,
        failures=_failures(errors, images, of_graphs, tolerance),
    )


def verify_bundle(
    bundle: Path,
    checkpoint: Path,
    clip: Path,
    *,
    frames: int = FRAMES,
    tolerance: Tolerance | None = None,
) -> dict[str, Any]:
    """Compare a bundle with the float32 torch model it was made from.

    Args:
        bundle: may be a temporary file of the final name.
        checkpoint: the model.
        clip: video, picture or folder of pictures.
        frames, tolerance: see :func:`compare_engines`.

    Returns:
        Record for the manifest: the clip and its SHA-256, the engines, and the figures of
        :class:`Comparison`.

    Raises:
        ExportError: they differ by more than is allowed.
        RbvsrError: as :func:`compare_engines`; and the clip or a model cannot be opened.
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
            f"{names[0]} is {shapes[0]} and {names[1]} is {shapes[1]}: only engines and "
            "precisions of one network can be compared, so give two files made from one checkpoint"
        )


def _network_shape(network: Network) -> str:
    name = "a RealBasicVSR" if network.has_cleaning else "a BasicVSR"
    return f"{name} of {network.channels} channels with a head of {network.head_channels}"


class _Side:
    """One engine with its stream, and its pictures caught on their way to becoming uint8. It takes
    the engine's place in the stream; all but ``run`` is the engine's own.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        size: tuple[int, int],
        on_call: Callable[[str, dict[str, Array], Sequence[Array]], None] | None,
        progress: Callable[[Stage, int], None],
    ) -> None:
        self._engine = engine
        self._on_call = on_call
        self._height = size[0]
        self._waiting: deque[NDArray[np.float32]] = deque()
        self._bands: list[NDArray[np.float32]] = []
        self._rows = 0  # of the input, whose bands are there
        self.scenes: list[SceneRecord] = []
        self.stream = Stream(
            cast(Engine, self),
            settings,
            size=size,
            progress=progress,
            on_scene=self.scenes.append,
        )
        self._plan = self.stream.plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(
        self, graph: str, *, into: Sequence[Array] | None = None, **arrays: Array
    ) -> tuple[Array, ...]:
        outputs = self._engine.run(graph, into=into, **arrays)
        if graph == "emit":
            self._catch(self._engine.download(arrays["picture"]))
        if self._on_call is not None:
            self._on_call(graph, arrays, outputs)
        return outputs

    def pictures(
        self, made: Iterator[Picture]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
        """Each picture before and after it became uint8: (3, 4H, 4W) and (4H, 4W, 3)."""
        for picture in made:
            yield self._waiting.popleft(), eight_bits(picture.image)

    def _catch(self, picture: NDArray[Any]) -> None:
        """Take whole pictures, or the next band of some, with a halo above and below."""
        if self._plan is not self.stream.plan:
            # The device's memory did not suffice: pictures that did not come out are made again.
            self._plan = self.stream.plan
            self._waiting.clear()
            self._bands, self._rows = [], 0
        top, bottom = self._rows, min(self._rows + self._plan.band, self._height)
        above = min(top, HALO)
        band = picture[:, :, SCALE * above : SCALE * (above + bottom - top)]
        self._bands.append(band.astype(np.float32))
        self._rows = bottom
        if bottom == self._height:
            self._waiting.extend(np.concatenate(self._bands, axis=2))
            self._bands, self._rows = [], 0


class _Graphs:
    """Compares single graphs on the inputs that the reference gives them, one item of a batch at
    a time.

    Args:
        every: after how many items a graph is compared again.
    """

    def __init__(self, reference: Engine, other: Engine, *, every: int) -> None:
        self._reference = reference
        self._other = other
        self._every = every
        self._items: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._sums = {
            name: {
                item.name: ErrorSum(peak=255.0 if item.dtype == "uint8" else None)
                for item in GRAPHS[name].outputs
            }
            for name in graph_names(has_cleaning=reference.network.has_cleaning)
        }

    def add(self, graph: str, arrays: dict[str, Array], outputs: Sequence[Array]) -> None:
        """A call of the reference, which has been made."""
        spec = GRAPHS[graph]
        self._items[graph] += int(arrays[spec.inputs[0].name].shape[0])
        if self._items[graph] // self._every < self._calls[graph] + 1:
            return
        self._calls[graph] += 1
        inputs = {}
        for item in spec.inputs:
            values = self._first(self._reference, arrays[item.name])
            with np.errstate(over="ignore"):
                values = values.astype(item.numpy_dtype(self._other.network.precision))
            inputs[item.name] = self._other.upload(values)
        try:
            results = self._other.run(graph, **inputs)
        except DeviceMemoryError as error:
            # Of another kind: the reference's stream would take it for its own and do with less.
            raise EngineError(f"comparing one whole frame, {error}") from error
        for item, want, got in zip(spec.outputs, outputs, results, strict=True):
            self._sums[graph][item.name].add(
                self._first(self._reference, want), self._other.download(got)
            )

    def figures(self) -> dict[str, GraphErrors]:
        return {
            name: GraphErrors(
                self._calls[name], {output: total.figures() for output, total in sums.items()}
            )
            for name, sums in self._sums.items()
            if self._calls[name]
        }

    @staticmethod
    def _first(engine: Engine, array: Array) -> NDArray[Any]:
        return engine.download(engine.part(array, 0, 1))


def _failures(
    pictures: Errors, images: ImageErrors, graphs: dict[str, GraphErrors], tolerance: Tolerance
) -> list[str]:
    """What is out of tolerance, by how much, and where it comes from."""
    broken = [name for name, graph in graphs.items() if _not_finite(graph)]
    if pictures.not_finite or broken:
        where = f", first made by the graph '{broken[0]}'" if broken else ""
        return [f"{pictures.not_finite} values of the pictures are NaN or infinite{where}"]
    failures = []
    if tolerance.min_psnr is not None and pictures.psnr < tolerance.min_psnr:
        failures.append(
            f"the pictures have a PSNR of {pictures.psnr:.1f} dB, and {tolerance.min_psnr:g} dB "
            "are required"
        )
    if tolerance.max_difference is not None and pictures.max_difference > tolerance.max_difference:
        failures.append(
            f"the pictures differ by up to {pictures.max_difference:.2g}, and "
            f"{tolerance.max_difference:g} is allowed"
        )
    if images.max_levels > 255 * pictures.max_difference + 1:
        failures.append(
            f"as uint8 the pictures differ by up to {images.max_levels} levels, more than they do "
            "before"
        )
    if failures:
        psnr, name = min(
            (errors.psnr, name)
            for name, graph in graphs.items()
            for errors in graph.outputs.values()
        )
        failures.append(f"on equal inputs the graph '{name}' differs most, {psnr:.1f} dB")
    return failures


def _not_finite(graph: GraphErrors) -> bool:
    return any(errors.not_finite for errors in graph.outputs.values())
