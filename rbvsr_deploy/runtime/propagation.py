"""Bidirectional propagation over a scene, exact, in the memory of a part of its states.

The backward branch needs the last frame before the first picture can be made. Keeping its state for
every frame is what makes long scenes run out of memory. So on a first pass only the state at every
w-th frame is kept, in a spool; then the frames are gone through window by window of w frames: the
backward states of a window are recomputed from the kept one at its end while the forward branch
goes on and pictures come out. The device holds w states, whatever the length of the scene, for one
more backward pass; a scene of w frames or fewer is propagated once. The two branches meet only in
``reconstruct``.

The result equals :meth:`rbvsr_deploy.model.RealBasicVSR.propagate` on the whole scene, whatever the
window, the batch and the bands.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines.base import Array, Engine
from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.pixels import Image, sixteen_bit_images
from rbvsr_deploy.runtime.memory_plan import MemoryPlan
from rbvsr_deploy.runtime.spool import Spool

__all__ = ["SceneFrames", "propagate"]

HALO = 2
"""Rows of the input that a row of the picture depends on above and below: four 3x3 convolutions,
one on the input's rows, one on rows of half their height, two on rows of a quarter, and bilinear
interpolation (one row).
"""


class _Block:
    """Neighbouring frames on the device, and the flows from them to the next and previous ones."""

    def __init__(self, frames: Array, *, count: int) -> None:
        self.frames = frames
        self.count = count
        self.flows: dict[int, Array] = {}
        """By step, 1 or -1: (count, 2, H, W)."""
        self.crossed: set[int] = set()
        """Steps whose flow out of the block is there too."""


class SceneFrames:
    """The cleaned frames of a scene on the device, in blocks, and the flows between neighbours.

    Frames wait in a spool and are uploaded block by block as they are asked for; flows are computed
    for a block at once. The least recently used block is freed.

    Args:
        engine: runs ``flow``.
        spool: holds the frames, (1, 3, H, W) each, by their number.
        batch: frames per block.
        ahead: how many frames after the present one are in use at once.
    """

    def __init__(self, engine: Engine, spool: Spool, *, batch: int, ahead: int = 0) -> None:
        self._engine = engine
        self._spool = spool
        self._batch = batch
        # The block in use, its neighbours on both sides, and those ahead.
        self._capacity = 3 + -(-ahead // batch)
        self._blocks: OrderedDict[int, _Block] = OrderedDict()

    def frames(self, start: int, stop: int) -> Array:
        """(stop - start, 3, H, W); all of one block (see :meth:`block_end`)."""
        block, offset = self._block(start)
        return self._engine.slice(block.frames, offset, offset + stop - start)

    def block_end(self, i: int) -> int:
        """Number of the frame after the last of frame i's block."""
        return (i // self._batch + 1) * self._batch

    def flow(self, i: int, *, step: int) -> Array:
        """Flow (1, 2, H, W) from frame i to the next one (step 1) or the previous one (-1).

        Those within a block are computed at once; the one out of the block when it is asked for, as
        the next frame may only arrive after the block was first used.
        """
        block, offset = self._block(i)
        last = block.count - 1
        inner, crossing = ((0, last), last) if step == 1 else ((1, last + 1), 0)
        flows = block.flows.get(step)
        if flows is None:
            height, width = block.frames.shape[2:]
            flows = self._engine.empty((block.count, 2, height, width), dtype="float32")
            block.flows[step] = flows
            if last > 0:
                neighbours = self._engine.slice(block.frames, inner[0] + step, inner[1] + step)
                self._compute(flows, block, inner, neighbours=neighbours)
        if offset == crossing and step not in block.crossed:
            neighbours = self.frames(i + step, i + step + 1)
            self._compute(flows, block, (offset, offset + 1), neighbours=neighbours)
            block.crossed.add(step)
        return self._engine.slice(flows, offset, offset + 1)

    def _block(self, i: int) -> tuple[_Block, int]:
        """Frame i's block and its place in there."""
        number, offset = divmod(i, self._batch)
        block = self._blocks.get(number)
        if block is None or block.count <= offset:  # frames may have arrived since
            block = self._load(number)
            self._blocks[number] = block
        self._blocks.move_to_end(number)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)
        return block, offset

    def _load(self, number: int) -> _Block:
        arrays = []
        for i in range(number * self._batch, (number + 1) * self._batch):
            # The start of a block may be used up already, its end not yet there: what is left out
            # is never asked for, and stands here only to keep the places of the others.
            arrays.append(self._spool.get(i) if i in self._spool else None)
        while arrays[-1] is None:
            arrays.pop()
        there = next(array for array in arrays if array is not None)
        whole = np.concatenate([there if array is None else array for array in arrays])
        return _Block(self._engine.upload(whole), count=len(arrays))

    def _compute(
        self, flows: Array, block: _Block, places: tuple[int, int], *, neighbours: Array
    ) -> None:
        """Flows of some places of a block."""
        self._engine.run(
            "flow",
            into=[self._engine.slice(flows, *places)],
            reference=self._engine.slice(block.frames, *places),
            neighbour=neighbours,
        )


