"""Processes one scene of a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rbvsr_deploy.engines.base import Array
from rbvsr_deploy.errors import DeviceMemoryError
from rbvsr_deploy.pixels import Image
from rbvsr_deploy.runtime.context import Context
from rbvsr_deploy.runtime.finite import CHECK_EVERY, check_finite
from rbvsr_deploy.runtime.propagation import propagate
from rbvsr_deploy.runtime.refinement import Cleaner
from rbvsr_deploy.runtime.scene_frames import SceneFrames
from rbvsr_deploy.runtime.stream_state import SceneRecord, StreamState

__all__ = ["Scene", "UpscaledFrame"]


@dataclass(frozen=True, eq=False)
class UpscaledFrame:
    """Holds an upscaled frame and the state after it."""

    image: Image
    """(4H, 4W, 3) RGB, or of the output's size, of the dtype of the input frames."""
    state: Callable[[], StreamState]
    """Copies the state from the device. Call it before the next frame is requested."""
    ends_scene: bool = False
    """True if no scene continues after it. A scene may also end later, when no frame follows."""


class Scene:
    """Upscales the frames of one scene, which are numbered from its first one.

    Args:
        context: of the stream.
        first_frame: number of the scene's first frame within the stream.
        continued: state to continue from; ``None`` for a new scene.
        on_scene: called at the end of the scene.
    """

    def __init__(
        self,
        context: Context,
        *,
        first_frame: int,
        continued: StreamState | None = None,
        on_scene: Callable[[SceneRecord], None],
    ) -> None:
        self._context = context
        self._first_frame = first_frame
        self._on_scene = on_scene
        self._frames = SceneFrames(context)
        self._start = 0  # of the chunk
        self._done = 0  # upscaled frames
        self._forward_state: Array | None = None
        if continued is not None:
            self._start = continued.chunk - first_frame
            self._done = continued.frames - first_frame
            previous = context.engine.upload(continued.arrays["previous"])
            self._frames.add(self._done - 1, previous, count=1)
            self._forward_state = context.engine.upload(continued.arrays["forward_state"])
        self._cleaner = Cleaner(
            context,
            self._frames,
            first=self._done,
            first_frame=first_frame,
            decided=continued.refinement if continued is not None else None,
        )

    def push(self, image: Image) -> Iterator[UpscaledFrame]:
        """Take the next frame and upscale those that are ready."""
        settings = self._context.settings
        self._cleaner.push(image)
        end = self._start + settings.chunk
        if self._cleaner.known >= end + settings.ahead:
            yield from self._upscale(end, stop=end + settings.ahead)

    def end(self) -> Iterator[UpscaledFrame]:
        """Upscale the remaining frames."""
        settings, known = self._context.settings, self._cleaner.known
        while known - self._start > settings.chunk:
            end = self._start + settings.chunk
            yield from self._upscale(end, stop=min(known, end + settings.ahead))
        if known > self._done:
            yield from self._upscale(known, stop=known, ends_scene=True)
        else:
            self._report()

    def _report(self) -> None:
        decided = self._cleaner.decide()
        self._on_scene(
            SceneRecord(self._first_frame, self._done, decided.cleanings, decided.residues)
        )

    def _upscale(self, end: int, *, stop: int, ends_scene: bool = False) -> Iterator[UpscaledFrame]:
        """Upscale the frames before ``end``, drawing on those before ``stop``. If the device runs
        out of memory, continue with a smaller plan after the last upscaled frame.
        """
        self._cleaner.decide()
        while self._done < end:
            upscaled = propagate(
                self._context,
                self._frames,
                start=self._done,
                end=end,
                stop=stop,
                forward_state=self._forward_state,
                first_frame=self._first_frame,
                checked=ends_scene or self._done // CHECK_EVERY < end // CHECK_EVERY,
            )
            try:
                for image, state in upscaled:
                    self._forward_state = state
                    self._done += 1
                    if self._done == end:
                        self._start = end
                        # All but the last, which the flow from the next frame needs.
                        self._frames.forget(before=end - 1)
                        if ends_scene:
                            self._report()
                    self._context.progress("forward", 1)
                    over = ends_scene and self._done == end
                    yield UpscaledFrame(image, self._ended if over else self._state, over)
            except DeviceMemoryError as error:
                self._frames.shrink(error)
                self._context.kept.clear()

    def _ended(self) -> StreamState:
        return StreamState.between_scenes(self._first_frame + self._done)

    def _state(self) -> StreamState:
        engine, frame = self._context.engine, self._first_frame + self._done - 1
        forward_state = engine.download(self._forward_state).copy()
        check_finite(self._context, forward_state, graph="forward", frame=frame)
        return StreamState(
            frames=self._first_frame + self._done,
            scene=self._first_frame,
            chunk=self._first_frame + self._start,
            refinement=self._cleaner.decide(),
            arrays={
                "forward_state": forward_state,
                "previous": self._frames.download(self._done - 1),
            },
        )
