"""Bidirectional propagation over one scene, exact, in the memory of a part of its states.

The backward branch needs the scene's last frame before the first picture can be made. Keeping its
state for every frame is what makes long scenes run out of memory, so only every k-th state is kept
on a first pass; then the scene is gone through window by window of k frames, the backward states of
a window recomputed from the one kept at its end, while the forward branch goes on and a picture
comes out per step. At most n/k + k states are held at once, least at k = sqrt(n), for one more
backward pass. The two branches meet only in ``reconstruct``.

The result equals :meth:`rbvsr_deploy.model.RealBasicVSR.propagate` on the whole scene, whatever k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines.base import Array, Engine

__all__ = ["choose_interval", "propagate_scene"]


def choose_interval(frames: int, *, states_that_fit: int) -> int:
    """The interval of kept backward states for a scene.

    Args:
        frames: length n of the scene, at least 1.
        states_that_fit: how many states there is room for.

    Returns:
        n, which recomputes nothing, if all states fit; else sqrt(n), which needs the least memory.
    """
    return frames if frames <= states_that_fit else math.ceil(math.sqrt(frames))


def propagate_scene(
    engine: Engine,
    frames: Sequence[Array],
    *,
    height: int,
    width: int,
    interval: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[NDArray[np.uint8]]:
    """Upscale one scene.

    Args:
        engine: runs the graphs.
        frames: the scene's cleaned frames, (1, 3, H, W) each, on the engine's device.
        height, width: H and W.
        interval: k, how many frames apart backward states are kept on the first pass; all of them
            if ``None``. The pictures do not depend on it.
        progress: called with the number of steps done of the first backward pass.

    Yields:
        One picture (4H, 4W, 3) uint8 RGB per frame, in order.

    Raises:
        ValueError: ``interval`` is less than 1.
    """
    n = len(frames)
    k = n if interval is None else interval
    if k < 1:
        raise ValueError(f"interval must be 1 or more, got {k}")
    scene = _Scene(engine, frames, height=height, width=width)

    # First pass: the state at the start of every window, and all those of the window used first.
    first_window: list[Array] = []
    kept: dict[int, Array] = {n: scene.no_state}
    for done, (i, state) in enumerate(scene.backward(0, n, kept[n]), start=1):
        if i % k == 0:
            kept[i] = state
        if i < k:
            first_window.append(state)
        progress(done)

    state = scene.no_state
    for start in range(0, n, k):
        end = min(start + k, n)
        if start == 0:
            backward_states = first_window
        else:
            backward_states = [s for _, s in scene.backward(start, end, kept[end])]
        kept.pop(start)
        for i in range(start, end):
            state = scene.forward_step(i, state)
            # Taken off the list as it is used: memory shrinks while pictures come out.
            yield scene.picture(i, backward_states.pop(), state)


class _Scene:
    """The steps of the two branches over the frames of one scene."""

    def __init__(self, engine: Engine, frames: Sequence[Array], *, height: int, width: int) -> None:
        self._engine = engine
        self._frames = frames
        state_shape = (1, engine.network.channels, height, width)
        self.no_state = engine.zeros(state_shape, dtype=engine.network.precision)
        self._no_flow = engine.zeros((1, 2, height, width), dtype="float32")

    def backward(self, start: int, end: int, state: Array) -> Iterator[tuple[int, Array]]:
        """Backward states of frames end-1 down to start; ``state`` is that of frame ``end``."""
        for i in reversed(range(start, end)):
            (state,) = self._engine.run(
                "backward", frame=self._frames[i], state=state, flow=self._flow(i, i + 1)
            )
            yield i, state

    def forward_step(self, i: int, state: Array) -> Array:
        """Forward state of frame i; ``state`` is that of the frame before."""
        (state,) = self._engine.run(
            "forward", frame=self._frames[i], state=state, flow=self._flow(i, i - 1)
        )
        return state

    def picture(self, i: int, backward_state: Array, forward_state: Array) -> NDArray[np.uint8]:
        """(4H, 4W, 3) uint8 RGB."""
        (picture,) = self._engine.run(
            "reconstruct",
            frame=self._frames[i],
            backward_state=backward_state,
            forward_state=forward_state,
        )
        (image,) = self._engine.run("emit", picture=picture)
        pixels: NDArray[np.uint8] = self._engine.download(image)[0]
        return pixels

    def _flow(self, reference: int, neighbour: int) -> Array:
        """Flow between two frames; zero where the scene ends, as there the state is zero too."""
        if not 0 <= neighbour < len(self._frames):
            return self._no_flow
        (flow,) = self._engine.run(
            "flow", reference=self._frames[reference], neighbour=self._frames[neighbour]
        )
        return flow
