"""Upscales a stream of frames: scenes, chunks of long scenes, and the state carried between chunks.

A scene is the frames between two cuts; nothing crosses a cut. A scene of up to ``max_scene`` frames
is propagated in one go once its last frame has arrived: that is exact. A longer scene, or a stream
with a bounded lookahead, is processed in chunks. The forward state is carried from chunk to chunk
exactly; the backward branch cannot begin at the scene's end, so it begins some frames after the
chunk's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.engines.base import Engine
from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.pixels import Image
from rbvsr_deploy.runtime.context import Context, Stage
from rbvsr_deploy.runtime.memory_plan import MemoryBudget, MemoryPlan, choose_plan
from rbvsr_deploy.runtime.output_size import Target
from rbvsr_deploy.runtime.resizing import Resizer, halo_of
from rbvsr_deploy.runtime.scene import Scene, UpscaledFrame
from rbvsr_deploy.runtime.settings import MAX_SCENE, Settings
from rbvsr_deploy.runtime.spool import Spool
from rbvsr_deploy.runtime.stream_state import SceneRecord, StreamState
from rbvsr_deploy.units import show_bytes

__all__ = [
    "MAX_SCENE",
    "SceneRecord",
    "Settings",
    "Stage",
    "Stream",
    "StreamState",
    "UpscaledFrame",
]

logger = logging.getLogger(__name__)


class Stream(Closing):
    """Takes frames one by one and returns upscaled frames as soon as they are ready.

    Args:
        engine: runs the graphs; stays open.
        settings: see :class:`Settings`.
        size: H and W of the frames.
        deep: True for uint16 frames and output, False for uint8.
        target: size of the output; four times that of the frames if ``None``.
        any_values: continue with NaN and infinity, instead of raising ``EngineError``.
        folder: folder for frames that do not fit into memory; see
            :class:`~rbvsr_deploy.runtime.spool.Spool`.
        state: state to continue from; ``None`` for a new stream.
        progress: called with a stage and the frames it has done since the last call.
        on_scene: called at the end of every scene, before its last upscaled frame comes out if
            there is one left.

    Raises:
        RbvsrError: frames of this size do not fit into memory, or the model was exported by an
            earlier version and lacks a graph that is needed.
    """

    memory: int
    """Memory limit of the plan, in bytes."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        size: tuple[int, int],
        deep: bool = False,
        target: Target | None = None,
        any_values: bool = False,
        folder: Path | None = None,
        state: StreamState | None = None,
        progress: Callable[[Stage, int], None] = lambda stage, frames: None,
        on_scene: Callable[[SceneRecord], None] = lambda scene: None,
    ) -> None:
        on_cpu = engine.describe().device == "cpu"
        self.memory = settings.memory or engine.free_memory() // 2
        if settings.memory and on_cpu and settings.memory > (free := engine.free_memory()):
            logger.warning(
                "%s of memory may be used, but only %s are free: the system may kill this process",
                show_bytes(settings.memory),
                show_bytes(free),
            )
        amounts = _amounts(engine, settings)
        _check_graphs(engine, {*amounts, *(("resize",) if target is not None else ())})
        plan = choose_plan(
            engine.network,
            height=size[0],
            width=size[1],
            memory=self.memory,
            longest=settings.chunk,
            ahead=settings.lookahead or 0,
            on_cpu=on_cpu,
            deep=deep,
            keeps_uncleaned=bool(amounts),
            resized=target is not None,
            halo=halo_of(target, engine.network),
            most=engine.most_at_once(*size),
        )
        self._context = Context(
            engine,
            settings,
            size=size,
            budget=MemoryBudget(plan),
            deep=deep,
            any_values=any_values,
            resizer=None if target is None else Resizer(engine, target),
            amounts={
                graph: engine.upload(np.full(1, amount, np.float32))
                for graph, amount in amounts.items()
            },
            spool=Spool(folder),
            kept=Spool(folder),
            progress=progress,
        )
        self._on_scene = on_scene
        self._frames = state.frames if state is not None else 0
        self._scene: Scene | None = None
        if state is not None and state.arrays:
            self._scene = self._open_scene(state.scene, continued=state)

    @property
    def plan(self) -> MemoryPlan:
        """The memory plan in effect; it gets smaller if the device runs out of memory."""
        return self._context.budget.plan

    def push(self, image: Image, *, cut: bool = False) -> Iterator[UpscaledFrame]:
        """Take the next frame and upscale those that are ready; exhaust the iterator.

        Args:
            image: (H, W, 3) RGB: uint8, or uint16 in a deep stream.
            cut: True if a new scene begins with this frame.
        """
        if cut:
            yield from self.flush()
        if self._scene is None:
            self._scene = self._open_scene(self._frames)
        self._frames += 1
        yield from self._scene.push(image)

    def flush(self) -> Iterator[UpscaledFrame]:
        """End the scene and upscale its remaining frames; exhaust the iterator."""
        if self._scene is not None:
            yield from self._scene.end()
            self._scene = None
            self._context.spool.clear()

    def close(self) -> None:
        """Free memory and disk space; the engine stays open."""
        self._scene = None
        self._context.close()

    def _open_scene(self, first_frame: int, *, continued: StreamState | None = None) -> Scene:
        return Scene(
            self._context, first_frame=first_frame, continued=continued, on_scene=self._on_scene
        )


def _amounts(engine: Engine, settings: Settings) -> dict[str, float]:
    """Return the amounts that are neither none nor all, by the graph that takes them."""
    amounts = {}
    if settings.strength < 1:
        amounts["blend"] = settings.strength
    if 0 < settings.denoise < 1 and engine.network.has_cleaning and settings.passes != 0:
        amounts["mix"] = settings.denoise
    return amounts


def _check_graphs(engine: Engine, needed: set[str]) -> None:
    """Raise RbvsrError if the model lacks a graph."""
    if missing := needed - {*engine.network.graphs}:
        uses = {
            "mix": ("clean partly", "denoise"),
            "blend": ("use another strength than 1", "strength"),
            "resize": ("write another size than four times the input's", "size"),
        }
        texts, parameters = zip(*(uses[graph] for graph in sorted(missing)), strict=True)
        raise RbvsrError(
            f"'{engine.describe().model}' cannot {' or '.join(texts)}, as an earlier version "
            "exported it: export the checkpoint again",
            parameters=parameters,
        )
