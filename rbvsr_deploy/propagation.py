"""Bidirectional propagation over one scene: the schedule of ``flow``, ``backward``, ``forward``,
``reconstruct``, ``emit``.

The backward branch needs the scene's last frame before the first picture can be made, so its states
are all computed first and kept; the forward branch then goes through the scene once and gives a
picture per step. The two branches meet only in ``reconstruct``. The result equals
:meth:`rbvsr_deploy.model.RealBasicVSR.propagate` on the whole scene.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines.base import Array, Engine

__all__ = ["propagate_scene"]


def propagate_scene(
    engine: Engine,
    frames: Sequence[Array],
    *,
    height: int,
    width: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[NDArray[np.uint8]]:
    """Upscale one scene.

    Args:
        engine: runs the graphs.
        frames: the scene's cleaned frames, (1, 3, H, W) each, on the engine's device.
        height, width: H and W.
        progress: called with the number of backward steps done.

    Yields:
        One picture (4H, 4W, 3) uint8 RGB per frame, in order.
    """
    state_shape = (1, engine.network.channels, height, width)
    no_state = engine.zeros(state_shape, dtype=engine.network.precision)
    no_flow = engine.zeros((1, 2, height, width), dtype="float32")

    backward_states: list[Array] = []
    state, following = no_state, None
    for frame in reversed(frames):
        flow = no_flow if following is None else _flow(engine, frame, following)
        (state,) = engine.run("backward", frame=frame, state=state, flow=flow)
        backward_states.append(state)
        progress(len(backward_states))
        following = frame

    state, preceding = no_state, None
    for frame in frames:
        flow = no_flow if preceding is None else _flow(engine, frame, preceding)
        (state,) = engine.run("forward", frame=frame, state=state, flow=flow)
        # Taken off the list as it is used: memory shrinks while pictures come out.
        (picture,) = engine.run(
            "reconstruct", frame=frame, backward_state=backward_states.pop(), forward_state=state
        )
        (image,) = engine.run("emit", picture=picture)
        yield engine.download(image)[0]
        preceding = frame


def _flow(engine: Engine, reference: Array, neighbour: Array) -> Array:
    (flow,) = engine.run("flow", reference=reference, neighbour=neighbour)
    return flow
