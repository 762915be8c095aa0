"""Defines the graphs: the contract between export, engines and runtime.

The network is split at its recurrence and its decisions, so that each graph is a pure function
with dynamic N, H and W: state goes in, state comes out, and the runtime owns it. C is the number of
mid channels; ``features`` is the bundle's float type. Flow is float32 in every precision.

Seven graphs make up the network. Three more are :data:`OPTIONAL`: they have no weights, bundles of
earlier versions lack them, and they run only where the output is to be softer than the network
makes it, or of another size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "GRAPHS",
    "MAX_CLEANINGS",
    "MOST_ROWS",
    "MOST_VALUES",
    "OPTIONAL",
    "PRECISIONS",
    "RATIOS",
    "REACH",
    "SCALE",
    "STATES",
    "GraphSpec",
    "Precision",
    "TensorSpec",
    "blocks_of",
    "graph_names",
    "head_channels",
    "most_blocks",
    "most_frames",
    "named_sizes",
    "widest_map",
]

Precision = Literal["float32", "float16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16")

SCALE = 4
"""Factor by which the network enlarges height and width."""

MAX_CLEANINGS = 3
"""Most cleaning passes of dynamic refinement, as in the published code."""

MOST_VALUES = 2**31 - 1
"""Most values of one tensor on a GPU: TensorRT and cuDNN compute addresses in 32 bits. TensorRT
before 10.13 refuses larger tensors, and later versions may read and write the wrong places.
"""

RATIOS = (0.5, 8.0)
"""Fewest and most rows of the upscaled frame for one of the resized frame."""

REACH = 3
"""Rows on either side that a row of the resized frame is made from, in rows of the frame that has
fewer: the reach of the Lanczos filter."""

MOST_ROWS = 48
"""Most rows in a block of the resized frame."""

_TAPS, _MOST_TAPS = 64, 96
# Rows of the upscaled frame that a block is made from; more where it has over four for each row.


@dataclass(frozen=True)
class TensorSpec:
    """Describes an input or output of a graph."""

    name: str
    dtype: Literal["uint8", "int32", "float32", "features"]
    """``features``: float32 or float16, the bundle's precision."""
    shape: tuple[int | str, ...]
    """Integers, or names: ``N``, ``H``, ``W``, ``C``, ``4H``, ``4W``; and of a resized frame ``RP``
    and ``SQ``: it has ``R`` blocks of ``P`` rows, each made from ``K`` rows of the upscaled frame,
    and ``S`` blocks of ``Q`` columns, each made from ``L``."""

    def numpy_dtype(self, precision: Precision) -> str:
        """Return the name of the NumPy dtype in a bundle of that precision."""
        return precision if self.dtype == "features" else self.dtype


@dataclass(frozen=True)
class GraphSpec:
    """Describes one graph: its inputs and outputs, in order."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def sizes(self, input_shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Return the sizes in the inputs' shapes, and those that follow from them, by name."""
        sizes = {}
        for item in self.inputs:
            for name, size in zip(item.shape, input_shapes[item.name], strict=True):
                if isinstance(name, str):
                    sizes[name] = size
        return _with_products(sizes)

    def output_shapes(
        self, input_shapes: Mapping[str, tuple[int, ...]], *, channels: int
    ) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the outputs.

        Args:
            input_shapes: shapes of the inputs, by name.
            channels: C.
        """
        sizes = {"C": channels, **self.sizes(input_shapes)}
        return tuple(
            tuple(size if isinstance(size, int) else sizes[size] for size in item.shape)
            for item in self.outputs
        )


def _with_products(sizes: dict[str, int]) -> dict[str, int]:
    """Add the sizes that are products of others."""
    if "H" in sizes:
        sizes |= {"4H": SCALE * sizes["H"], "4W": SCALE * sizes["W"]}
    if "R" in sizes:
        sizes |= {"RP": sizes["R"] * sizes["P"], "SQ": sizes["S"] * sizes["Q"]}
    return sizes


def _frame(name: str) -> TensorSpec:
    return TensorSpec(name, "features", ("N", 3, "H", "W"))


def _state(name: str) -> TensorSpec:
    return TensorSpec(name, "features", ("N", "C", "H", "W"))


_FLOW = TensorSpec("flow", "float32", ("N", 2, "H", "W"))
_PICTURE = TensorSpec("picture", "features", ("N", 3, "4H", "4W"))
_AMOUNT = TensorSpec("amount", "float32", (1,))
_STEP = (_frame("frame"), _state("state"), _FLOW)

GRAPHS: dict[str, GraphSpec] = {
    spec.name: spec
    for spec in (
        GraphSpec(
            "ingest", (TensorSpec("image", "uint8", ("N", "H", "W", 3)),), (_frame("frame"),)
        ),
        GraphSpec(
            "clean",
            (_frame("frame"),),
            (_frame("cleaned"), TensorSpec("residue", "float32", ("N",))),
        ),
        GraphSpec("flow", (_frame("reference"), _frame("neighbour")), (_FLOW,)),
        GraphSpec("backward", _STEP, (_state("new_state"),)),
        GraphSpec("forward", _STEP, (_state("new_state"),)),
        GraphSpec(
            "reconstruct",
            (_frame("frame"), _state("backward_state"), _state("forward_state")),
            (_PICTURE,),
        ),
        GraphSpec("emit", (_PICTURE,), (TensorSpec("image", "uint8", ("N", "4H", "4W", 3)),)),
        GraphSpec("mix", (_frame("frame"), _frame("cleaned"), _AMOUNT), (_frame("mixed"),)),
        GraphSpec(
            "blend",
            (_frame("frame"), _PICTURE, _AMOUNT),
            (TensorSpec("blended", "features", ("N", 3, "4H", "4W")),),
        ),
        GraphSpec(
            "resize",
            (
                _PICTURE,
                TensorSpec("rows", "int32", ("R", "K")),
                TensorSpec("row_weights", "float32", ("R", "P", "K")),
                TensorSpec("columns", "int32", ("S", "L")),
                TensorSpec("column_weights", "float32", ("S", "Q", "L")),
            ),
            (
                TensorSpec("blocks", "features", ("N", 3, "S", "Q", "RP")),
                TensorSpec("image", "uint8", ("N", "RP", "SQ", 3)),
            ),
        ),
    )
}
"""The graphs of the network in the order a frame passes through them, then the optional ones.
``image`` is RGB; ``frame`` is in [0, 1]; ``residue`` is each frame's mean absolute change, in
[0, 1] units; ``flow`` is in pixels, (dx, dy), with neighbour(x + flow) ~ reference(x); ``picture``
is the upscaled frame, not clamped.

