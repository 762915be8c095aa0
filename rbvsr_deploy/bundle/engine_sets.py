"""Describes the compiled engines of a bundle: their machine and the frame sizes they support."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rbvsr_deploy.graphs import (
    MOST_VALUES,
    SCALE,
    GraphSpec,
    blocks_of,
    most_blocks,
    most_frames,
    widest_map,
)

__all__ = ["INTERFACE", "EngineSet", "Flavour", "ShapeProfile", "Shapes"]

Flavour = Literal["tensorrt", "tensorrt-rtx"]

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, usual and largest shape of an input."""

INTERFACE = 2
"""Version of what the runtime expects of engines: their graphs' inputs and outputs, and how these
are stored. Engines of version 1 take all states as (N, C, H, W), later ones those in float16 as
(N, H, W, C).
"""

_STEPS = ("backward", "forward")
_IN_BANDS = ("reconstruct", "emit", "blend", "resize")


@dataclass(frozen=True)
class ShapeProfile:
    """Holds the frame sizes, (H, W), and the batch size that engines are compiled for. Engines
    accept any size between the smallest and the largest, and are tuned for the usual one.

    Raises:
        ValueError: the sizes are not in that order, or a number is not positive.
    """

    min_size: tuple[int, int] = (64, 64)
    opt_size: tuple[int, int] = (180, 320)
    max_size: tuple[int, int] = (720, 1280)
    batch: int = 4
    """Largest and usual number of frames per run of the graphs without recurrence."""
    band: int | None = None
    """Most rows per run of ``reconstruct`` and ``emit``; ``None`` for whole frames."""

    def __post_init__(self) -> None:
        if self.batch < 1 or (self.band is not None and self.band < 1):
            raise ValueError(f"the batch and the band must be 1 or more, got {self}")
        for least, usual, most in zip(self.min_size, self.opt_size, self.max_size, strict=True):
            if not 1 <= least <= usual <= most:
                raise ValueError(
                    f"sizes must be 1 or more, and the smallest <= the usual <= the largest "
                    f"in both directions, got {self}"
                )

    def __str__(self) -> str:
        sizes = (f"{w}x{h}" for h, w in (self.min_size, self.opt_size, self.max_size))
        rows = "" if self.band is None else f"-r{self.band}"
        return f"{'_'.join(sizes)}-b{self.batch}{rows}"

    def covers(self, height: int, width: int, *, batch: int = 1) -> bool:
        """Return whether the profile covers a batch of frames of a size."""
        within = (
            least <= size <= most
            for least, size, most in zip(self.min_size, (height, width), self.max_size, strict=True)
        )
        return all(within) and batch <= self.batch

    def shapes(
        self, spec: GraphSpec, *, channels: int, head_channels: int | None = None
    ) -> dict[str, Shapes]:
        """Return the shapes of a graph's inputs by input name.

        The recurrent steps take one frame at a time, and ``flow`` two pairs for each frame of a
        batch: one for each direction. ``reconstruct`` and the graphs after it also run on bands
        of a frame, which may be a single row high. No map of the graph has more than
        :data:`~rbvsr_deploy.graphs.MOST_VALUES` values: where the largest frames are too large for
        the batch, the graph takes fewer of them, and those that run on bands fewer rows.

        Args:
            spec: of the graph.
            channels: C.
            head_channels: see :func:`rbvsr_deploy.graphs.head_channels`; if ``None``, those of the
                published head.

        Raises:
            ValueError: one of the largest frames is too large for the graph.
        """
        head = SCALE**2 * channels if head_channels is None else head_channels
        widest = widest_map(spec.name, channels=channels, head_channels=head)
        batch, rows = self._most_at_once(spec.name, widest)
        found: dict[str, list[tuple[int, ...]]] = {item.name: [] for item in spec.inputs}
        for which, (height, width) in enumerate((self.min_size, self.opt_size, self.max_size)):
            least = 1 if which == 0 and spec.name in _IN_BANDS else height
            sizes = {"N": 1 if which == 0 else batch, "C": channels}
            sizes |= {"H": min(least, rows), "W": width}
            sizes |= {"4H": SCALE * sizes["H"], "4W": SCALE * width}
            sizes |= _blocks("RPK", sizes["H"], which) | _blocks("SQL", width, which)
            for item in spec.inputs:
                shape = (size if isinstance(size, int) else sizes[size] for size in item.shape)
                found[item.name].append(tuple(shape))
        return {name: (shapes[0], shapes[1], shapes[2]) for name, shapes in found.items()}

    def _most_at_once(self, graph: str, widest: int) -> tuple[int, int]:
        """Return the most frames of the largest width, and the most rows, per run of a graph."""
        rows, width = self.max_size
        if graph in _IN_BANDS:
            rows = min(rows, self.band or rows, MOST_VALUES // (widest * width))
        most = most_frames(graph, max(1, rows), width, widest=widest)
        if min(most, rows) < 1:
            raise ValueError(
                f"frames of {width}x{self.max_size[0]} are too large for a GPU: a map of the graph "
                f"'{graph}' would have more than {MOST_VALUES} values"
            )
        frames = 2 * self.batch if graph == "flow" else self.batch
        return 1 if graph in _STEPS else min(frames, most), rows


def _blocks(names: str, size: int, which: int) -> dict[str, int]:
    """Return the smallest (0), usual (1) or largest (2) sizes of the blocks that ``resize`` makes
    of ``size`` rows or columns, by three names.
    """
    usual = blocks_of(2 * size, ratio=SCALE / 2)
    limits = most_blocks(size).values()
    return {
        name: (least, middle, most)[which]
        for name, middle, (least, most) in zip(names, usual, limits, strict=True)
    }


@dataclass(frozen=True)
class EngineSet:
    """Describes one engine per graph, compiled by one TensorRT version for one kind of GPU."""

    flavour: Flavour
    version: str
    """TensorRT version, such as "10.3.0"."""
    compute_capability: str
    """Compute capability of the GPU, such as "8.9"."""
    platform: str
    """Operating system and processor, such as "linux-x86_64"."""
    profile: ShapeProfile
    version_compatible: bool = False
    """Later versions of the same TensorRT may run it."""
    hardware_compatible: bool = False
    """Any GPU of compute capability 8.0 or higher may run it."""
    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Number of layers per graph, layer kind and type (such as "CONVOLUTION float16") in the
    parsed network.
    """
    psnr: Mapping[str, float] = field(default_factory=dict)
    """PSNR in dB of every graph's outputs against those of ONNX Runtime on the CPU; empty if the
    engines were not run where they were compiled.
    """
    milliseconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Milliseconds of a run at the usual size by graph, in ``int8`` and in ``float16``, for the
    graphs in int8; empty if they were not timed where they were compiled.
    """
    interface: int = INTERFACE
    """See :data:`INTERFACE`; engines of another version are not used."""
    signature: str = ""
    """Signature of the user who compiled it, in hexadecimal, from
    ``engines/tensorrt/signing.py``; empty if unsigned.
    """

    @property
    def name(self) -> str:
        """Name of the set's folder in a bundle."""
        capability = self.compute_capability.replace(".", "")
        where = f"{self.platform}-sm{capability}"
        return f"{self.flavour}-{self.version}-{where}-{self.profile}"

    @property
    def in_float16(self) -> tuple[str, ...]:
        """Names of the graphs in int8 whose engines are in float16, because that was faster."""
        return tuple(g for g, t in self.milliseconds.items() if t["float16"] < t["int8"])

    def timings(self) -> list[str]:
        """Describe how long each graph in int8 takes, and which engine is used."""
        return [
            f"{graph}: {took['int8']:.3g} ms in int8, {took['float16']:.3g} ms in float16; "
            f"{'float16' if graph in self.in_float16 else 'int8'} is used"
            for graph, took in self.milliseconds.items()
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EngineSet:
        """Restore a set from the values of :meth:`as_dict`, after a round trip through JSON.

        Raises:
            TypeError, ValueError, KeyError: the values do not describe an engine set.
        """
        profile = values["profile"]
        names = ("min_size", "opt_size", "max_size")
        smallest, usual, largest = ((int(h), int(w)) for h, w in (profile[name] for name in names))
        band = profile.get("band")
        sizes = ShapeProfile(
            smallest,
            usual,
            largest,
            batch=int(profile["batch"]),
            band=None if band is None else int(band),
        )
        interface = int(values.get("interface", 1))
        return cls(**{**values, "profile": sizes, "interface": interface})
