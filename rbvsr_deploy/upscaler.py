"""The Python API: :class:`Upscaler`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from rbvsr_deploy.engines import Engine, open_engine
from rbvsr_deploy.models import DEFAULT_BUNDLE
from rbvsr_deploy.plan import parse_bytes
from rbvsr_deploy.refinement import RefineScope
from rbvsr_deploy.scenes import CutDetector
from rbvsr_deploy.stream import MAX_SCENE, Settings, Stream

if TYPE_CHECKING:
    from rbvsr_deploy.pixels import Image
    from rbvsr_deploy.upscale_file import Summary

__all__ = ["Upscaler"]


class Upscaler:
    """Makes frames four times larger, one stream after the other; a context manager. ::

        with Upscaler("model.plan", memory="4GiB") as upscaler:
            upscaler.video("clip.mp4", "clip_x4.mp4")

            for picture in upscaler.frames(frames):  # any iterable, a generator too
                ...

            for frame in camera:  # live: a picture comes out as soon as it can be made
                for picture in upscaler.push(frame):
                    ...
            rest = upscaler.flush()

    Frames are (H, W, 3) RGB arrays, full range, all of one size within a stream; they are not
    written to. Their dtype is uint8, or uint16 for more than 8 bits, with 65535 for white. Pictures
    are (4H, 4W, 3) RGB arrays of the same dtype and belong to the caller. There are as many
    pictures as frames, in the same order.

    An upscaler keeps no state outside of itself: any number of them may live in one process. One of
    them does one thing at a time; a call from another thread meanwhile is refused.

    Args:
        model: a bundle (``model.plan``), a checkpoint, or an open engine, which then stays open;
            the compact model for CPUs if ``None``.
        device: as in :func:`rbvsr_deploy.engines.open_engine`, such as "auto" or "cpu".
        trust_engines: whether to run the compiled engines of a bundle, whoever compiled them; they
            are machine code. Otherwise only those of this user are run.
        memory: how much of the device's memory to use, in bytes or as text such as "4GiB"; half of
            what is free if ``None``. The pictures do not depend on it.
        lookahead: how many future frames each frame draws on; ``None``: all of its scene, up to
            ``max_scene``. N costs N + 1 steps of the backward branch per frame, and delays the
            first picture by N frames.
        max_scene: longer scenes are propagated in parts of so many frames.
        scene_cuts: whether to look for cuts, where a new scene begins.
        refine_threshold, refine_scope, cleanings: of dynamic refinement; see
            :class:`~rbvsr_deploy.stream.Settings`.

    Raises:
        BundleError, CheckpointError, EngineError: the model or the device is not to be had.
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        model: str | Path | Engine | None = None,
        *,
        device: str = "auto",
        trust_engines: bool = False,
        memory: int | str | None = None,
        lookahead: int | None = None,
        max_scene: int = MAX_SCENE,
        scene_cuts: bool = True,
        refine_threshold: float | None = None,
        refine_scope: RefineScope = "scene",
        cleanings: int | None = None,
    ) -> None:
        self._settings = Settings(
            lookahead=lookahead,
            max_scene=max_scene,
            refine_threshold=refine_threshold,
            refine_scope=refine_scope,
            cleanings=cleanings,
            memory=parse_bytes(memory) if isinstance(memory, str) else memory,
        )
        self._scene_cuts = scene_cuts
        self._owns_engine = model is None or isinstance(model, (str, Path))
        self.engine: Engine
        if model is None or isinstance(model, (str, Path)):
            self.engine = open_engine(
                Path(model or DEFAULT_BUNDLE), device=device, trust_engines=trust_engines
            )
        else:
            self.engine = model
        self._lock = threading.Lock()
        self._live: _Live | None = None
        self._closed = False
        self._lent = False  # whether an iterator waits to be asked for its next picture

    def frames(self, frames: Iterable[Image]) -> Iterator[Image]:
        """Pictures of a whole stream, each as soon as it can be made.

        Args:
            frames: read one at a time, as pictures are asked for.

        Raises:
            ValueError: a frame has another shape or dtype than it should.
            EngineError: the engine failed.
            RbvsrError: the memory does not suffice.
            RuntimeError: the upscaler is closed, or at work elsewhere: in another thread, in an
                iterator that is not exhausted, or with frames that were pushed and not flushed.
        """
        with self._at_work():
            self._refuse_pushed("frames")
            with contextlib.closing(self._new_stream()) as live:
                for frame in frames:
                    yield from self._lend(live.push(frame))
                yield from self._lend(live.flush())

    def push(self, frame: Image) -> list[Image]:
        """Take one frame; returns the pictures that can be made now, often none, in order.

        Raises: as :meth:`frames`.
        """
        with self._at_work():
            live, self._live = self._live or self._new_stream(), None
            try:
                pictures = list(live.push(frame))
            except ValueError:  # the frame was refused, nothing else happened
                self._live = live
                raise
            except BaseException:
                live.close()
                raise
            self._live = live
            return pictures

    def flush(self) -> list[Image]:
        """End the stream of pushed frames; returns its remaining pictures. The next frame that is
        pushed begins a new stream, which may have another size.

        Raises: as :meth:`frames`.
        """
        with self._at_work():
            live, self._live = self._live, None
            if live is None:
                return []
            with contextlib.closing(live):
                return list(live.flush())

    def video(self, path: str | Path, output: str | Path, **options: Any) -> Summary:
        """Upscale a file or folder; sound, subtitles and time stamps of a video are kept.

        Args:
            path: video, picture or folder of pictures.
            output: where the result goes.
            options: those of :func:`rbvsr_deploy.upscale_file.upscale_file`, such as ``writing``
                and ``overwrite``.

        Returns:
            What was done.

        Raises:
            MediaError: the input cannot be read or the output not written; no output is left
                behind, and what is finished waits in a job folder beside it for the next call.
            EngineError, RbvsrError, RuntimeError: as :meth:`frames`.
        """
        from rbvsr_deploy.upscale_file import upscale_file

        with self._at_work():
            self._refuse_pushed("video")
            return upscale_file(
                Path(path),
                Path(output),
                engine=self.engine,
                settings=self._settings,
                **{"scene_cuts": self._scene_cuts, **options},
            )

    def close(self) -> None:
        """Free the device; frames that were pushed and not flushed, and iterators that are not
        exhausted, are given up.

        Raises:
            RuntimeError: the upscaler is at work in another thread.
        """
        if self._closed:
            return
        with contextlib.nullcontext() if self._lent else self._at_work():
            self._closed = True
            if self._live is not None:
                self._live.close()
                self._live = None
            if self._owns_engine:
                self.engine.close()

    def __enter__(self) -> Upscaler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _new_stream(self) -> _Live:
        return _Live(self.engine, self._settings, scene_cuts=self._scene_cuts)

    def _lend(self, pictures: Iterator[Image]) -> Iterator[Image]:
        """Between two pictures of an iterator, its upscaler may be closed."""
        for picture in pictures:
            self._lent = True
            try:
                yield picture
            finally:
                self._lent = False
            if self._closed:
                raise RuntimeError("this Upscaler is closed: make another")

    def _refuse_pushed(self, call: str) -> None:
        if self._live is not None:
            raise RuntimeError(
                f"frames were pushed and not flushed: call flush() before {call}(), or use another "
                "Upscaler"
            )

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                "this Upscaler is at work in another thread or in an iterator that is not "
                "exhausted: one does one thing at a time, so make another"
            )
        try:
            if self._closed:
                raise RuntimeError("this Upscaler is closed: make another")
            yield
        finally:
            self._lock.release()


