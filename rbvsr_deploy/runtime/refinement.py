"""Runs dynamic refinement: cleans frames until the cleaning changes little (paper, section 3.2).

The published code takes one decision for everything it is given at once, so chunking and batching
change its result. Here the decision belongs to the scene, which is the same whatever the engine,
the window or the machine; or to the single frame, as the paper's text has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines.base import Array
from rbvsr_deploy.errors import DeviceMemoryError
from rbvsr_deploy.graphs import MAX_CLEANINGS
from rbvsr_deploy.pixels import Image, network_input
from rbvsr_deploy.runtime.context import Context
from rbvsr_deploy.runtime.finite import check_finite
from rbvsr_deploy.runtime.scene_frames import SceneFrames

__all__ = ["Cleaner", "Refinement"]


@dataclass(frozen=True)
class Refinement:
    """Records the decision for one scene."""

    cleanings: int
    """Passes over the frames; with the scope ``frame``, those of the frame that took most."""
    residues: list[float] = field(default_factory=list)
    """Mean absolute change of each pass over its frames, on the 0-255 scale; for a scene that is
    processed in chunks, over its first chunk.
    """


class Cleaner:
    """Cleans the frames of one scene as they arrive.

    With the scope ``scene``, every frame is cleaned once when it arrives; :meth:`decide` takes the
    decision from the frames that have arrived by then and cleans them as often as it says. Later
    frames are cleaned equally often: a scene never changes its look in the middle. A network
    without cleaning (BasicVSR) leaves the frames unchanged.

    Args:
        context: of the stream; its settings say how to decide.
        frames: takes the cleaned frames, by their number within the scene.
        first: number of the first frame.
        first_frame: number of the scene's first frame within the stream, for messages.
        decided: the decision for a scene that is continued.

    Raises:
        EngineError: by all methods, if a frame's residue is not finite.
    """

    def __init__(
        self,
        context: Context,
        frames: SceneFrames,
        *,
        first: int = 0,
        first_frame: int = 0,
        decided: Refinement | None = None,
    ) -> None:
        self._context = context
        self._engine = context.engine
        self._frames = frames
        self._first = first
        self._first_frame = first_frame
        self._next = first
        self._waiting: list[Image] = []
        self._counting: Callable[[], None] | None = None
        # Sum of the frames' residues and number of frames, per pass.
        self._sums: list[float] = []
        self._counts: list[int] = []
        network, settings = context.engine.network, context.settings
        threshold = settings.refine_threshold
        self._threshold = network.refine_threshold if threshold is None else threshold
        self._decided = decided if network.has_cleaning else Refinement(0)
        self._by_frame = (
            network.has_cleaning and settings.passes is None and settings.refine_scope == "frame"
        )
        # Passes on arrival; one while that is not decided yet.
        self._passes = settings.passes
        if self._decided is not None and not self._by_frame:
            self._passes = self._decided.cleanings

    @property
    def known(self) -> int:
        """Number of the frame after the last that has arrived."""
        return self._next + len(self._waiting)

    def push(self, image: Image) -> None:
        """Take the next frame, of the same dtype as the others."""
        self._waiting.append(image)
        if len(self._waiting) >= self._context.budget.plan.batch:
            self.flush()

    def flush(self) -> None:
        """Clean the frames that wait for their batch to fill."""
        while self._waiting:
            images = np.stack(self._waiting[: self._context.budget.plan.batch])
            try:
                with self._engine.held():
                    self._take(images)
            except DeviceMemoryError as error:
                self._frames.shrink(error)
            else:
                del self._waiting[: len(images)]
                self._next += len(images)
                self._context.progress("clean", len(images))

    def decide(self) -> Refinement:
        """Decide how often the scene is cleaned, and clean the frames that have arrived; later
        calls only return the decision.
        """
        self.flush()
        self._finish()
        if self._decided is None:
            if self._passes is None and not self._by_frame:
                while self._residues()[-1] >= self._threshold and len(self._sums) < MAX_CLEANINGS:
                    self._clean_again(number=len(self._sums))
                self._passes = len(self._sums)
            self._decided = Refinement(len(self._sums), self._residues())
            if "mix" in self._context.amounts:
                self._mix_again()
        return self._decided

    def _residues(self) -> list[float]:
        return [255.0 * s / n for s, n in zip(self._sums, self._counts, strict=True)]

    def _clean_again(self, *, number: int) -> None:
        """Run pass ``number`` over everything that has arrived."""
        start = self._first
        while start < self._next:
            stop = self._frames.block_end(start)
            try:
                frames = self._frames.frames(start, stop)
                passes = range(number, number + 1)
                uncleaned = self._uncleaned(start, stop)
                self._clean(
                    frames, count=stop - start, passes=passes, at=start, uncleaned=uncleaned
                )
            except DeviceMemoryError as error:
                self._frames.shrink(error)
            else:
                start = stop
        self._finish()

    def _mix_again(self) -> None:
        """Take back a part of the cleaning of everything that has arrived."""
        start = self._first
        while start < self._next:
            stop = self._frames.block_end(start)
            try:
                cleaned = self._frames.frames(start, stop)
                self._add(
                    start, cleaned, count=stop - start, uncleaned=self._uncleaned(start, stop)
                )
            except DeviceMemoryError as error:
                self._frames.shrink(error)
            else:
                start = stop

    def _uncleaned(self, start: int, stop: int) -> Array | None:
        keeps = self._context.keeps_uncleaned
        return self._frames.uncleaned(start, stop) if keeps else None

    def _add(
        self,
        at: int,
        frames: Array,
        *,
        count: int,
        uncleaned: Array | None,
        places: int | None = None,
    ) -> None:
        """Hand over cleaned frames. Once it is decided how often the scene is cleaned, a part of
        the cleaning is taken back, if the settings say so.
        """
        amount = self._context.amounts.get("mix")
        if amount is not None and self._decided is not None:
            (frames,) = self._engine.run("mix", frame=uncleaned, cleaned=frames, amount=amount)
            places = None
        self._frames.add(at, frames, count=count, places=places, uncleaned=uncleaned)

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
            self._clean(frames, count=len(images), passes=passes, at=self._next)

    def _clean(
        self,
        frames: Array,
        *,
        count: int,
        passes: range,
        at: int,
        uncleaned: Array | None = None,
    ) -> None:
        """Run some passes over a batch that begins with frame ``at``. Its residues are downloaded
        while the next batch is computed.
        """
        uncleaned = frames if uncleaned is None else uncleaned
        changes = []
        for number in passes:
            frames, residues = self._engine.run("clean", frame=frames)
            changes.append((number, self._engine.begin_download(residues)))
        self._add(at, frames, count=count, uncleaned=uncleaned)
        self._finish()

        def finish() -> None:
            for number, residues in changes:
                self._count(number, self._finite(residues(), at=at))

        self._counting = finish

    def _finish(self) -> None:
        """Wait for residues that are being downloaded."""
        if self._counting is not None:
            self._counting()
            self._counting = None

    def _clean_by_frame(self, frames: Array, *, count: int) -> None:
        """Clean a batch once, and its frames further as each of them decides."""
        cleaned, residues = self._engine.run("clean", frame=frames)
        values = self._finite(self._engine.download(residues), at=self._next)
        changes = [[float(residue)] for residue in values]
        further: dict[int, Array] = {}
        for i, passes in enumerate(changes):
            frame = self._engine.slice(cleaned, i, i + 1)
            while 255.0 * passes[-1] >= self._threshold and len(passes) < MAX_CLEANINGS:
                frame, residues = self._engine.run("clean", frame=frame)
                value = self._finite(self._engine.download(residues), at=self._next + i)
                passes.append(float(value[0]))
                further[i] = frame
        for number in range(MAX_CLEANINGS):
            self._count(number, [passes[number] for passes in changes if len(passes) > number])
        # Neighbours that one pass is enough for stay together. Each of the others has an array of
        # its own, and occupies its place in the batch too.
        start = 0
        for i in (*further, count):
            if i > start:
                same = self._engine.slice(cleaned, start, i)
                before = self._engine.slice(frames, start, i)
                self._add(self._next + start, same, count=i - start, uncleaned=before)
            if i < count:
                before = self._engine.slice(frames, i, i + 1)
                self._add(self._next + i, further[i], count=1, places=2, uncleaned=before)
            start = i + 1

    def _finite(self, residues: NDArray[Any], *, at: int) -> NDArray[Any]:
        """Return the residues of a batch that begins with frame ``at``, after checking them."""
        for i, residue in enumerate(residues, self._first_frame + at):
            check_finite(self._context, residue, graph="clean", frame=i)
        return residues

    def _count(self, number: int, residues: Iterable[float]) -> None:
        if self._decided is not None:
            return
        # One by one: the sum must not depend on the batch.
        for residue in residues:
            if number == len(self._sums):
                self._sums.append(0.0)
                self._counts.append(0)
            self._sums[number] += float(residue)
            self._counts[number] += 1
