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

from rbvsr_deploy.engines.base import Array, Engine
from rbvsr_deploy.errors import EngineError

__all__ = ["CHECK_EVERY", "begin_check", "check_finite"]

CHECK_EVERY = 16
"""Frames after which values are checked where chunks are shorter. With a bounded lookahead, every
frame is a chunk, and has a backward state that no other frame uses.
"""


def begin_check(engine: Engine, array: Array, *, graph: str, frame: int) -> Callable[[], None]:
    """Begin to copy an array from the device, without waiting; the result waits and checks it.

    Args:
        engine: owns the array.
        array: an output of the graph.
        graph: name of the graph.
        frame: number of the frame within the stream.
    """
    begun = engine.begin_download(array)
    precision = engine.network.precision
    return lambda: check_finite(begun(), graph=graph, frame=frame, precision=precision)


def check_finite(values: NDArray[Any], *, graph: str, frame: int, precision: str) -> None:
    """Raise unless all values are finite.

    Raises:
        EngineError: names the graph and the frame.
    """
    if np.isfinite(values).all():
        return
    raise EngineError(
        f"graph '{graph}' gave values that are not finite at frame {frame} or shortly before: "
        + (
            "float16 overflows at 65504; use a float32 bundle or the checkpoint itself"
            if precision == "float16"
            else "the weights are unsuitable or damaged; use another bundle or checkpoint"
        )
    )
