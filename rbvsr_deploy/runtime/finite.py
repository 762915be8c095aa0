"""Detects NaN and infinity, which would spread through the states to every later frame.

One bad value of a state reaches the whole frame within a few steps, and conversion to integers
hides it: the rest of the video would be of one colour. The states at the ends of every window are
examined, so a check costs a copy of two states and one output per window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines.base import Array
from rbvsr_deploy.errors import EngineError
from rbvsr_deploy.runtime.context import Context

__all__ = ["CHECK_EVERY", "begin_check", "check_finite"]

CHECK_EVERY = 16
"""Frames after which values are checked where chunks are shorter. With a bounded lookahead, every
frame is a chunk, and has a backward state that no other frame uses.
"""


def begin_check(context: Context, array: Array, *, graph: str, frame: int) -> Callable[[], None]:
    """Begin to copy an array from the device, without waiting; the result waits and checks it.

    Args:
        context: of the stream.
        array: an output of the graph.
        graph: name of the graph.
        frame: number of the frame within the stream.
    """
    if context.any_values:
        return lambda: None
    begun = context.engine.begin_download(array)
    return lambda: check_finite(context, begun(), graph=graph, frame=frame)


def check_finite(context: Context, values: NDArray[Any], *, graph: str, frame: int) -> None:
    """Raise unless all values are finite, or the stream accepts any.

    Raises:
        EngineError: names the graph and the frame.
    """
    if context.any_values or _are_finite(values):
        return
    precision = context.engine.network.precision
    raise EngineError(
        f"graph '{graph}' gave values that are not finite at frame {frame} or shortly before: "
        + (
            "float16 overflows at 65504; use a float32 bundle or the checkpoint itself"
            if precision == "float16"
            else "the weights are unsuitable or damaged; use another bundle or checkpoint"
        )
    )


def _are_finite(values: NDArray[Any]) -> bool:
    """Return whether all values are finite.

    NumPy converts every float16 to float32 first, which takes ten times as long as to look at the
    exponents: that of NaN and infinity is the largest.
    """
    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    return int(np.bitwise_and(values.view(np.uint16), 0x7FFF).max(initial=0)) < 0x7C00