def propagate(
    engine: Engine,
    frames: SceneFrames,
    *,
    start: int,
    end: int,
    stop: int,
    size: tuple[int, int],
    plan: MemoryPlan,
    kept: Spool,
    deep: bool = False,
    forward_state: Array | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Image, Array]]:
    """Make the pictures of some frames of a scene.

    Args:
        engine: runs ``flow``, ``backward``, ``forward``, ``reconstruct`` and ``emit``.
        frames: the scene's cleaned frames.
        start, end: pictures are made of the frames from ``start`` up to ``end``, not including it.
        stop: the backward branch begins at frame ``stop - 1``, with no state: the end of the scene,
            or as far as frames may look ahead. At least ``end``.
        size: H and W.
        plan: window, batch and bands; the pictures do not depend on it.
        kept: takes kept backward states by the number of their frame; empty afterwards.
        deep: whether pictures have 16 bits instead of 8.
        forward_state: of the frame before ``start``, (1, C, H, W); ``None`` at the start of a
            scene.
        progress: called after each step of the first backward pass over the frames that get a
            picture.

    Yields:
        Per frame, in order, its picture (4H, 4W, 3) RGB, uint8 or uint16, and its forward state
        (1, C, H, W), to go on from: of use until the next is asked for, the last one for good. A
        batch of pictures is on its way to the host while the next one is computed.

    Raises:
        DeviceMemoryError: the plan is too big for what the device has left. The last state that
            was yielded is still there, to go on from with a smaller one.
    """
    scene = _Scene(engine, frames, size=size, plan=plan, deep=deep)
    window = min(plan.window, end - start)
    states = scene.empty_states(window)
    passing = [scene.empty_states(1), scene.empty_states(1)]

    state = None
    keeping: tuple[int, Callable[[], NDArray[Any]]] | None = None
    for i in reversed(range(start, stop)):
        # The states of the first window stay; of the others, those that windows begin from.
        in_window = i - start < window
        place = engine.slice(states, i - start, i - start + 1) if in_window else passing[i % 2]
        state = scene.step("backward", i, state, into=place)
        if start + window < i <= end and ((i - start) % window == 0 or i == end) and i < stop:
            if keeping is not None:
                kept.put(keeping[0], keeping[1]())
            keeping = i, engine.begin_download(state)
        if i < end:
            progress()
    if keeping is not None:
        kept.put(keeping[0], keeping[1]())

    state = forward_state
    # The states of three batches: one that is worked on, one whose pictures are on their way, and
    # one whose pictures are out, where the caller can go on from if the others fail.
    running = [scene.empty_states(plan.batch) for _ in range(3)]
    on_their_way: Iterator[tuple[Image, Array]] = iter(())
    for first in range(start, end, window):
        last = min(first + window, end)
        if first > start:
            scene.recompute(first, last, states, kept=kept)
        i = first
        while i < last:
            j = min(last, frames.block_end(i))
            running.append(running.pop(0))
            for f in range(i, j):
                place = engine.slice(running[0], f - i, f - i + 1)
                state = scene.step("forward", f, state, into=place)
            begun = scene.begin_pictures(
                i,
                j,
                backward_states=engine.slice(states, i - first, j - first),
                forward_states=engine.slice(running[0], 0, j - i),
            )
            yield from on_their_way
            on_their_way = _finish(engine, begun, running[0])
            i = j
    yield from on_their_way


