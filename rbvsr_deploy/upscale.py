"""One job: a video, picture or folder in, the same four times larger out.

The whole input is one scene here: its frames are taken in, cleaned together, and propagated.
Pictures are encoded as they come out of the forward branch, and the output appears under its name
when it is complete.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from rbvsr_deploy.engines.base import Array, Description, Engine, image_batch
from rbvsr_deploy.errors import MediaError, RbvsrError
from rbvsr_deploy.files import check_writable
from rbvsr_deploy.propagation import choose_interval, propagate_scene
from rbvsr_deploy.refinement import Refinement, clean_scene
from rbvsr_deploy.video import Frame, Source, open_sink, open_source
from rbvsr_deploy.video.images import IMAGE_SUFFIXES, write_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SCALE", "Progress", "SceneRecord", "Stage", "Summary", "upscale_file"]

logger = logging.getLogger(__name__)

SCALE = 4

Stage = Literal["read", "clean", "backward", "forward", "write"]

Progress = Callable[[Stage, int, int | None], None]
"""Called with a stage, the frames it has done and, where known, their total."""


@dataclass(frozen=True)
class SceneRecord:
    """A scene and what dynamic refinement decided for it."""

    first_frame: int
    frames: int
    cleanings: int
    residues: list[float]
    """Mean absolute change of each cleaning pass, on the 0-255 scale."""


@dataclass(frozen=True)
class Summary:
    """What a job did; ``rbvsr-run --json`` prints it."""

    input: str
    output: str
    frames: int
    width: int
    """Of the output, in pixels."""
    height: int
    engine: Description
    scenes: list[SceneRecord]
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time per stage (``read``, ``clean``, ``backward``, ``forward``, ``write``) and
    ``total``.
    """


class _Clock:
    """Adds up wall time per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: Stage) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def upscale_file(
    path: Path,
    output: Path,
    *,
    engine: Engine,
    codec: str | None = None,
    crf: float | None = None,
    pix_fmt: str | None = None,
    refine_threshold: float | None = None,
    cleanings: int | None = None,
    overwrite: bool = False,
    before_after: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Summary:
    """Upscale a file or folder by four.

    Args:
        path: video, picture or folder of pictures.
        output: where the result goes; see :func:`rbvsr_deploy.video.open_sink`.
        engine: stays open; the caller closes it.
        codec, crf, pix_fmt: of a video output; by default H.264 (VP9 in WebM), crf 18, 8-bit 4:2:0.
        refine_threshold: of dynamic refinement on the 0-255 scale; the model's own if ``None``.
        cleanings: fixed number of cleaning passes instead of a decision.
        overwrite: replace an existing output.
        before_after: where to write a picture of the middle frame, bicubic on the left and the
            result on the right.
        progress: called after every frame of every stage with the frames done and, where known, the
            total.

    Raises:
        MediaError: the input cannot be read or the output not written; no output is left behind.
        EngineError: the engine failed.
        RbvsrError: the scene does not fit into memory.
    """
    start, clock = time.perf_counter(), _Clock()
    if before_after is not None:
        _check_before_after(before_after, overwrite=overwrite)
    with (
        open_source(path) as source,
        open_sink(
            output,
            source=source,
            width=SCALE * source.width,
            height=SCALE * source.height,
            codec=codec,
            crf=crf,
            pix_fmt=pix_fmt,
            overwrite=overwrite,
        ) as sink,
    ):
        frames, arrays = _read_scene(source, engine, clock, progress)
        total, middle = len(frames), len(frames) // 2
        refinement, pictures = _start_scene(
            engine,
            source,
            arrays,
            threshold=refine_threshold,
            cleanings=cleanings,
            clock=clock,
            progress=progress,
        )
        middle_picture: NDArray[np.uint8] | None = None
        for index, frame in enumerate(frames):
            # The whole backward branch runs before the first picture comes out.
            with clock("forward" if index else "backward"):
                picture = next(pictures)
            with clock("write"):
                sink.write(dataclasses.replace(frame, image=picture))
            if index == middle:
                middle_picture = picture
            progress("forward", index + 1, total)
        with clock("write"):
            sink.finish()
    if before_after is not None and middle_picture is not None:
        _write_before_after(before_after, frames[middle].image, middle_picture)
    seconds = {**clock.seconds, "total": time.perf_counter() - start}
    return Summary(
        input=str(path),
        output=str(output),
        frames=total,
        width=SCALE * source.width,
        height=SCALE * source.height,
        engine=engine.describe(),
        scenes=[SceneRecord(0, total, refinement.cleanings, refinement.residues)],
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
    )


def _read_scene(
    source: Source, engine: Engine, clock: _Clock, progress: Progress
) -> tuple[list[Frame], list[Array]]:
    """All frames of the input, as read and as (1, 3, H, W) on the engine's device."""
    frames: list[Frame] = []
    arrays: list[Array] = []
    room = _frames_that_fit(engine, source)
    with clock("read"):
        for frame in source:
            if len(frames) >= room or (source.frame_count or 0) > room:
                raise RbvsrError(
                    f"'{source.path}' has more than the {room} frames of "
                    f"{source.width}x{source.height} that fit into "
                    "this machine's free memory as one scene: cut it into shorter clips"
                )
            (array,) = engine.run("ingest", image=engine.upload(image_batch(frame.image)))
            frames.append(frame)
            arrays.append(array)
            progress("read", len(frames), source.frame_count)
    return frames, arrays


