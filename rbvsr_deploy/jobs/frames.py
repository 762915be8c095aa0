"""Moves the frames of one job from the source through the network to the sink.

While the network computes, one thread reads ahead and another writes the results. Upscaled frames
go to the sink in segments, each with the state needed to continue after it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from rbvsr_deploy.engines.base import Engine
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.jobs.identity import image_record
from rbvsr_deploy.jobs.segments import ends_segment
from rbvsr_deploy.jobs.summary import WorkerRecord
from rbvsr_deploy.jobs.threads import ReadAhead, WriteBehind
from rbvsr_deploy.pixels import Image, enlarged
from rbvsr_deploy.resampling import resampled
from rbvsr_deploy.runtime.memory_plan import MemoryPlan
from rbvsr_deploy.runtime.output_size import Target
from rbvsr_deploy.runtime.stream import MAX_SCENE, Settings, Stage, Stream, UpscaledFrame
from rbvsr_deploy.runtime.stream_state import SceneRecord, StreamState
from rbvsr_deploy.units import show_bytes
from rbvsr_deploy.video import Frame, SegmentRecord, Sink, Source
from rbvsr_deploy.video.image_metadata import ImageMetadata

__all__ = ["Cuts", "Progress", "Run", "recorded_scenes"]

logger = logging.getLogger(__name__)


Progress = Callable[[Stage, int, int | None], None]
"""Called with a stage, the frames it has done and, if known, their total."""

# Bytes of frames that wait for the network: while it propagates a long scene, the next is decoded.
# A frame counts as if no more than such a scene fitted: otherwise thousands of small frames would
# wait, and a long video take more memory than a short one.
_READ_AHEAD = 256 * 2**20
# Frames that wait for the encoder. They are lost if the run is interrupted, so they are few.
_WRITE_BEHIND = 4

_SegmentEnd = tuple[dict[str, Any], bytes]  # arguments of ``Sink.end_segment``


class Cuts(Protocol):
    """Marks where scenes begin; see :class:`rbvsr_deploy.runtime.scenes.SceneCuts`."""

    def mark(self, source: Source, *, skip: int) -> Iterator[tuple[Frame, bool]]:
        """Yield the frames from number ``skip`` on, each with whether a scene begins with it."""
        ...


class _FrameInfo(NamedTuple):
    """Holds everything of a frame that bypasses the network."""

    pts: int | None
    duration: int
    name: str | None
    opacity: Image | None
    captions: bytes | None
    metadata: ImageMetadata | None


class Run:
    """Upscales the frames of a source into a sink, starting after the sink's finished segments.

    Args:
        engine: stays open.
        settings: settings of the stream.
        source: a newly opened source.
        sink: takes frames of the output's size; stays open and unfinished.
        target: that size; ``SCALE`` times that of the source if ``None``.
        cuts: where scenes begin.
        begin: state to begin with, if the sink is for a part of the source that begins later.
            Such a part keeps no record of images; ``cuts`` also ends it.
        progress: called after every frame of every stage.
        report: called with a line about every choice that was made.

    Raises:
        EngineError: here and in :meth:`run`, if the engine fails.
        MediaError: here and in :meth:`run`, if the source cannot be read or the sink not written.
        RbvsrError: out of memory.
    """

    stream: Stream
    """The stream, with its plan and memory limit."""
    resumed: int
    """Frames that an earlier run has finished."""
    frames: int
    """Frames finished so far, including those."""
    scenes: list[SceneRecord]
    """Scenes that have ended so far."""
    seconds: dict[str, float]
    """Time that each stage took, once :meth:`run` has returned; see ``Summary.seconds``."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        source: Source,
        sink: Sink,
        *,
        target: Target | None = None,
        cuts: Cuts,
        begin: StreamState | None = None,
        progress: Progress,
        report: Callable[[str], None],
    ) -> None:
        self._source = source
        self._sink = sink
        self._target = target
        self._cuts = cuts
        self.workers: list[WorkerRecord] = []  # none but this process
        self._progress = progress
        self._is_part = begin is not None
        begin = begin or StreamState.between_scenes(0)
        self.resumed = begin.frames + sum(segment.frames for segment in sink.finished_segments)
        self.frames = self.resumed
        self._segment_start = self.resumed
        size = source.height, source.width
        self.scenes, state = _left_by_an_earlier_run(sink, begin=begin, engine=engine, size=size)
        self.seconds = {}
        self._recorded = len(self.scenes)  # scenes in the notes of finished segments
        self._done: dict[Stage, int] = {}
        self._waiting: deque[_FrameInfo] = deque()  # of the frames inside the stream
        self._read, self._ended = self.resumed, False  # what the stream has taken
        self.stream = Stream(
            engine,
            settings,
            size=size,
            deep=source.depth > 8,
            target=target,
            folder=sink.folder,
            state=state,
            progress=self._count,
            on_scene=self._on_scene,
        )
        logger.info("Memory: %s for %s", show_bytes(self.stream.memory), self.stream.plan)
        if self.resumed and not self._is_part:
            report(f"Continuing: {self.resumed} frames are done already")

    @property
    def memory(self) -> int:
        """Memory limit of the plan, in bytes."""
        return self.stream.memory

    @property
    def plan(self) -> MemoryPlan:
        """The memory plan in effect."""
        return self.stream.plan

    @property
    def lost_frames(self) -> int:
        """Frames of the source that could not be decoded."""
        return self._source.lost_frames

    @property
    def damaged_frames(self) -> int:
        """Frames of the source that were decoded with damage."""
        return self._source.damaged_frames

    def run(self) -> None:
        """Upscale and write all frames except those of an earlier run."""
        network = 0.0
        with (
            self.stream,
            ReadAhead(
                self._cuts.mark(self._source, skip=self.resumed),
                depth=_READ_AHEAD,
                size=lambda item: max(item[0].nbytes, _READ_AHEAD // MAX_SCENE),
                interrupt=self._source.interrupt,
            ) as reader,
            WriteBehind(self._write, depth=_WRITE_BEHIND, interrupt=self._sink.interrupt) as writer,
        ):
            for upscaled_frames in self._steps(reader):
                while True:
                    start = time.perf_counter()
                    upscaled = next(upscaled_frames, None)
                    network += time.perf_counter() - start
                    if upscaled is None:
                        break
                    end = self._segment_end(upscaled)
                    writer.put((Frame(upscaled.image, *self._waiting.popleft()), end))
            writer.finish()
        if self.frames > self._segment_start:
            # The last segment, too, records its scenes, in case the output cannot be completed now.
            self._sink.end_segment(*self._segment(StreamState.between_scenes(self.frames)))
        self.seconds = {
            "read": reader.seconds,
            "network": network,
            "write": writer.seconds,
            "waited": reader.waited + writer.waited,
        }

    def _steps(self, frames: Iterable[tuple[Frame, bool]]) -> Iterator[Iterator[UpscaledFrame]]:
        """Yield, for each frame and for the end, the upscaled frames that are ready then."""
        for frame, cut in frames:
            info = _FrameInfo(
                pts=frame.pts,
                duration=frame.duration,
                name=frame.name,
                opacity=frame.opacity,
                captions=frame.captions,
                metadata=frame.metadata,
            )
            self._waiting.append(info)
            self._read += 1
            yield self.stream.push(frame.image, cut=cut)
        self._ended = True
        yield self.stream.flush()

    def _segment_end(self, upscaled: UpscaledFrame) -> _SegmentEnd | None:
        """Count a frame; return note and attachment of the segment that ends with it, if any."""
        self.frames += 1
        length = self.frames - self._segment_start
        if ends_segment(length, ends_scene=upscaled.ends_scene):
            return self._segment(upscaled.state())
        return None

    def _segment(self, state: StreamState) -> _SegmentEnd:
        self._segment_start = self.frames
        recorded, self._recorded = self._recorded, len(self.scenes)
        note: dict[str, Any] = {
            "scenes": [dataclasses.asdict(scene) for scene in self.scenes[recorded:]]
        }
        # Frames depend on later ones of their scene.
        if (
            not self._is_part
            and (images := image_record(self._source, self._read, ended=self._ended)) is not None
        ):
            note["images"] = images
        return note, state.to_bytes()

    def _write(self, item: tuple[Frame, _SegmentEnd | None]) -> None:
        frame, end = item
        if frame.opacity is not None:
            opacity = enlarged(frame.opacity, scale=SCALE)
            if self._target is not None:
                opacity = resampled(opacity, *self._target.axes())
            frame = dataclasses.replace(frame, opacity=opacity)
        self._sink.write(frame)
        if end is not None:
            self._sink.end_segment(*end)

    def _count(self, stage: Stage, frames: int) -> None:
        done = self._done.get(stage, self.resumed) + frames
        self._done[stage] = done
        self._progress(stage, done, self._source.frame_count)

    def _on_scene(self, scene: SceneRecord) -> None:
        self.scenes.append(scene)
        logger.info(
            "scene of %d frames from frame %d: cleaned %d time%s, mean change %s of 255",
            scene.frames,
            scene.first_frame,
            scene.cleanings,
            "s" * (scene.cleanings != 1),
            ", ".join(f"{residue:.2f}" for residue in scene.residues) or "not measured",
        )


def recorded_scenes(segments: Iterable[SegmentRecord], *, first: int = 0) -> list[SceneRecord]:
    """Return the scenes that ended within some segments, from the segments' notes.

    Args:
        segments: consecutive segments.
        first: number of the first frame of the scene that the first of them begins in.

    Raises:
        KeyError, TypeError, ValueError: a note is damaged.
    """
    scenes: list[SceneRecord] = []
    for data in (data for segment in segments for data in segment.note["scenes"]):
        scene = SceneRecord.from_json(data, first=first)
        scenes.append(scene)
        first += scene.frames
    return scenes


def _left_by_an_earlier_run(
    sink: Sink, *, begin: StreamState, engine: Engine, size: tuple[int, int]
) -> tuple[list[SceneRecord], StreamState]:
    """Restore the scenes and the stream state of an interrupted run, or else return no scene and
    ``begin``.

    Raises:
        MediaError: the data stored with the segments is damaged.
    """
    segments = sink.finished_segments
    if not segments:
        return [], begin
    try:
        scenes = recorded_scenes(segments, first=begin.scene)
        state = StreamState.from_bytes(sink.attachment() or b"")
        if not state.fits(
            frames=begin.frames + sum(segment.frames for segment in segments),
            network=engine.network,
            size=size,
        ):
            raise ValueError("the state does not fit the input or the model")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        logger.debug("cannot resume: %s", error)
        raise MediaError(
            f"the unfinished work on {sink.path} cannot be continued, because its records are "
            f"damaged: delete the folder {sink.folder}, and start again"
        ) from error
    return scenes, state
