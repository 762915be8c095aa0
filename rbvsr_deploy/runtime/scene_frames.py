"""Holds the cleaned frames of a scene and the flows between them.

Frames stay on the device as long as they fit into the memory plan; the others wait in a spool on
the host and are uploaded when they are needed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines.base import Array
from rbvsr_deploy.errors import DeviceMemoryError
from rbvsr_deploy.runtime.context import Context

__all__ = ["SceneFrames"]


class _Block:
    """Frames that were cleaned together, and the flows from them to the frames next to them."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.frames: Array | None = None
        """(stop - start, 3, H, W) on the device; ``None`` while they are only in the spool."""
        self.uncleaned: Array | None = None
        """The frames before the cleaning, where the stream needs them."""
        self.places = 0
        """Frames that the block counts as while it stays on the device; 0 if it is in the spool."""
        self.flows: dict[int, Array] = {}
        """Flows by step, 1 or -1: (stop - start, 2, H, W)."""
        self.crossed: set[int] = set()
        """Steps whose flow out of the block is known too."""


class SceneFrames:
    """The cleaned frames of one scene, by number, in blocks of frames that were cleaned together.

    Flows are computed for a whole block at once. Those of the least recently used block are freed,
    and its frames too if they are in the spool.

    Args:
        context: of the stream; its plan says how many frames stay on the device.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._engine = context.engine
        self._blocks: dict[int, _Block] = {}  # by the number of each of their frames
        self._in_use: OrderedDict[int, _Block] = OrderedDict()  # by the number of their last frame
        self._places = 0  # of all blocks that stay on the device
        self._spilling: Callable[[], None] | None = None

    # --------------------------------------------------------------------------------- keeping

    def add(
        self,
        start: int,
        frames: Array,
        *,
        count: int,
        places: int | None = None,
        uncleaned: Array | None = None,
    ) -> None:
        """Keep frames under their numbers, replacing blocks that hold any of them.

        Args:
            start: number of the first frame.
            frames: (count, 3, H, W), on the device.
            count: number of frames.
            places: number of frames whose memory they occupy; ``count`` if ``None``.
            uncleaned: the frames before the cleaning, which are kept where the stream needs them;
                the same if ``None``.
        """
        if not self._context.keeps_uncleaned:
            uncleaned = None
        elif uncleaned is None:
            uncleaned = frames
        places = count if places is None else places
        block = _Block(start, start + count)
        old = {self._blocks[i] for i in range(start, block.stop) if i in self._blocks}
        held = self._places - sum(block.places for block in old)
        if held + places <= self._context.budget.plan.in_memory:
            self._settle()
            self._discard(old)
            block.frames, block.uncleaned, block.places = frames, uncleaned, places
            self._places += places
        else:
            # Downloaded while the next frames are computed.
            begun = self._begin_download(frames, uncleaned)
            self._settle()
            self._discard(old)
            self._spilling = lambda: self._spill(range(start, block.stop), begun())
        self._blocks.update(dict.fromkeys(range(start, block.stop), block))

    def forget(self, before: int) -> None:
        """Free the frames before a number."""
        self._settle()
        for i in [i for i in self._blocks if i < before]:
            block = self._blocks.pop(i)
            self._context.spool.drop(i)
            if i == block.stop - 1:
                self._places -= block.places
                self._in_use.pop(block.stop, None)

    def shrink(self, error: DeviceMemoryError) -> None:
        """Continue with less memory after the device ran out of it: put a smaller plan into effect,
        move all frames to the spool, and split the blocks.

        Raises:
            DeviceMemoryError: ``error``, if the plan cannot get smaller.
        """
        self._context.budget.shrink(error)
        self._settle()
        batch = self._context.budget.plan.batch
        for old in dict.fromkeys(self._blocks.values()):
            numbers = [i for i in range(old.start, old.stop) if self._blocks.get(i) is old]
            if old.places:
                values = self._begin_download(old.frames, old.uncleaned)()
                self._spill(numbers, values[numbers[0] - old.start :])
            for first in range(0, len(numbers), batch):
                some = numbers[first : first + batch]
                block = _Block(some[0], some[-1] + 1)
                self._blocks.update(dict.fromkeys(some, block))
        self._in_use.clear()
        self._places = 0

    # ----------------------------------------------------------------------------------- using

    def frames(self, start: int, stop: int) -> Array:
        """Return frames of one block on the device: (stop - start, 3, H, W)."""
        block = self._block(start)
        return self._engine.slice(block.frames, start - block.start, stop - block.start)

    def uncleaned(self, start: int, stop: int) -> Array:
        """Return frames of one block as they were before the cleaning: (stop - start, 3, H, W).

        The stream must need them.
        """
        block = self._block(start)
        return self._engine.slice(block.uncleaned, start - block.start, stop - block.start)

    def block_end(self, i: int) -> int:
        """Return the number of the frame after the last of frame i's block."""
        return self._blocks[i].stop

    def download(self, i: int) -> NDArray[Any]:
        """Return a copy of one frame on the host: (1, 3, H, W)."""
        self._settle()
        block = self._blocks[i]
        if not block.places:
            return self._context.spool.get(i)[:, :3].copy()
        offset = i - block.start
        return self._engine.download(self._engine.slice(block.frames, offset, offset + 1)).copy()

    def flow(self, i: int, *, step: int) -> Array:
        """Return the flow (1, 2, H, W) from frame i to the next one (step 1) or the previous one
        (step -1).

        Both branches come into a block from outside, so that all its flows are computed at once.
        Where the frame outside has not arrived yet, or is not asked for, the flow to it follows
        later.
        """
        block = self._block(i)
        count, offset = block.stop - block.start, i - block.start
        crossing = count - 1 if step == 1 else 0
        crosses = offset == crossing and step not in block.crossed
        outside = self.frames(i + step, i + step + 1) if crosses else None
        flows = block.flows.get(step)
        if flows is None:
            flows = self._engine.empty((count, 2, *self._context.size), dtype="float32")
            block.flows[step] = flows
            if count > 1:
                first, stop = (0, count - 1) if step == 1 else (1, count)
                within = self._engine.slice(block.frames, first + step, stop + step)
                joined = None
                if crosses:
                    parts = [within, outside] if step == 1 else [outside, within]
                    joined = self._engine.join(parts)
                if joined is None:
                    self._compute(flows, block, (first, stop), neighbours=within)
                else:
                    self._compute(flows, block, (0, count), neighbours=joined)
                    block.crossed.add(step)
        if crosses and step not in block.crossed:
            self._compute(flows, block, (offset, offset + 1), neighbours=outside)
            block.crossed.add(step)
        return self._engine.slice(flows, offset, offset + 1)

    # --------------------------------------------------------------------------------- private

    def _block(self, i: int) -> _Block:
        """Return frame i's block, with its frames on the device."""
        block = self._blocks[i]
        if block.frames is None:
            self._settle()
            spool = self._context.spool
            block.start = next(n for n in range(block.start, block.stop) if n in spool)
            values = np.concatenate([spool.get(n) for n in range(block.start, block.stop)])
            block.frames = self._engine.upload(values[:, :3])
            if self._context.keeps_uncleaned:
                block.uncleaned = self._engine.upload(values[:, 3:])
        self._in_use[block.stop] = block
        self._in_use.move_to_end(block.stop)
        while len(self._in_use) > self._capacity:
            _, least = self._in_use.popitem(last=False)
            least.flows.clear()
            least.crossed.clear()
            if not least.places:
                least.frames = least.uncleaned = None
        return block

    @property
    def _capacity(self) -> int:
        """Number of blocks to hold at once: the block in use, its two neighbours, and those ahead;
        twice as many where the branches run side by side.

        Only chunks of one frame use the frames ahead again and again.
        """
        settings = self._context.settings
        ahead = settings.ahead if settings.chunk == 1 else 0
        held = 6 if self._engine.asynchronous else 3
        return held + -(-ahead // self._context.budget.plan.batch)

    def _compute(
        self, flows: Array, block: _Block, places: tuple[int, int], *, neighbours: Array
    ) -> None:
        """Compute the flows at some places of a block."""
        self._engine.run(
            "flow",
            into=[self._engine.slice(flows, *places)],
            reference=self._engine.slice(block.frames, *places),
            neighbour=neighbours,
        )

    def _discard(self, blocks: Iterable[_Block]) -> None:
        for block in blocks:
            self._places -= block.places
            self._in_use.pop(block.stop, None)
            for i in range(block.start, block.stop):
                if self._blocks.get(i) is block:
                    del self._blocks[i]
                    self._context.spool.drop(i)

    def _begin_download(self, frames: Array, uncleaned: Array | None) -> Callable[[], NDArray[Any]]:
        """Begin to copy frames from the device, with those before the cleaning, if any, as further
        channels.
        """
        begun = self._engine.begin_download(frames)
        if uncleaned is None:
            return begun
        others = self._engine.begin_download(uncleaned)
        return lambda: np.concatenate((begun(), others()), axis=1)

    def _spill(self, numbers: Iterable[int], values: NDArray[Any]) -> None:
        for n, i in enumerate(numbers):
            self._context.spool.put(i, values[n : n + 1])

    def _settle(self) -> None:
        """Wait for frames that are being downloaded."""
        if self._spilling is not None:
            self._spilling()
            self._spilling = None