def _finish(
    engine: Engine, begun: Callable[[], Image], states: Array
) -> Iterator[tuple[Image, Array]]:
    """The pictures of a batch and their forward states."""
    for number, picture in enumerate(begun()):
        yield picture, engine.slice(states, number, number + 1)


class _Scene:
    """The steps of the two branches over the frames of one scene."""

    def __init__(
        self,
        engine: Engine,
        frames: SceneFrames,
        *,
        size: tuple[int, int],
        plan: MemoryPlan,
        deep: bool,
    ) -> None:
        self._engine = engine
        self._frames = frames
        self._size = size
        self._band = plan.band
        self._deep = deep
        self._no_state = engine.zeros(self._state_shape(1), dtype=engine.network.precision)
        self._no_flow = engine.zeros((1, 2, *size), dtype="float32")

    def empty_states(self, count: int) -> Array:
        """Room for states: (count, C, H, W)."""
        return self._engine.empty(self._state_shape(count), dtype=self._engine.network.precision)

    def step(self, branch: str, i: int, state: Array | None, *, into: Array) -> Array:
        """State of frame i; ``state`` is that of the frame the branch comes from, if there is."""
        step = 1 if branch == "backward" else -1
        flow = self._no_flow if state is None else self._frames.flow(i, step=step)
        (new_state,) = self._engine.run(
            branch,
            into=[into],
            frame=self._frames.frames(i, i + 1),
            state=self._no_state if state is None else state,
            flow=flow,
        )
        return new_state

    def recompute(self, first: int, last: int, states: Array, *, kept: Spool) -> None:
        """Backward states of a window, from the one kept at its end; none is kept at a scene's."""
        state = self._engine.upload(kept.get(last)) if last in kept else None
        kept.drop(last)
        for i in reversed(range(first, last)):
            place = self._engine.slice(states, i - first, i - first + 1)
            state = self.step("backward", i, state, into=place)

    def begin_pictures(
        self, start: int, stop: int, *, backward_states: Array, forward_states: Array
    ) -> Callable[[], Image]:
        """Begin to make pictures. What is returned waits for them: (stop - start, 4H, 4W, 3)."""
        arrays = {
            "frame": self._frames.frames(start, stop),
            "backward_state": backward_states,
            "forward_state": forward_states,
        }
        height = self._size[0]
        if self._band >= height:
            return self._reconstruct(arrays)
        bands = []
        for top in range(0, height, self._band):
            bottom = min(top + self._band, height)
            upper, lower = max(0, top - HALO), min(height, bottom + HALO)
            begun = self._reconstruct(
                {name: self._engine.rows(array, upper, lower) for name, array in arrays.items()}
            )
            bands.append((begun, SCALE * (top - upper), SCALE * (bottom - upper)))
        return lambda: np.concatenate([begun()[:, top:end] for begun, top, end in bands], axis=1)

    def _reconstruct(self, arrays: dict[str, Array]) -> Callable[[], Image]:
        (picture,) = self._engine.run("reconstruct", **arrays)
        if self._deep:
            # TensorRT knows no uint16, so no graph could make it.
            begun = self._engine.begin_download(picture)
            return lambda: sixteen_bit_images(begun())
        (image,) = self._engine.run("emit", picture=picture)
        return self._engine.begin_download(image)

    def _state_shape(self, count: int) -> tuple[int, int, int, int]:
        return (count, self._engine.network.channels, *self._size)
