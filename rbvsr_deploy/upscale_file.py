"""One job: a video, picture or folder in, the same four times larger out.

Frames are read ahead and pictures written behind in threads of their own while the network
computes. Pictures go to the output's job folder in parts; a run that was stopped continues behind
the last finished part, from the state that was stored with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rbvsr_deploy import __version__
from rbvsr_deploy.before_after import check_before_after, write_before_after
from rbvsr_deploy.comparison_page import check_comparison_page, write_comparison_page
from rbvsr_deploy.engines.base import Description, Engine
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.files import check_writable
from rbvsr_deploy.pipeline import ReadAhead, WriteBehind
from rbvsr_deploy.pixels import Image, enlarged
from rbvsr_deploy.plan import Plan, show_bytes
from rbvsr_deploy.scenes import CutDetector, read_scene_list, write_scene_list
from rbvsr_deploy.stream import Picture, SceneRecord, Settings, Stage, Stream, StreamState
from rbvsr_deploy.video import (
    Frame,
    ImageSink,
    Job,
    ReadOptions,
    Sink,
    Source,
    WriteOptions,
    is_pipe,
    open_sink,
    open_source,
)

__all__ = ["SCALE", "Progress", "Summary", "upscale_file"]

logger = logging.getLogger(__name__)

SCALE = 4

Progress = Callable[[Stage, int, int | None], None]
"""Called with a stage, the frames it has done and, where known, their total."""

# Pictures in a part of the output, which begins with a key frame: as far apart as they are in
# streamed video, and sooner where a scene ends, where a key frame is due anyway.
_PART, _SHORTEST_PART = 120, 48

_READ_AHEAD, _WRITE_BEHIND = 8, 4


@dataclass(frozen=True)
class Summary:
    """What a job did; ``rbvsr-run --json`` prints it."""

    input: str
    output: str
    frames: int
    resumed_frames: int
    """How many of them an earlier run had made."""
    width: int
    """Of the output, in pixels."""
    height: int
    engine: Description
    memory: int
    """Bytes the plan was made for."""
    plan: Plan
    scenes: list[SceneRecord]
    excerpt: dict[str, float] | None = None
    """What of the input was asked for, if not all: ``start`` and ``end`` in seconds from its first
    frame, and ``frames``, whichever were given. Frames are numbered from the excerpt's first.
    """
    lost_frames: int = 0
    """Of a damaged video: how many frames could not be decoded and are not in the output."""
    damaged_frames: int = 0
    """How many frames of the output were made from damaged ones."""
    seconds: dict[str, float] = field(default_factory=dict)
    """``read``, ``network`` and ``write``: how long each was at work, at the same time;
    ``waited``: how long the network waited for the other two; ``total``: from start to end.
    """


def upscale_file(
    path: Path,
    output: Path,
    *,
    engine: Engine,
    settings: Settings | None = None,
    scene_cuts: bool = True,
    scene_list: Path | None = None,
    reading: ReadOptions | None = None,
    writing: WriteOptions | None = None,
    overwrite: bool = False,
    keep_job: bool = False,
    before_after: Path | None = None,
    compare: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
    report: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Upscale a file or folder by four.

    Args:
        path: video, picture or folder of pictures; "-" is a y4m on standard input, of which a run
            that was stopped cannot be continued.
        output: where the result goes; see :func:`rbvsr_deploy.video.open_sink`.
        engine: stays open; the caller closes it.
        settings: scenes, lookahead, refinement and memory.
        scene_cuts: whether to look for cuts; without, the whole input is one scene.
        scene_list: a file that says where scenes begin, if it exists; else it is written. Frames
            are numbered from the first that is read.
        reading: how the input is read.
        writing: how the output is written.
        overwrite: replace an existing output.
        keep_job: leave the job folder with the finished parts after success.
        before_after: where to write a picture of the middle frame, bicubic on the left and the
            result on the right.
        compare: where to write a page of HTML with some frames before and after.
        progress: called after every frame of every stage with the frames done and, where known, the
            total.
        report: called with a line on every choice that was made.

    Raises:
        MediaError: the input cannot be read or the output not written; no output is left behind.
        EngineError: the engine failed.
        RbvsrError: the memory or the disk does not suffice.
    """
    start = time.perf_counter()
    settings = settings or Settings()
    reading, writing = reading or ReadOptions(), writing or WriteOptions()
    if is_pipe(path) or is_pipe(output):
        for name, picture in (("before_after", before_after), ("compare", compare)):
            if picture is not None:
                raise MediaError(
                    f"{name} looks at input and output a second time, which pipes do not allow: "
                    "use files"
                )
    if before_after is not None:
        check_before_after(before_after, overwrite=overwrite)
    if compare is not None:
        check_comparison_page(compare, source=path, output=output, overwrite=overwrite)
    cuts = _Cuts(scene_list, detect=scene_cuts)
    with (
        open_source(path, reading) as source,
        contextlib.nullcontext()
        if is_pipe(output)
        else Job(
            output,
            identity=_identity(path, engine=engine, settings=settings, reading=reading, cuts=cuts),
            overwrite=overwrite,
            keep=keep_job,
            resume=not is_pipe(path),
        ) as job,
        open_sink(
            output,
            source=source,
            width=SCALE * source.width,
            height=SCALE * source.height,
            job=job,
            options=writing,
        ) as sink,
    ):
        if reading.fps is not None and isinstance(sink, ImageSink):
            raise MediaError(f"fps is for videos, and the output {output} takes pictures")
        for note in source.notes:
            report(note)
        if job is not None and job.started_over is not None:
            report(f"Starting over: {job.started_over}")
        run = _Run(engine, settings, source, sink, cuts=cuts, progress=progress, report=report)
        run.go()
        sink.finish()
    cuts.finish(frames=run.frames)
    if before_after is not None:
        write_before_after(before_after, path, output, number=run.frames // 2, reading=reading)
    seconds = {**run.seconds, "total": time.perf_counter() - start}
    summary = Summary(
        input=str(path),
        output=str(output),
        frames=run.frames,
        resumed_frames=run.resumed,
        width=SCALE * source.width,
        height=SCALE * source.height,
        engine=engine.describe(),
        memory=run.stream.memory,
        plan=run.stream.plan,
        scenes=run.scenes,
        excerpt=_excerpt(reading),
        lost_frames=source.lost_frames,
        damaged_frames=source.damaged_frames,
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
    )
    if compare is not None:
        write_comparison_page(compare, path, output, summary=summary, reading=reading)
    return summary


def _excerpt(reading: ReadOptions) -> dict[str, float] | None:
    """For the summary."""
    given = {"start": reading.start, "end": reading.end, "frames": reading.frames}
    found = {
        name: value if isinstance(value, int) else float(value)
        for name, value in given.items()
        if value is not None
    }
    return found or None


class _Aside(NamedTuple):
    """What a frame keeps while the network makes its picture."""

    pts: int | None
    duration: int
    name: str | None
    opacity: Image | None


class _Run:
    """The way of the frames from the source through the stream to the sink."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        source: Source,
        sink: Sink,
        *,
        cuts: _Cuts,
        progress: Progress,
        report: Callable[[str], None],
    ) -> None:
        self._source = source
        self._sink = sink
        self._cuts = cuts
        self._progress = progress
        self.resumed = sum(part.frames for part in sink.finished_parts)
        self.frames = self.resumed
        """Frames that have come out."""
        self._part_start = self.resumed
        self.scenes = [
            SceneRecord(**scene) for part in sink.finished_parts for scene in part.note["scenes"]
        ]
        self.seconds: dict[str, float] = {}
        self._told = len(self.scenes)  # scenes that the finished parts tell of
        self._done: dict[Stage, int] = {}
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
        # What goes beside the frames that are on their way through the stream.
        waiting: deque[_Aside] = deque()
        network = 0.0
        with (
            self.stream as stream,
            ReadAhead(
                self._cuts.mark(self._source, skip=self.resumed),
                depth=_READ_AHEAD,
                interrupt=self._source.interrupt,
            ) as reader,
            WriteBehind(self._write, depth=_WRITE_BEHIND, interrupt=self._sink.interrupt) as writer,
        ):
            steps: Iterator[Iterator[Picture]] = itertools.chain(
                (self._push(stream, item, waiting) for item in reader),
                (stream.flush() for _ in range(1)),
            )
            for pictures in steps:
                while True:
                    start = time.perf_counter()
                    picture = next(pictures, None)
                    network += time.perf_counter() - start
                    if picture is None:
                        break
                    end = self._end_of_part(picture)
                    writer.put((Frame(picture.image, *waiting.popleft()), end))
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

    @staticmethod
    def _push(
        stream: Stream,
        item: tuple[Frame, bool],
        waiting: deque[_Aside],
    ) -> Iterator[Picture]:
        frame, cut = item
        waiting.append(_Aside(frame.pts, frame.duration, frame.name, frame.opacity))
        return stream.push(frame.image, cut=cut)

    def _end_of_part(self, picture: Picture) -> tuple[dict[str, Any], bytes] | None:
        """Note and attachment of the part of the output that ends with a picture, if one does."""
        self.frames += 1
        length = self.frames - self._part_start
        if length < (_SHORTEST_PART if picture.ends_scene else _PART):
            return None
        return self._part(picture.state())

    def _part(self, state: StreamState) -> tuple[dict[str, Any], bytes]:
        self._part_start = self.frames
        told, self._told = self._told, len(self.scenes)
        note = {"scenes": [dataclasses.asdict(scene) for scene in self.scenes[told:]]}
        return note, state.to_bytes()

    def _write(self, item: tuple[Frame, tuple[dict[str, Any], bytes] | None]) -> None:
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


class _Cuts:
    """Where scenes begin: detected, or read from a list; and the list that is written.

    Args:
        path: of the list, which is read if it exists.
        detect: whether to look for cuts where no list says so.

    Raises:
        MediaError: the list cannot be read, or could not be written.
    """

    def __init__(self, path: Path | None, *, detect: bool) -> None:
        self._path = path
        self._given = read_scene_list(path) if path is not None and path.exists() else None
        self._detector = CutDetector() if self._given is None and detect else None
        self._found: list[int] = []
        if path is not None and self._given is None:
            if not detect:
                raise MediaError(
                    f"the scene list '{path}' does not exist, and without looking for cuts there "
                    "is nothing to write into it: name an existing one"
                )
            try:
                check_writable(path)
            except OSError as error:
                raise MediaError(
                    f"the scene list '{path}' cannot be written ({error.strerror}): choose another "
                    "folder"
                ) from None

    @property
    def identity(self) -> str:
        """For the job's identity."""
        if self._given is not None:
            return f"at {', '.join(map(str, self._given))}"
        return "detected" if self._detector is not None else "none"

    def mark(self, source: Source, *, skip: int) -> Iterator[tuple[Frame, bool]]:
        """The frames from number ``skip`` on, each with whether a scene begins with it.

        Those before are looked at too: whether there is a cut depends on the frames before.
        """
        starts = set(self._given or ())
        for number, frame in enumerate(source):
            cut = number in starts
            if self._detector is not None:
                cut = self._detector.is_cut(frame.image)
            if cut:
                self._found.append(number)
            if number >= skip:
                yield frame, cut

    def finish(self, *, frames: int) -> None:
        """Write the list, or say which of the given cuts do not exist."""
        if self._path is not None and self._given is None:
            write_scene_list(self._path, self._found)
        if self._given and self._given[-1] >= frames:
            logger.warning(
                "the scene list '%s' names frame %d, but the input has only %d",
                self._path,
                self._given[-1],
                frames,
            )


def _identity(
    path: Path, *, engine: Engine, settings: Settings, reading: ReadOptions, cuts: _Cuts
) -> dict[str, str]:
    """Everything the pictures depend on, by human names; what is the sink's, it adds itself."""
    described = engine.describe()
    threshold = settings.refine_threshold
    return {
        "input": "standard input" if is_pipe(path) else _fingerprint(path),
        **{
            f"option {name}": "not given" if value is None else str(value)
            for name, value in dataclasses.asdict(reading).items()
        },
        "model": f"{described.model} ({described.weights[:16]})",
        "engine": f"{described.engine} {described.version} on {described.device}",
        "version of rbvsr-deploy": __version__,
        "scene cuts": cuts.identity,
        "lookahead": "all" if settings.lookahead is None else str(settings.lookahead),
        "longest scene": str(settings.max_scene),
        "refinement threshold": "the model's" if threshold is None else f"{threshold:g}",
        "refinement scope": settings.refine_scope,
        "number of cleanings": "by refinement"
        if settings.cleanings is None
        else str(settings.cleanings),
    }


def _fingerprint(path: Path) -> str:
    """Of a file or of a folder's files: name, size, time of the last change; and of a file, what is
    in its first and last megabyte. Reading a long film to the end would take minutes.
    """
    digest, size = hashlib.sha256(), 0
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        status = file.lstat()
        size += status.st_size
        digest.update(os.fsencode(f"{file.name} {status.st_size} {status.st_mtime_ns}"))
    if not path.is_dir():
        with path.open("rb") as opened:
            digest.update(opened.read(2**20))
            opened.seek(max(0, path.stat().st_size - 2**20))
            digest.update(opened.read(2**20))
    return f"{path.name} of {size} bytes ({digest.hexdigest()[:16]})"
