"""The frames of one job: from the source through the network to the sink.

Frames are read ahead and pictures written behind in threads of their own while the network
computes. Pictures go to the sink in parts, each with the state to continue behind it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from rbvsr_deploy.engines.base import Engine
from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.jobs.threads import ReadAhead, WriteBehind
from rbvsr_deploy.pixels import Image, enlarged
from rbvsr_deploy.runtime.scenes import SceneCuts
from rbvsr_deploy.runtime.stream import Picture, SceneRecord, Settings, Stage, Stream, StreamState
from rbvsr_deploy.units import show_bytes
from rbvsr_deploy.video import Frame, Sink, Source

__all__ = ["Progress", "Run"]

logger = logging.getLogger(__name__)


Progress = Callable[[Stage, int, int | None], None]
"""Called with a stage, the frames it has done and, where known, their total."""

# Pictures in a part of the output, which begins with a key frame: as far apart as they are in
# streamed video, and sooner where a scene ends, where a key frame is due anyway.
_PART, _SHORTEST_PART = 120, 48

_READ_AHEAD, _WRITE_BEHIND = 8, 4

_PartEnd = tuple[dict[str, Any], bytes]  # what ``Sink.end_part`` takes


class _Aside(NamedTuple):
    """What a frame keeps while the network makes its picture."""

    pts: int | None
    duration: int
    name: str | None
    opacity: Image | None


class Run:
    """The way of the frames from a source through a stream to a sink, behind the sink's finished
    parts.

    Args:
        engine: stays open.
        settings: of the stream.
        source: newly opened.
        sink: for pictures ``SCALE`` times as large; stays open, without being finished.
        cuts: where scenes begin.
        progress: called after every frame of every stage.
        report: called with a line on every choice that was made.

    Raises:
        EngineError: here and in ``go``, where the engine fails.
        MediaError: here and in ``go``, where the source cannot be read or the sink not be written.
        RbvsrError: the memory does not suffice.
    """

    stream: Stream
    """With its plan and its memory."""
    resumed: int
    """Frames that an earlier run has made."""
    frames: int
    """Frames that have come out so far, those included."""
    scenes: list[SceneRecord]
    """Those that have ended so far."""
    seconds: dict[str, float]
    """What each stage took, once ``go`` has returned; see ``Summary.seconds``."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        source: Source,
        sink: Sink,
        *,
        cuts: SceneCuts,
        progress: Progress,
        report: Callable[[str], None],
    ) -> None:
        self._source = source
        self._sink = sink
        self._cuts = cuts
        self._progress = progress
        self.resumed = sum(part.frames for part in sink.finished_parts)
        self.frames = self.resumed
        self._part_start = self.resumed
        self.scenes = [
            SceneRecord(**scene) for part in sink.finished_parts for scene in part.note["scenes"]
        ]
        self.seconds = {}
        self._told = len(self.scenes)  # scenes that the finished parts tell of
        self._done: dict[Stage, int] = {}
        self._waiting: deque[_Aside] = deque()  # of the frames that are on their way
        attachment = sink.attachment()
        self.stream = Stream(
            engine,
            settings,
            size=(source.height, source.width),
            deep=source.depth > 8,
            folder=sink.folder,
            state=StreamState.from_bytes(attachment) if attachment is not None else None,
            progress=self._count,
            on_scene=self._on_scene,
        )
        report(f"Memory: {show_bytes(self.stream.memory)} for {self.stream.plan}")
        if self.resumed:
            report(f"Continuing: {self.resumed} frames are done already")

    def go(self) -> None:
        """Make and write all pictures but those of an earlier run."""
        network = 0.0
        with (
            self.stream,
            ReadAhead(
                self._cuts.mark(self._source, skip=self.resumed),
                depth=_READ_AHEAD,
                interrupt=self._source.interrupt,
            ) as reader,
            WriteBehind(self._write, depth=_WRITE_BEHIND, interrupt=self._sink.interrupt) as writer,
        ):
            for pictures in self._steps(reader):
                while True:
                    start = time.perf_counter()
                    picture = next(pictures, None)
                    network += time.perf_counter() - start
                    if picture is None:
                        break
                    end = self._end_of_part(picture)
                    writer.put((Frame(picture.image, *self._waiting.popleft()), end))
            writer.finish()
        if self.frames > self._part_start:
            # Also the last part tells of its scenes, if the output cannot be completed now.
            n = self.frames
            self._sink.end_part(*self._part(StreamState(frames=n, scene=n, part=n)))
        self.seconds = {
            "read": reader.seconds,
            "network": network,
            "write": writer.seconds,
            "waited": reader.waited + writer.waited,
        }

    def _steps(self, frames: Iterable[tuple[Frame, bool]]) -> Iterator[Iterator[Picture]]:
        """Yields, for each frame and for the end, the pictures that can be made then."""
        for frame, cut in frames:
            self._waiting.append(_Aside(frame.pts, frame.duration, frame.name, frame.opacity))
            yield self.stream.push(frame.image, cut=cut)
        yield self.stream.flush()

    def _end_of_part(self, picture: Picture) -> _PartEnd | None:
        """Note and attachment of the part of the output that ends with a picture, if one does."""
        self.frames += 1
        length = self.frames - self._part_start
        if length < (_SHORTEST_PART if picture.ends_scene else _PART):
            return None
        return self._part(picture.state())

    def _part(self, state: StreamState) -> _PartEnd:
        self._part_start = self.frames
        told, self._told = self._told, len(self.scenes)
        note = {"scenes": [dataclasses.asdict(scene) for scene in self.scenes[told:]]}
        return note, state.to_bytes()

    def _write(self, item: tuple[Frame, _PartEnd | None]) -> None:
        frame, end = item
        if frame.opacity is not None:
            frame = dataclasses.replace(frame, opacity=enlarged(frame.opacity, scale=SCALE))
        self._sink.write(frame)
        if end is not None:
            self._sink.end_part(*end)

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
