"""Dynamic refinement: clean frames until the cleaning changes little (paper, section 3.2).

The published code takes one decision for everything it is given at once, so chunking and batching
change its result. Here the decision belongs to the scene, which is the same whatever the engine,
the window or the machine; or to the single frame, as the paper's text has it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines.base import Array, Engine
from rbvsr_deploy.errors import DeviceMemoryError
from rbvsr_deploy.graphs import MAX_CLEANINGS
from rbvsr_deploy.pixels import Image, network_input
from rbvsr_deploy.runtime.spool import Spool

__all__ = ["Cleaner", "RefineScope", "Refinement"]

logger = logging.getLogger(__name__)

RefineScope = Literal["scene", "frame"]


@dataclass(frozen=True)
class Refinement:
    """What was decided for one scene."""

    cleanings: int
    """Passes over the frames; with the scope ``frame``, of the frame that took most."""
    residues: list[float] = field(default_factory=list)
    """Mean absolute change of each pass over the frames it was made on, on the 0-255 scale; of a
    scene that is worked on in parts, over its first part.
    """


class Cleaner:
    """Cleans the frames of one scene as they arrive and keeps them in a spool.

    With the scope ``scene``, every frame is cleaned once when it arrives; :meth:`decide` takes the
    decision on the frames that are there by then and cleans them as often as it says. Frames that
    arrive later are cleaned just as often: a scene never changes its look in the middle.

    Args:
        engine: runs ``ingest`` and ``clean``; a network without the latter (BasicVSR) leaves the
            frames as they are.
        spool: takes the cleaned frames, (1, 3, H, W) each, by their number within the scene.
        first: number of the first frame.
        batch: how many frames are cleaned at once; the result does not depend on it.
        threshold: on the 0-255 scale: cleaning goes on while the mean absolute change is at or
            above it, three times at most.
        cleanings: fixed number of passes instead of a decision, 0 or more.
        scope: whether the scene or the frame decides.
        decided: what was decided already, for a scene that is continued.
        progress: called after each batch with the number of frames cleaned for the first time.
    """

    def __init__(
        self,
        engine: Engine,
        spool: Spool,
        *,
        first: int = 0,
        batch: int = 1,
        threshold: float,
        cleanings: int | None = None,
        scope: RefineScope = "scene",
        decided: Refinement | None = None,
        progress: Callable[[int], None] = lambda frames: None,
    ) -> None:
        self._engine = engine
        self._spool = spool
        self._first = first
        self._next = first
        self._batch = batch
        self._threshold = threshold
        self._progress = progress
        self._waiting: list[Image] = []
        self._on_their_way: Callable[[], None] | None = None
        # Sum of the frames' residues and number of frames, per pass.
        self._sums: list[float] = []
        self._counts: list[int] = []
        cleans = engine.network.has_cleaning
        self._decided = decided if cleans else Refinement(0)
        self._by_frame = cleans and cleanings is None and scope == "frame"
        # How often frames are cleaned on arrival; once where that is not decided yet.
        self._passes = cleanings
        if self._decided is not None and not self._by_frame:
            self._passes = self._decided.cleanings

    @property
    def known(self) -> int:
        """Number of the frame after the last that has arrived."""
        return self._next + len(self._waiting)

    def push(self, image: Image) -> None:
        """Take the next frame, of the dtype of the others."""
        self._waiting.append(image)
        if len(self._waiting) >= self._batch:
            self.flush()

    def flush(self) -> None:
        """Clean the frames that wait for their batch to fill."""
        while self._waiting:
            images = np.stack(self._waiting[: self._batch])
            try:
                self._take(images)
            except DeviceMemoryError as error:
                self._take_less(error)
            else:
                del self._waiting[: len(images)]
                self._next += len(images)
                self._progress(len(images))

    def decide(self) -> Refinement:
        """Decide how often the scene is cleaned, and do it to the frames that are there; later
        calls only return what was decided.
        """
        self.flush()
        self._finish()
        if self._decided is None:
            if self._passes is None and not self._by_frame:
                while self._residues()[-1] >= self._threshold and len(self._sums) < MAX_CLEANINGS:
                    self._clean_again(number=len(self._sums))
                self._passes = len(self._sums)
            self._decided = Refinement(len(self._sums), self._residues())
        return self._decided

    def _residues(self) -> list[float]:
        return [255.0 * s / n for s, n in zip(self._sums, self._counts, strict=True)]

    def _clean_again(self, *, number: int) -> None:
        """Pass ``number`` over everything that has arrived."""
        start = self._first
        while start < self._next:
            stop = min(start + self._batch, self._next)
            frames = np.concatenate([self._spool.get(i) for i in range(start, stop)])
            try:
                self._clean(self._engine.upload(frames), passes=range(number, number + 1), at=start)
            except DeviceMemoryError as error:
                self._take_less(error)
            else:
                start = stop
        self._finish()

    def _take(self, images: Image) -> None:
        if images.dtype == np.uint8:
            (frames,) = self._engine.run("ingest", image=self._engine.upload(images))
        else:
            precision = self._engine.network.precision
            frames = self._engine.upload(network_input(images, precision=precision))
        if self._by_frame:
            self._clean_by_frame(frames, count=len(images))
        else:
            passes = range(1 if self._passes is None else self._passes)
            self._clean(frames, passes=passes, at=self._next)

    def _take_less(self, error: DeviceMemoryError) -> None:
        """Halve the batch."""
        if self._batch == 1:
            raise error
        self._batch //= 2
        logger.warning("%s: going on with %d at once", str(error), self._batch)

    def _clean(self, frames: Array, *, passes: range, at: int) -> None:
        """Passes over a batch, the frames from ``at`` on. They are on their way to the spool while
        the next batch is computed.
        """
        changes = []
        for number in passes:
            frames, residues = self._engine.run("clean", frame=frames)
            changes.append((number, self._engine.begin_download(residues)))
        begun = self._engine.begin_download(frames)
        self._finish()

        def finish() -> None:
            for number, residues in changes:
                self._count(number, residues())
            self._keep(begun(), first=at)

        self._on_their_way = finish

    def _finish(self) -> None:
        """Wait for what is on its way."""
        if self._on_their_way is not None:
            self._on_their_way()
            self._on_their_way = None

    def _clean_by_frame(self, frames: Array, *, count: int) -> None:
        cleaned, residues = self._engine.run("clean", frame=frames)
        changes = self._engine.download(residues)
        self._count(0, changes)
        self._keep(self._engine.download(cleaned), first=self._next)
        for i in range(count):
            frame, change = self._engine.slice(cleaned, i, i + 1), changes[i]
            for number in range(1, MAX_CLEANINGS):
                if 255.0 * change < self._threshold:
                    break
                frame, residue = self._engine.run("clean", frame=frame)
                change = self._engine.download(residue)[0]
                self._count(number, np.array([change]))
                self._keep(self._engine.download(frame), first=self._next + i)

    def _count(self, number: int, residues: NDArray[Any]) -> None:
        if self._decided is not None:
            return
        if number == len(self._sums):
            self._sums.append(0.0)
            self._counts.append(0)
        # One by one: the sum must not depend on the batch.
        for residue in residues:
            self._sums[number] += float(residue)
            self._counts[number] += 1

    def _keep(self, arrays: NDArray[Any], *, first: int) -> None:
        for i in range(len(arrays)):
            self._spool.put(first + i, arrays[i : i + 1])