def _start_scene(
    engine: Engine,
    source: Source,
    arrays: list[Array],
    *,
    threshold: float | None,
    cleanings: int | None,
    clock: _Clock,
    progress: Progress,
) -> tuple[Refinement, Iterator[NDArray[np.uint8]]]:
    """Clean a scene; returns what was decided, and its pictures, which are still to be made."""
    total = len(arrays)
    with clock("clean"):
        cleaned, refinement = clean_scene(
            engine,
            arrays,
            threshold=engine.network.refine_threshold if threshold is None else threshold,
            cleanings=cleanings,
            progress=lambda done: progress("clean", done, total),
        )
    arrays.clear()  # the uncleaned ones
    pictures = propagate_scene(
        engine,
        cleaned,
        height=source.height,
        width=source.width,
        interval=_interval(engine, source, frames=total),
        progress=lambda done: progress("backward", done, total),
    )
    return refinement, pictures


def _frames_that_fit(engine: Engine, source: Source) -> int:
    """How many frames of a scene the free memory holds, with as few backward states as can be."""
    bytes_per_frame, bytes_per_state, room = _memory(engine, source)
    states = 2 * math.sqrt(room / bytes_per_frame)  # n/k + k at k = sqrt(n), n at its largest
    return max(1, int((room - states * bytes_per_state) / bytes_per_frame))


def _interval(engine: Engine, source: Source, *, frames: int) -> int:
    """How far apart backward states are kept, so that they fit beside the scene's frames."""
    _, bytes_per_state, room = _memory(engine, source)
    # The frames are held already; what is free by now is for the states.
    return choose_interval(frames, states_that_fit=int(room / bytes_per_state))


def _memory(engine: Engine, source: Source) -> tuple[int, int, int]:
    """Bytes of a frame (as read, before and after cleaning), of a state, and free for both."""
    network, pixels = engine.network, source.width * source.height
    item = np.dtype(network.precision).itemsize
    # A picture on its way out, the widest map of the head included, must fit beside them.
    picture = SCALE**2 * pixels * (network.channels + 2 * 3) * item
    room = max(0, _free_memory() - 2 * picture)
    return pixels * (3 + 2 * 3 * item), pixels * network.channels * item, room


def _free_memory() -> int:
    """Bytes of memory that can be used without swapping."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        logger.debug("no /proc/meminfo: assuming half of the memory is free")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _check_before_after(path: Path, *, overwrite: bool) -> None:
    """Refuse now what could not be written after hours of work."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise MediaError(
            f"the picture '{path}' must end in one of {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    if path.exists() and not overwrite:
        raise MediaError(f"{path} exists: choose another picture, or allow overwriting it")
    try:
        check_writable(path)
    except OSError as error:
        raise MediaError(
            f"the picture '{path}' cannot be written ({error.strerror}): choose another folder"
        ) from None


def _write_before_after(path: Path, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> None:
    """A picture (4H, 8W + gap, 3): the frame enlarged by bicubic interpolation, a white gap, the
    result.
    """
    import av
    from av.video.reformatter import Interpolation

    height, width = after.shape[:2]
    enlarged = av.VideoFrame.from_ndarray(before, format="rgb24").reformat(
        width=width, height=height, interpolation=Interpolation.BICUBIC
    )
    gap = np.full((height, 16, 3), 255, np.uint8)
    write_image(path, image=np.concatenate((enlarged.to_ndarray(), gap, after), axis=1))
