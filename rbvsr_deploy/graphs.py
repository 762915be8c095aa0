"""Defines the seven graphs: the contract between export, engines and runtime.

The network is split at its recurrence and its decisions, so that each graph is a pure function
with dynamic N, H and W: state goes in, state comes out, and the runtime owns it. C is the number of
mid channels; ``features`` is the bundle's float type. Flow is float32 in every precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "GRAPHS",
    "MAX_CLEANINGS",
    "MOST_VALUES",
    "PRECISIONS",
    "SCALE",
    "STATES",
    "GraphSpec",
    "Precision",
    "TensorSpec",
    "graph_names",
    "head_channels",
    "most_frames",
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


@dataclass(frozen=True)
class TensorSpec:
    """Describes an input or output of a graph."""

    name: str
    dtype: Literal["uint8", "float32", "features"]
    """``features``: float32 or float16, the bundle's precision."""
    shape: tuple[int | str, ...]
    """Integers, or the names ``N``, ``H``, ``W``, ``C``, ``4H``, ``4W``."""

    def numpy_dtype(self, precision: Precision) -> str:
        """Return the name of the NumPy dtype in a bundle of that precision."""
        return precision if self.dtype == "features" else self.dtype


@dataclass(frozen=True)
class GraphSpec:
    """Describes one graph: its inputs and outputs, in order."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def output_shapes(
        self, input_shape: tuple[int, ...], *, channels: int
    ) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the outputs.

        Args:
            input_shape: shape of the first input.
            channels: C.
        """
        sizes = {"C": channels}
        for name, size in zip(self.inputs[0].shape, input_shape, strict=True):
            if isinstance(name, str):
                sizes[name] = size
        if "H" in sizes:
            sizes |= {"4H": SCALE * sizes["H"], "4W": SCALE * sizes["W"]}
        return tuple(
            tuple(size if isinstance(size, int) else sizes[size] for size in item.shape)
            for item in self.outputs
        )


def _frame(name: str) -> TensorSpec:
    return TensorSpec(name, "features", ("N", 3, "H", "W"))


def _state(name: str) -> TensorSpec:
    return TensorSpec(name, "features", ("N", "C", "H", "W"))


_FLOW = TensorSpec("flow", "float32", ("N", 2, "H", "W"))
_PICTURE = TensorSpec("picture", "features", ("N", 3, "4H", "4W"))
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
    )
}
"""The graphs in the order a frame passes through them. ``image`` is RGB; ``frame`` is in [0, 1];
``residue`` is each frame's mean absolute change, in [0, 1] units; ``flow`` is in pixels, (dx, dy),
with neighbour(x + flow) ~ reference(x); ``picture`` is the upscaled frame, not clamped.
"""


STATES = ("state", "new_state", "backward_state", "forward_state")
"""Names of the inputs and outputs that are recurrent states, (N, C, H, W)."""


def graph_names(*, has_cleaning: bool) -> tuple[str, ...]:
    """Return the names of a bundle's graphs: all seven, or six for a network without a cleaning
    module (BasicVSR).
    """
    return tuple(name for name in GRAPHS if has_cleaning or name != "clean")


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