``mixed`` is frame + amount (cleaned - frame); ``blended`` is the same of the frame enlarged by
bilinear interpolation and the picture. ``blocks`` is the clamped picture, resized by the weights of
:mod:`rbvsr_deploy.resampling`, with columns before rows; ``image`` is the same, clamped again.
"""

OPTIONAL = ("mix", "blend", "resize")
"""Graphs that a bundle may lack."""


STATES = ("state", "new_state", "backward_state", "forward_state")
"""Names of the inputs and outputs that are recurrent states, (N, C, H, W)."""


def graph_names(*, has_cleaning: bool, optional: Collection[str] = OPTIONAL) -> tuple[str, ...]:
    """Return the names of a bundle's graphs, in order.

    Args:
        has_cleaning: False for a network without a cleaning module (BasicVSR), which has neither
            ``clean`` nor ``mix``.
        optional: those of :data:`OPTIONAL` that it has.
    """
    left_out = {*OPTIONAL} - {*optional} | ({"clean", "mix"} if not has_cleaning else set())
    return tuple(name for name in GRAPHS if name not in left_out)


def named_sizes(n: int, height: int, width: int, *, channels: int) -> dict[str, int]:
    """Return sizes of every name in a shape, for frames of a size and their resizing to twice that:
    an example, for checks and measurements.
    """
    sizes = {"N": n, "H": height, "W": width, "C": channels}
    for names, size in (("RPK", height), ("SQL", width)):
        sizes |= dict(zip(names, blocks_of(2 * size, ratio=SCALE / 2), strict=True))
    return _with_products(sizes)


def blocks_of(count: int, *, ratio: float) -> tuple[int, int, int]:
    """Return how ``resize`` makes rows: the number of blocks, their rows, and the rows that each is
    made from. Together the blocks have at least ``count`` rows, and fewer than one more for each.

    Args:
        count: rows of the resized frame.
        ratio: rows of the upscaled frame for each of them.
    """
    taps = _TAPS if ratio <= SCALE else _MOST_TAPS
    around = 2 * REACH * max(ratio, 1.0) + 1  # rows that a single row is made from
    most = max(1, min(MOST_ROWS, int((taps - around) / ratio)))
    blocks = -(-count // most)
    return blocks, -(-count // blocks), taps


@functools.cache
def most_blocks(size: int) -> Mapping[str, tuple[int, int]]:
    """Return the fewest and most blocks, rows of a block and rows that it is made from, for
    ``size`` rows of the input: by the names ``R``, ``P`` and ``K``.
    """
    ratios = [RATIOS[0], 1.0, float(SCALE), RATIOS[1]]
    most = max(blocks_of(math.ceil(SCALE * size / r), ratio=r)[0] for r in ratios)
    return {"R": (1, most + 1), "P": (1, MOST_ROWS), "K": (_TAPS, _MOST_TAPS)}


def head_channels(*, channels: int, single_shuffle: bool) -> int:
    """Return the values per input pixel in the widest map of ``reconstruct``: C maps of the
    output's size for the published head, the 48 values before the pixel shuffle for the compact
    one.
    """
    return (3 if single_shuffle else channels) * SCALE**2


def widest_map(graph: str, *, channels: int, head_channels: int) -> int:
    """Return the values per pixel of the input in the widest map of a graph.

    Args:
        graph: its name.
        channels: C.
        head_channels: see :func:`head_channels`.
    """
    return {
        "ingest": 3,
        "clean": channels,
        "flow": max(channels, 64),  # 64: the published flow network, whatever C is
        "backward": channels + 3,
        "forward": channels + 3,
        "reconstruct": max(head_channels, 2 * channels, 3 * SCALE**2),
        "emit": 3 * SCALE**2,
        "mix": 3,
        "blend": 3 * SCALE**2,
        # Blocks of columns overlap: at the smallest output, six times the frame's width.
        "resize": 3 * 8 * SCALE**2,
    }[graph]


def most_frames(graph: str, height: int, width: int, *, widest: int) -> int:
    """Return how many frames (for ``flow``: pairs) of a size a graph takes at once if none of its
    maps may have more than :data:`MOST_VALUES` values; 0 if a single one is too large.

    Args:
        graph: its name.
        height, width: H and W of the graph's input.
        widest: see :func:`widest_map`.
    """
    if graph == "flow":  # enlarges frames to a multiple of at most 64
        height, width = height + 63, width + 63
    return MOST_VALUES // (widest * height * width)
