"""Frames in, pictures out: scenes, parts of long scenes, and what is carried from part to part.

A scene is a run of frames between two cuts; nothing crosses a cut. It is propagated in one go once
its last frame is there, up to ``max_scene`` frames: that is exact. A longer scene, or a stream with
a bounded lookahead, is worked on in parts. The forward state is carried over from part to part
exactly; the backward branch cannot begin at the scene's end, so it begins some frames after the
part's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.engines.base import Array, Engine
from rbvsr_deploy.errors import DeviceMemoryError
from rbvsr_deploy.pixels import Image
from rbvsr_deploy.runtime.memory_plan import MemoryPlan, choose_plan
from rbvsr_deploy.runtime.propagation import SceneFrames, propagate
from rbvsr_deploy.runtime.refinement import Cleaner, RefineScope
from rbvsr_deploy.runtime.spool import Spool
from rbvsr_deploy.runtime.stream_state import SceneRecord, StreamState
from rbvsr_deploy.units import show_bytes

__all__ = [
    "CONTINUATION_LOOKAHEAD",
    "MAX_SCENE",
    "SceneRecord",
    "Settings",
    "Stage",
    "Stream",
    "StreamState",
    "UpscaledFrame",
]

logger = logging.getLogger(__name__)

MAX_SCENE = 300
"""Frames that are propagated in one go at most, unless told otherwise."""

CONTINUATION_LOOKAHEAD = 32
"""How many frames after a part of a scene longer than ``max_scene`` its backward branch begins. The
last picture of a part, which knows least, then differs by 0.02 to 0.07 levels of 255 from that of
the whole scene (root mean square, the compact model on four of five real clips); by 0.06 to 0.13
with 16 frames, by 2 to 4 with none. float16 makes 0.2 (``benchmarks/README.md``).
"""

Stage = Literal["clean", "backward", "forward"]


@dataclass(frozen=True)
class Settings:
    """What decides over the pictures, and the memory that may be used for them.

    Raises:
        ValueError: a number is out of range.
    """

    lookahead: int | None = None
    """How many future frames a frame draws on; ``None``: all of its scene."""
    max_scene: int = MAX_SCENE
    """Frames of a scene that are propagated in one go at most; longer scenes are continued."""
    refine_threshold: float | None = None
    """Of dynamic refinement, on the 0-255 scale; ``None``: the model's own."""
    refine_scope: RefineScope = "scene"
    """Whether the scene decides how often it is cleaned, or every frame for itself."""
    cleanings: int | None = None
    """Fixed number of cleaning passes instead of a decision."""
    memory: int | None = None
    """Bytes to use on the device; ``None``: half of what is free. Not a matter of the pictures."""

    def __post_init__(self) -> None:
        for name, least in (("lookahead", 0), ("max_scene", 1), ("cleanings", 0), ("memory", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")
        if self.refine_scope not in ("scene", "frame"):
            raise ValueError(f"refine_scope is 'scene' or 'frame', got {self.refine_scope!r}")


@dataclass(frozen=True, eq=False)
class UpscaledFrame:
    """A picture, and what is carried on from it."""

    image: Image
    """(4H, 4W, 3) RGB, of the dtype of the frames."""
    state: Callable[[], StreamState]
    """Copies what is carried on from the device. Call it before the next picture is asked for."""
    ends_scene: bool = False
    """Whether nothing is carried on. A scene may also end later, when no frame follows."""


class Stream(Closing):
    """Takes frames one by one and gives pictures as soon as they can be made; a context manager.

    Args:
        engine: runs the graphs; stays open.
        settings: see :class:`Settings`.
        size: H and W of the frames.
        deep: whether frames and pictures are uint16, not uint8.
        folder: where frames that do not fit into memory wait; see :class:`Spool`.
        state: to go on from; ``None`` for a new stream.
        progress: called with a stage and the frames it has done since the last call.
        on_scene: called at the end of every scene, before its last picture comes out if there is
            one left.

    Raises:
        RbvsrError: the memory does not suffice for frames of this size.
    """

    plan: MemoryPlan
    """How the work is cut up."""
    memory: int
    """Bytes the plan was made for."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        size: tuple[int, int],
        deep: bool = False,
        folder: Path | None = None,
        state: StreamState | None = None,
        progress: Callable[[Stage, int], None] = lambda stage, frames: None,
        on_scene: Callable[[SceneRecord], None] = lambda scene: None,
    ) -> None:
        bounded = settings.lookahead is not None
        on_cpu = engine.describe().device == "cpu"
        self.memory = settings.memory or engine.free_memory() // 2
        if settings.memory and on_cpu and settings.memory > (free := engine.free_memory()):
            logger.warning(
                "%s of memory may be used, but only %s are free: the system may stop this run",
                show_bytes(settings.memory),
                show_bytes(free),
            )
        self.plan = choose_plan(
            engine.network,
            height=size[0],
            width=size[1],
            memory=self.memory,
            longest=1 if bounded else settings.max_scene,
            ahead=settings.lookahead or 0,
            on_cpu=on_cpu,
            deep=deep,
        )
        self._engine = engine
        self._settings = settings
        self._size = size
        self._deep = deep
        self._progress = progress
        self._on_scene = on_scene
        self._part = 1 if bounded else settings.max_scene
        self._ahead = CONTINUATION_LOOKAHEAD if settings.lookahead is None else settings.lookahead
        self._spool = Spool(folder=folder, in_memory=self.plan.in_memory)
        self._kept = Spool(folder=folder, in_memory=0)
        self._frames = state.frames if state is not None else 0
        self._scene: _Scene | None = None
        if state is not None and state.arrays:
            self._scene = self._open_scene(state.scene, continued=state)

    def push(self, image: Image, *, cut: bool = False) -> Iterator[UpscaledFrame]:
        """Take the next frame and make the pictures that can be made now; exhaust the iterator.

        Args:
            image: (H, W, 3) RGB: uint8, or uint16 in a deep stream.
            cut: whether a new scene begins with this frame.
        """
        if cut:
            yield from self.flush()
        if self._scene is None:
            self._scene = self._open_scene(self._frames)
        self._frames += 1
        yield from self._scene.push(image)

    def flush(self) -> Iterator[UpscaledFrame]:
        """End the scene and make its remaining pictures; exhaust the iterator."""
        if self._scene is not None:
            yield from self._scene.end()
            self._scene = None
            self._spool.clear()

    def _take_less(self, error: DeviceMemoryError) -> MemoryPlan:
        """A smaller plan, when the device has less memory left than was thought."""
        plan = self.plan.smaller()
        if plan is None:
            raise error
        # Not the error itself: it holds the arrays of the run that failed.
        logger.warning("%s: going on with %s", str(error), plan)
        self.plan = plan
        return plan

    def close(self) -> None:
        """Free memory and disk."""
        self._scene = None
        self._spool.clear()
        self._kept.clear()

    def _open_scene(self, first_frame: int, *, continued: StreamState | None = None) -> _Scene:
        return _Scene(
            self._engine,
            self._settings,
            self.plan,
            size=self._size,
            deep=self._deep,
            part=self._part,
            ahead=self._ahead,
            spool=self._spool,
            kept=self._kept,
            first_frame=first_frame,
            continued=continued,
            progress=self._progress,
            on_scene=self._on_scene,
            take_less=self._take_less,
        )


class _Scene:
    """One scene on its way: frames are numbered from its first one."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        plan: MemoryPlan,
        *,
        size: tuple[int, int],
        deep: bool,
        part: int,
        ahead: int,
        spool: Spool,
        kept: Spool,
        first_frame: int,
        continued: StreamState | None,
        progress: Callable[[Stage, int], None],
        on_scene: Callable[[SceneRecord], None],
        take_less: Callable[[DeviceMemoryError], MemoryPlan],
    ) -> None:
        self._engine = engine
        self._on_scene = on_scene
        self._take_less = take_less
        self._plan = plan
        self._size = size
        self._deep = deep
        self._part = part
        self._ahead = ahead
        # Parts of one frame go over the same frames again and again: they stay on the device.
        self._in_use = ahead if part == 1 else 0
        self._spool = spool
        self._kept = kept
        self._first_frame = first_frame
        self._progress = progress
        self._start = 0  # of the part
        self._done = 0  # pictures made
        self._forward_state: Array | None = None
        if continued is not None:
            self._start = continued.chunk - first_frame
            self._done = continued.frames - first_frame
            spool.put(self._done - 1, continued.arrays["previous"])
            self._forward_state = engine.upload(continued.arrays["forward_state"])
        threshold = settings.refine_threshold
        self._cleaner = Cleaner(
            engine,
            spool,
            first=self._done,
            batch=plan.batch,
            threshold=engine.network.refine_threshold if threshold is None else threshold,
            cleanings=settings.cleanings,
            scope=settings.refine_scope,
            decided=continued.refinement if continued is not None else None,
            progress=lambda frames: progress("clean", frames),
        )
        self._frames: SceneFrames | None = None

    def push(self, image: Image) -> Iterator[UpscaledFrame]:
        self._cleaner.push(image)
        end = self._start + self._part
        if self._cleaner.known >= end + self._ahead:
            yield from self._make(end, stop=end + self._ahead)

    def end(self) -> Iterator[UpscaledFrame]:
        known = self._cleaner.known
        while known - self._start > self._part:
            end = self._start + self._part
            yield from self._make(end, stop=min(known, end + self._ahead))
        if known > self._done:
            yield from self._make(known, stop=known, ends_scene=True)
        else:
            self._tell()

    def _tell(self) -> None:
        decided = self._cleaner.decide()
        self._on_scene(
            SceneRecord(self._first_frame, self._done, decided.cleanings, decided.residues)
        )

    def _make(self, end: int, *, stop: int, ends_scene: bool = False) -> Iterator[UpscaledFrame]:
        """The pictures up to frame ``end``, drawing on those up to ``stop``. Where the device has
        too little memory for the plan, a smaller one goes on behind the last picture.
        """
        self._cleaner.decide()
        first = self._done
        while self._done < end:
            try:
                for picture, state in self._propagate(end, stop=stop):
                    self._forward_state = state
                    self._done += 1
                    if self._done == end:
                        self._start = end
                        for i in range(first - 1, end - 1):
                            # All but the last, to which the next frame's flow goes.
                            self._spool.drop(i)
                        if ends_scene:
                            self._tell()
                    self._progress("forward", 1)
                    over = ends_scene and self._done == end
                    carried = self._ended if over else self._state
                    yield UpscaledFrame(picture, state=carried, ends_scene=over)
            except DeviceMemoryError as error:
                self._plan = self._take_less(error)
                self._frames = None
                self._kept.clear()

    def _propagate(self, end: int, *, stop: int) -> Iterator[tuple[Image, Array]]:
        if self._frames is None:
            self._frames = SceneFrames(
                self._engine, self._spool, batch=self._plan.batch, ahead=self._in_use
            )
        return propagate(
            self._engine,
            self._frames,
            start=self._done,
            end=end,
            stop=stop,
            size=self._size,
            plan=self._plan,
            kept=self._kept,
            deep=self._deep,
            forward_state=self._forward_state,
            progress=lambda: self._progress("backward", 1),
        )

    def _ended(self) -> StreamState:
        return StreamState.between_scenes(self._first_frame + self._done)

    def _state(self) -> StreamState:
        arrays = {
            "forward_state": self._engine.download(self._forward_state).copy(),
            "previous": self._spool.get(self._done - 1).copy(),
        }
        return StreamState(
            frames=self._first_frame + self._done,
            scene=self._first_frame,
            chunk=self._first_frame + self._start,
            refinement=self._cleaner.decide(),
            arrays=arrays,
        )
