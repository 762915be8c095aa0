"""Provides the Python API: :class:`Upscaler`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.engines import Engine, open_engine
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE
from rbvsr_deploy.runtime.output_size import Fit, OutputSize
from rbvsr_deploy.runtime.scenes import CutDetector
from rbvsr_deploy.runtime.settings import MAX_SCENE, RefineScope, Settings
from rbvsr_deploy.runtime.stream import Stream
from rbvsr_deploy.units import parse_bytes

if TYPE_CHECKING:
    from rbvsr_deploy.jobs.summary import Summary
    from rbvsr_deploy.pixels import Image
    from rbvsr_deploy.runtime.context import Stage
    from rbvsr_deploy.video.options import ReadOptions, WriteOptions

__all__ = ["Upscaler"]


class Upscaler(Closing):
    """Upscales frames, one stream at a time; a context manager. ::

        with Upscaler("model.plan", memory="4GiB") as upscaler:
            upscaler.video("clip.mp4", "clip_x4.mp4")

            for image in upscaler.frames(frames):  # any iterable, including a generator
                ...

            for frame in camera:  # live: upscaled frames are returned as soon as they are ready
                for image in upscaler.push(frame):
                    ...
            rest = upscaler.flush()

    Input frames are (H, W, 3) RGB arrays, full range, all of one size within a stream; they are not
    modified. Their dtype is uint8, or uint16 for more than 8 bits, with 65535 for white. Upscaled
    frames are (4H, 4W, 3) RGB arrays of the same dtype, or of the size that is asked for, and
    belong to the caller. Every input frame gives one upscaled frame, in the same order.

    An upscaler has no global state: any number of them may exist in one process. Each does one
    thing at a time; a call from another thread during that time is refused.

    Args:
        model: a bundle (``model.plan``), a checkpoint, or an open engine, which stays open; the
            compact model for CPUs if ``None``.
        device: as in :func:`rbvsr_deploy.engines.open_engine`, such as "auto" or "cpu".
        trust_engines: whether to run the compiled engines of a bundle, whoever compiled them; they
            are machine code. Otherwise only those of this user are run.
        memory: how much of the device's memory to use, in bytes or as text such as "4GiB"; half of
            the free memory if ``None``. The output does not depend on it.
        lookahead: number of future frames each frame draws on; ``None``: all of its scene, up to
            ``max_scene``. N costs N + 1 steps of the backward branch per frame, and delays the
            first upscaled frame by N frames.
        max_scene: longer scenes are propagated in chunks of this many frames.
        scene_cuts: detect cuts, where a new scene begins.
        refine_threshold, refine_scope, cleanings: settings of dynamic refinement; see
            :class:`~rbvsr_deploy.runtime.stream.Settings`.
        strength: how far the output goes from the input, enlarged by bilinear interpolation (0), to
            the output of the network (1).
        denoise: how much of the cleaning is applied, from 0 to 1.
        scale: multiple of the input's size: 1, 1.5, 2, 3 or 4.
        size: width and height of the output in square pixels, instead of a scale.
        height: height of the output in square pixels, instead of a scale; the width follows.
        fit: how frames of another shape get the ``size``; see
            :class:`~rbvsr_deploy.runtime.output_size.OutputSize`.

    Raises:
        BundleError, CheckpointError, EngineError: the model cannot be opened, or the device is not
            available.
        RbvsrError: scale, size and height are combined, or one of them is not possible.
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
        strength: float = 1.0,
        denoise: float = 1.0,
        scale: float | None = None,
        size: tuple[int, int] | None = None,
        height: int | None = None,
        fit: Fit = "inside",
    ) -> None:
        self._size = OutputSize(scale=scale, size=size, height=height, fit=fit)
        self._settings = Settings(
            lookahead=lookahead,
            max_scene=max_scene,
            refine_threshold=refine_threshold,
            refine_scope=refine_scope,
            cleanings=cleanings,
            strength=strength,
            denoise=denoise,
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
        self._lent = False  # True while an iterator of frames() is suspended

    def frames(self, frames: Iterable[Image]) -> Iterator[Image]:
        """Yield the upscaled frames of a whole stream, each as soon as it is ready.

        Args:
            frames: read one at a time, as the result is iterated over.

        Raises:
            ValueError: a frame has the wrong shape or dtype.
            EngineError: the engine failed.
            RbvsrError: out of memory.
            RuntimeError: the upscaler is closed, or busy: in another thread, with an iterator that
                is not exhausted, or with frames that were pushed and not flushed.
        """
        with self._at_work():
            self._refuse_pushed("frames")
            with contextlib.closing(self._new_stream()) as live:
                for frame in frames:
                    yield from self._lend(live.push(frame))
                yield from self._lend(live.flush())

    def push(self, frame: Image) -> list[Image]:
        """Take one frame and return the upscaled frames that are ready now, often none, in order.

        Raises:
            ValueError, RbvsrError, RuntimeError: as :meth:`frames`.
        """
        with self._at_work():
            live, self._live = self._live or self._new_stream(), None
            try:
                images = list(live.push(frame))
            except ValueError:  # the frame was refused, nothing else happened
                self._live = live
                raise
            except BaseException:
                live.close()
                raise
            self._live = live
            return images

    def flush(self) -> list[Image]:
        """End the stream of pushed frames and return its remaining upscaled frames. The next frame
        that is pushed begins a new stream, which may have another size.

        Raises:
            RbvsrError, RuntimeError: as :meth:`frames`.
        """
        with self._at_work():
            live, self._live = self._live, None
            if live is None:
                return []
            with contextlib.closing(live):
                return list(live.flush())

    def video(
        self,
        path: str | Path,
        output: str | Path,
        *,
        reading: ReadOptions | None = None,
        writing: WriteOptions | None = None,
        scene_cuts: bool | None = None,
        scene_list: str | Path | None = None,
        overwrite: bool = False,
        keep_job: bool = False,
        before_after: str | Path | None = None,
        page: str | Path | None = None,
        progress: Callable[[Stage, int, int | None], None] | None = None,
        report: Callable[[str], None] | None = None,
    ) -> Summary:
        """Upscale a file or folder; sound, subtitles and timestamps of a video are kept.

        Args:
            path: video, image or image folder; "-" is a y4m stream on standard input.
            output: path of the result; its suffix selects the format. "-" is a y4m stream on
                standard output.
            reading: options for reading the input, such as an excerpt.
            writing: options for writing the output, such as codec and quality.
            scene_cuts: detect cuts; as given to the upscaler if ``None``.
            scene_list: path of a text file that lists where scenes begin; it is read if it exists,
                else written.
            overwrite: replace existing files.
            keep_job: keep the job folder with the finished segments after success.
            before_after: path of an image of the middle frame, bicubic on the left and the result
                on the right.
            page: path of a report page (HTML) with some frames before and after.
            progress: called after every frame of every stage ("clean", "backward", "forward") with
                the stage, the frames done and, if known, the total.
            report: called with a line about every choice that was made.

        Returns:
            A report of the finished job.

        Raises:
            MediaError: the input cannot be read or the output not written; no incomplete output
                remains, and finished work stays in a job folder next to it for the next call.
            EngineError, RbvsrError, RuntimeError: as :meth:`frames`.
        """
        from rbvsr_deploy.jobs.upscale_file import upscale_file

        def optional(path: str | Path | None) -> Path | None:
            return None if path is None else Path(path)

        with self._at_work():
            self._refuse_pushed("video")
            return upscale_file(
                Path(path),
                Path(output),
                engine=self.engine,
                settings=self._settings,
                size=self._size,
                scene_cuts=self._scene_cuts if scene_cuts is None else scene_cuts,
                scene_list=optional(scene_list),
                reading=reading,
                writing=writing,
                overwrite=overwrite,
                keep_job=keep_job,
                before_after=optional(before_after),
                page=optional(page),
                progress=progress or (lambda stage, done, total: None),
                report=report or (lambda line: None),
            )

    def close(self) -> None:
        """Free the device; frames that were pushed and not flushed, and iterators that are not
        exhausted, are discarded.

        Raises:
            RuntimeError: the upscaler is busy in another thread.
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

    def _new_stream(self) -> _Live:
        return _Live(self.engine, self._settings, self._size, scene_cuts=self._scene_cuts)

    def _lend(self, images: Iterator[Image]) -> Iterator[Image]:
        """Yield the images; while the caller has one, the upscaler may be closed."""
        for image in images:
            self._lent = True
            try:
                yield image
            finally:
                self._lent = False
            if self._closed:
                raise RuntimeError("this Upscaler is closed: create another one")

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
                "exhausted: each does one thing at a time, so create another one"
            )
        try:
            if self._closed:
                raise RuntimeError("this Upscaler is closed: create another one")
            yield
        finally:
            self._lock.release()


class _Live:
    """Wraps a stream whose size is that of its first frame, and detects cuts."""

    def __init__(
        self, engine: Engine, settings: Settings, size: OutputSize, *, scene_cuts: bool
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._size = size
        self._detector = CutDetector() if scene_cuts else None
        self._stream: Stream | None = None
        self._shape: tuple[int, ...] = ()
        self._dtype: np.dtype[Any] | None = None

    def push(self, frame: Image) -> Iterator[Image]:
        self._check(frame)
        if self._stream is None:
            height, width = frame.shape[:2]
            target = self._size.target(height=height, width=width)
            self._shape = frame.shape
            self._dtype = frame.dtype
            self._stream = Stream(
                self._engine,
                self._settings,
                size=(height, width),
                deep=frame.dtype == np.uint16,
                target=target,
            )
        cut = self._detector is not None and self._detector.is_cut(frame)
        # The frame belongs to the caller, and may be used only later.
        for upscaled in self._stream.push(frame.copy(), cut=cut):
            yield upscaled.image

    def flush(self) -> Iterator[Image]:
        if self._stream is not None:
            for upscaled in self._stream.flush():
                yield upscaled.image

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _check(self, frame: object) -> None:
        """Raise ValueError unless the frame fits the stream."""
        if not isinstance(frame, np.ndarray):
            raise ValueError(f"a frame must be a NumPy array, got {type(frame).__name__}")
        good = frame.ndim == 3 and frame.shape[2] == 3 and frame.size > 0
        if not good or frame.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                f"a frame must be (H, W, 3) uint8 or uint16 RGB, got {frame.shape} {frame.dtype}"
            )
        if self._dtype is not None and frame.dtype != self._dtype:
            raise ValueError(
                f"all frames of a stream must have one dtype, {self._dtype} here, got {frame.dtype}"
            )
        if self._shape and frame.shape != self._shape:
            raise ValueError(
                f"all frames of a stream must have one size, {self._shape[1]}x{self._shape[0]} "
                f"here, got {frame.shape[1]}x{frame.shape[0]}: call flush() before changing size"
            )
