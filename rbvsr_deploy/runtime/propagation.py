"""Runs exact bidirectional propagation over a scene, in the memory of a fraction of its states.

The backward branch needs the last frame before the first frame can be upscaled. Keeping its state
for every frame makes long scenes run out of memory. So the first pass keeps only every w-th state,
in a spool; then the frames are processed window by window of w frames: the backward states of a
window are recomputed from the state kept at its end, while the forward branch advances and upscaled
frames come out. The device holds w states, whatever the length of the scene, at the cost of one
more backward pass; a scene of w frames or fewer is propagated once. The two branches meet only in
``reconstruct``; where the states of both fit, an asynchronous engine runs them side by side.

The result equals :meth:`rbvsr_deploy.model.RealBasicVSR.propagate` on the whole scene, whatever the
window, the batch and the bands.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines.base import Array, Engine
from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.pixels import Image, sixteen_bit_images
from rbvsr_deploy.runtime.context import Context
from rbvsr_deploy.runtime.finite import begin_check, check_finite
from rbvsr_deploy.runtime.resizing import Band
from rbvsr_deploy.runtime.scene_frames import SceneFrames

__all__ = ["propagate"]


def propagate(
    context: Context,
    frames: SceneFrames,
    *,
    start: int,
    end: int,
    stop: int,
    forward_state: Array | None = None,
    first_frame: int = 0,
    checked: bool = True,
) -> Iterator[tuple[Image, Array]]:
    """Upscale some frames of a scene.

    Args:
        context: of the stream; its plan in effect sets window, batch and bands.
        frames: the scene's cleaned frames.
        start, end: the frames from ``start`` up to ``end``, excluding it, are upscaled.
        stop: the backward branch begins at frame ``stop - 1``, with no state: the end of the scene,
            or the limit of the lookahead. At least ``end``.
        forward_state: state of the frame before ``start``, (1, C, H, W); ``None`` at the start of a
            scene.
        first_frame: number of the scene's first frame within the stream, for messages.
        checked: whether to check that values are finite.

    Yields:
        For each frame, in order, the upscaled frame (4H, 4W, 3) RGB, uint8 or uint16, or of
            the size that the context's resizer makes, and the
        forward state (1, C, H, W) to continue from. A state is valid until the next frame is
        requested, the last one for good. One batch is downloaded while the next one is computed.

    Raises:
        DeviceMemoryError: the plan is too big for the memory left on the device. The last state
            that was yielded stays valid, to continue from with a smaller plan.
        EngineError: a state or an output at the end of a window is not finite.
    """
    steps = _Steps(context, frames, first_frame=first_frame)
    engine, plan = context.engine, context.budget.plan
    window = min(plan.window, end - start)
    states = steps.empty_states(window)
    state = steps.first_pass(start + window, window=window, start=start, end=end, stop=stop)
    # The states of the first window stay on the device.
    backward = steps.walk("backward", reversed(range(start, start + window)), state, into=states)
    ahead = None
    if engine.asynchronous and 2 * (end - start) <= plan.window:
        # There is room for the states of both branches, so they run side by side.
        ahead = steps.empty_states(window)
        forward = steps.walk("forward", range(start, end), forward_state, into=ahead)
    else:
        forward = iter(())
    with engine.held():
        for _ in itertools.zip_longest(backward, forward):
            context.progress("backward", 1)
    if checked:
        frame, first_state = first_frame + start, engine.slice(states, 0, 1)
        steps.checks.append(begin_check(context, first_state, graph="backward", frame=frame))

    state = forward_state
    # The states of three batches: one being computed, one whose frames are being downloaded, and
    # one whose frames have come out, which the caller can continue from if the others fail.
    running = steps.running() if ahead is None else []
    downloading: Iterator[tuple[Image, Array]] = iter(())
    for first in range(start, end, window):
        last = min(first + window, end)
        if first > start:
            steps.recompute(first, last, states)
        i = first
        while i < last:
            j = min(last, frames.block_end(i))
            with engine.held():
                if ahead is None:
                    running.append(running.pop(0))
                    for _, new_state in steps.batch("forward", range(i, j), state, at=running[0]):
                        state = new_state
                    forward_states = engine.slice(running[0].states, 0, j - i)
                else:
                    forward_states = engine.slice(ahead, i - start, j - start)
                begun = steps.begin_upscaling(
                    i,
                    j,
                    backward_states=engine.slice(states, i - first, j - first),
                    forward_states=forward_states,
                    check=checked and j == last,
                )
            yield from downloading
            downloading = _downloaded(engine, begun, forward_states, checks=steps.checks)
            steps.checks = []
            i = j
    for image, state in downloading:
        if ahead is not None:
            # The caller keeps the last state, and with it the memory it lies in.
            place = steps.empty_states(1)
            engine.copy(state, into=place)
            state = place
        yield image, state


def _downloaded(
    engine: Engine,
    begun: Callable[[], Image],
    states: Array,
    *,
    checks: Iterable[Callable[[], None]],
) -> Iterator[tuple[Image, Array]]:
    """Yield the upscaled frames of a batch and their forward states, if all checks pass."""
    for check in checks:
        check()
    for number, image in enumerate(begun()):
        yield image, engine.slice(states, number, number + 1)


@dataclass(frozen=True)
class _Places:
    """The places of a batch of steps on the device, in the order of their frames.

    An asynchronous engine repeats its launches at a few places, so the frames and flows are copied
    there, a batch at a time.
    """

    states: Array | None
    """(batch, C, H, W), computed; ``None`` while none are chosen."""
    frames: Array | None = None
    """(batch, 3, H, W), copied; ``None`` for an engine that takes them where they are."""
    flows: Array | None = None
    """(batch, 2, H, W), copied, or ``None``."""


def _below_each_other(parts: Iterable[Callable[[], Image]]) -> Image:
    return np.concatenate([begun() for begun in parts], axis=1)


class _Steps:
    """Runs the steps of both branches over the frames of one scene."""

    checks: list[Callable[[], None]]
    """Checks to make before the next batch is yielded."""

    def __init__(self, context: Context, frames: SceneFrames, *, first_frame: int) -> None:
        self.checks = []
        self._first_frame = first_frame
        self._context = context
        self._engine = context.engine
        self._frames = frames
        self._band = context.budget.plan.band
        self._batch = context.budget.plan.batch
        self._at_once = self._batch if self._engine.asynchronous else 1
        (nothing,) = self._lasting("nothing", 1, self._nothing)
        self._no_state, self._no_flow = nothing.states, nothing.flows

    def empty_states(self, count: int) -> Array:
        """Allocate room for states: (count, C, H, W)."""
        return self._engine.empty(self._state_shape(count), dtype=self._precision)

    def walked(self, branch: str) -> list[_Places]:
        """Return the two places where batches of a branch are computed in turn."""
        return self._lasting(branch, 2, lambda: self._places(self.empty_states(self._at_once)))

    def running(self) -> list[_Places]:
        """Return three places where batches of the forward branch are computed in turn: the caller
        continues from their states, which therefore are new ones.
        """
        inputs = self._lasting("running", 3, lambda: self._places(None))
        return [replace(places, states=self.empty_states(self._batch)) for places in inputs]

    def _lasting(self, name: str, count: int, make: Callable[[], _Places]) -> list[_Places]:
        """Return places that stay the same from scene to scene, unless the plan changes."""
        batch, places = self._context.places.get(name, (0, []))
        if batch != self._batch:
            places = [make() for _ in range(count)]
            self._context.places[name] = self._batch, places
        return places

    def _nothing(self) -> _Places:
        """Make the state and the flow of a branch that begins."""
        flow = self._engine.zeros((1, 2, *self._context.size), dtype="float32")
        return _Places(self._engine.zeros(self._state_shape(1), dtype=self._precision), flows=flow)

    def _places(self, states: Array | None) -> _Places:
        if not self._engine.asynchronous:
            return _Places(states)
        frames, flows = (self._batch, 3, *self._context.size), (self._batch, 2, *self._context.size)
        return _Places(
            states,
            self._engine.empty(frames, dtype=self._precision),
            self._engine.empty(flows, dtype="float32"),
        )

    def batch(
        self, branch: str, numbers: Sequence[int], state: Array | None, *, at: _Places
    ) -> Iterator[tuple[int, Array]]:
        """Run a branch over consecutive frames of one block, in its order, at some places.

        Args:
            branch: its name.
            numbers: of the frames.
            state: of the frame that the branch comes from, if any.
            at: takes the states.

        Yields:
            The number of each frame and its state.
        """
        engine, first = self._engine, min(numbers)
        frames = self._copied(self._frames.frames(first, max(numbers) + 1), at.frames, branch)
        # A branch begins without a state: the first frame has no flow.
        moving = numbers if state is not None else numbers[1:]
        flows, low = self._no_flow, min(moving, default=0)
        if moving:
            step = 1 if branch == "backward" else -1
            flows = self._frames.flows(low, max(moving) + 1, step=step)
            flows = self._copied(flows, at.flows, branch)
        for i in numbers:
            place = i - first, i - first + 1
            (state,) = engine.run(
                branch,
                into=[engine.slice(at.states, *place)],
                frame=engine.slice(frames, *place),
                state=self._no_state if state is None else state,
                flow=engine.slice(flows, i - low, i - low + 1) if i in moving else self._no_flow,
            )
            yield i, state

    def _copied(self, array: Array, into: Array | None, branch: str) -> Array:
        """Copy frames or flows to the beginning of their places, if they have any."""
        if into is None:
            return array
        place = self._engine.slice(into, 0, array.shape[0])
        self._engine.copy(array, into=place, graph=branch)
        return place

    def walk(
        self,
        branch: str,
        numbers: Iterable[int],
        state: Array | None,
        *,
        into: Array | None = None,
    ) -> Iterator[tuple[int, Array]]:
        """Run a branch over consecutive frames, in its order.

        Args:
            branch: its name.
            numbers: of the frames.
            state: of the frame before the first one, if any.
            into: takes the states, in the order of their frames; complete at the end.

        Yields:
            The number of each frame and its state, which is valid for the next step; longer where
            it lies in ``into``.
        """
        order = list(numbers)
        lowest = min(order, default=0)
        direct = into is not None and not self._engine.asynchronous
        places = self.walked(branch) if order and not direct else []
        for some in self._batches(order):
            base = min(some) - lowest
            part = None if into is None else self._engine.slice(into, base, base + len(some))
            if direct:
                at = _Places(part)
            else:
                places.reverse()
                at = places[0]
            for i, new_state in self.batch(branch, some, state, at=at):
                state = new_state
                yield i, state
            if part is not None and not direct:
                self._engine.copy(self._engine.slice(at.states, 0, len(some)), into=part)

    def _batches(self, order: Sequence[int]) -> Iterator[list[int]]:
        """Yield frames in an order, those of one block at a time, no more than a batch."""
        for _, numbers in itertools.groupby(order, self._frames.block_end):
            block = list(numbers)
            for first in range(0, len(block), self._at_once):
                yield block[first : first + self._at_once]

    def first_pass(
        self, first: int, *, window: int, start: int, end: int, stop: int
    ) -> Array | None:
        """Run the backward branch from ``stop - 1`` to ``first``, and return the last state.

        Of these states, only those that windows start from are kept.
        """
        state = None
        keeping: tuple[int, Callable[[], NDArray[Any]]] | None = None
        for i, new_state in self.walk("backward", reversed(range(first, stop)), None):
            state = new_state
            is_start = (i - start) % window == 0 or i == end
            if first < i <= end and is_start and i < stop:
                if keeping is not None:
                    self._keep(*keeping)
                keeping = i, self._engine.begin_download(state)
            if i < end:
                self._context.progress("backward", 1)
        if keeping is not None:
            self._keep(*keeping)
        return state

    def _keep(self, i: int, begun: Callable[[], NDArray[Any]]) -> None:
        values = begun()
        check_finite(self._context, values, graph="backward", frame=self._first_frame + i)
        self._context.kept.put(i, values)

    def recompute(self, first: int, last: int, states: Array) -> None:
        """Recompute the backward states of a window from the one kept at its end, if any: none is
        kept at the end of a scene.
        """
        kept = self._context.kept
        state = self._engine.upload(kept.get(last)) if last in kept else None
        kept.drop(last)
        for _ in self.walk("backward", reversed(range(first, last)), state, into=states):
            pass

    def begin_upscaling(
        self,
        start: int,
        stop: int,
        *,
        backward_states: Array,
        forward_states: Array,
        check: bool,
    ) -> Callable[[], Image]:
        """Begin to upscale frames; the result waits for them: (stop - start, 4H, 4W, 3), or of the
        output's size.

        ``check`` adds checks of the last frame to :attr:`checks`.
        """
        last = (self._first_frame + stop - 1, stop - start) if check else None
        if last is not None:
            frame, count = last
            state = self._engine.slice(forward_states, count - 1, count)
            self.checks.append(begin_check(self._context, state, graph="forward", frame=frame))
        arrays = {
            "frame": self._frames.frames(start, stop),
            "backward_state": backward_states,
            "forward_state": forward_states,
        }
        if self._context.keeps_uncleaned:
            arrays["uncleaned"] = self._frames.uncleaned(start, stop)
        height, resizer = self._context.size[0], self._context.resizer
        halo = self._engine.network.halo
        if resizer is not None:
            parts = [
                self._reconstruct(self._rows(arrays, band.upper, band.lower), last=last, band=band)
                for band in resizer.bands(-(-height // self._band))
            ]
            return parts[0] if len(parts) == 1 else lambda: _below_each_other(parts)
        if self._band >= height:
            return self._reconstruct(arrays, last=last)
        bands = []
        for top in range(0, height, self._band):
            bottom = min(top + self._band, height)
            upper, lower = max(0, top - halo), min(height, bottom + halo)
            begun = self._reconstruct(self._rows(arrays, upper, lower), last=last)
            bands.append((begun, SCALE * (top - upper), SCALE * (bottom - upper)))
        return lambda: np.concatenate([begun()[:, top:end] for begun, top, end in bands], axis=1)

    def _rows(self, arrays: dict[str, Array], upper: int, lower: int) -> dict[str, Array]:
        """Return some rows of the inputs of ``reconstruct``."""
        if (upper, lower) == (0, self._context.size[0]):
            return arrays
        return {name: self._engine.rows(array, upper, lower) for name, array in arrays.items()}

    def _reconstruct(
        self, arrays: dict[str, Array], *, last: tuple[int, int] | None, band: Band | None = None
    ) -> Callable[[], Image]:
        inputs = {name: array for name, array in arrays.items() if name != "uncleaned"}
        (output,) = self._engine.run("reconstruct", **inputs)
        if last is not None:
            frame, count = last
            checked = self._engine.slice(output, count - 1, count)
            self.checks.append(
                begin_check(self._context, checked, graph="reconstruct", frame=frame)
            )
        if (strength := self._context.amounts.get("blend")) is not None:
            (output,) = self._engine.run(
                "blend", frame=arrays["uncleaned"], picture=output, amount=strength
            )
        if band is not None and self._context.resizer is not None:
            return self._context.resizer.begin(output, band, deep=self._context.deep)
        if self._context.deep:
            # TensorRT does not support uint16, so no graph can produce it.
            begun = self._engine.begin_download(output)
            return lambda: sixteen_bit_images(begun())
        (image,) = self._engine.run("emit", picture=output)
        return self._engine.begin_download(image)

    @property
    def _precision(self) -> str:
        return self._engine.network.precision

    def _state_shape(self, count: int) -> tuple[int, int, int, int]:
        return (count, self._engine.network.channels, *self._context.size)