class _Live:
    """A stream whose size is that of its first frame, with cuts looked for."""

    def __init__(self, engine: Engine, settings: Settings, *, scene_cuts: bool) -> None:
        self._engine = engine
        self._settings = settings
        self._detector = CutDetector() if scene_cuts else None
        self._stream: Stream | None = None
        self._shape: tuple[int, ...] = ()
        self._dtype: np.dtype[Any] | None = None

    def push(self, frame: Image) -> Iterator[Image]:
        self._check(frame)
        if self._stream is None:
            self._shape = frame.shape
            self._dtype = frame.dtype
            self._stream = Stream(
                self._engine,
                self._settings,
                size=frame.shape[:2],
                deep=frame.dtype == np.uint16,
            )
        cut = self._detector is not None and self._detector.is_cut(frame)
        # The frame may wait for its turn, and is the caller's.
        for picture in self._stream.push(frame.copy(), cut=cut):
            yield picture.image

    def flush(self) -> Iterator[Image]:
        if self._stream is not None:
            for picture in self._stream.flush():
                yield picture.image

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _check(self, frame: object) -> None:
        """Raises ValueError with what came and what is allowed."""
        if not isinstance(frame, np.ndarray):
            raise ValueError(f"a frame is a NumPy array, got {type(frame).__name__}")
        good = frame.ndim == 3 and frame.shape[2] == 3 and frame.size > 0
        if not good or frame.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                f"a frame is (H, W, 3) uint8 or uint16 RGB, got {frame.shape} {frame.dtype}"
            )
        if self._dtype is not None and frame.dtype != self._dtype:
            raise ValueError(
                f"all frames of a stream have one dtype, {self._dtype} here, got {frame.dtype}"
            )
        if self._shape and frame.shape != self._shape:
            raise ValueError(
                f"all frames of a stream have one size, {self._shape[1]}x{self._shape[0]} here, "
                f"got {frame.shape[1]}x{frame.shape[0]}: flush before frames of another size"
            )
