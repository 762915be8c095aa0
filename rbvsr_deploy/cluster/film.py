"""Upscales one video with several workers: finds its scenes, hands out its units, and takes the
encoded segments over in order. Only this side writes the job's journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rbvsr_deploy.cluster.index import FrameIndex, scan
from rbvsr_deploy.cluster.messages import Done, Piece, UnitTask
from rbvsr_deploy.cluster.scanning import scan_together
from rbvsr_deploy.cluster.scheduler import Scheduler, too_often
from rbvsr_deploy.cluster.staging import StagedInput, write_part
from rbvsr_deploy.cluster.units import Unit, units_of
from rbvsr_deploy.cluster.work import Status, WorkItem
from rbvsr_deploy.engines.base import Description
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.jobs.frames import recorded_scenes
from rbvsr_deploy.jobs.identity import image_record
from rbvsr_deploy.jobs.summary import Summary
from rbvsr_deploy.jobs.upscale_file import OpenedJob, run_job
from rbvsr_deploy.runtime.memory_plan import MemoryPlan
from rbvsr_deploy.runtime.output_size import OutputSize
from rbvsr_deploy.runtime.scenes import scene_list_text
from rbvsr_deploy.runtime.stream import SceneRecord, Settings, StreamState
from rbvsr_deploy.video import (
    ImageSink,
    ImageSource,
    ReadOptions,
    VideoSink,
    VideoSource,
    WriteOptions,
)
from rbvsr_deploy.video.staging.job_folder import UNITS, job_folder
from rbvsr_deploy.video.staging.parts import read_records

__all__ = ["has_shared_work", "share_file"]

logger = logging.getLogger(__name__)

_INDEX, _SCENES = "frames.index", "scenes.txt"
_WORK = (_INDEX, _SCENES, UNITS)
_LARGEST_INDEX = 2**30
WHOLE = 2**26
"""Bytes of an input that is sent whole."""


def has_shared_work(output: Path) -> bool:
    """Return whether an output was begun with several workers and is not finished."""
    return (job_folder(output) / _INDEX).exists()


def share_file(
    path: Path,
    output: Path,
    *,
    scheduler: Scheduler,
    engine: Description,
    settings: Settings,
    size: OutputSize,
    reading: ReadOptions,
    writing: WriteOptions,
    scene_cuts: bool = True,
    scene_list: Path | None = None,
    overwrite: bool = False,
    keep_job: bool = False,
    before_after: Path | None = None,
    page: Path | None = None,
    stage: bool = False,
    watch: Callable[[Status], None] = lambda status: None,
    report: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Upscale a video with several workers; the output has the same bytes as with one process.

    Args:
        scheduler: has been opened.
        engine: what the workers compute with.
        stage: send each worker its part of the input and have the segments sent back, instead of
            using storage that all of them share.
        watch: called with the progress of a pass that this process makes; the scheduler reports
            that of the workers.

    The other arguments, the result and the errors are those of
    :func:`rbvsr_deploy.jobs.upscale_file.upscale_file`.
    """

    def begin(job: OpenedJob) -> _SharedRun:
        return _SharedRun(
            job,
            path=path,
            output=output,
            scheduler=scheduler,
            settings=settings,
            reading=reading,
            writing=writing,
            stage=stage,
            watch=watch,
            report=report,
        )

    return run_job(
        path,
        output,
        engine=engine,
        settings=settings,
        size=size,
        begin=begin,
        scene_cuts=scene_cuts,
        scene_list=scene_list,
        reading=reading,
        writing=writing,
        overwrite=overwrite,
        keep_job=keep_job,
        before_after=before_after,
        page=page,
        report=report,
        work=_WORK,
    )


class _SharedRun:
    """Does with several workers what :class:`rbvsr_deploy.jobs.frames.Run` does with one engine."""

    def __init__(
        self,
        job: OpenedJob,
        *,
        path: Path,
        output: Path,
        scheduler: Scheduler,
        settings: Settings,
        reading: ReadOptions,
        writing: WriteOptions,
        stage: bool,
        watch: Callable[[Status], None],
        report: Callable[[str], None],
    ) -> None:
        source, sink = job.source, job.sink
        if not isinstance(sink, VideoSink) and not (isinstance(sink, ImageSink) and sink.is_folder):
            raise MediaError(
                f"several workers share the work on a video or an image folder, and {output} is "
                "a single image: use one worker",
                parameters=("workers", "cluster"),
            )
        if not isinstance(source, VideoSource | ImageSource) or source.files is None:
            raise MediaError(
                f"several workers cannot read {path}: use one worker",
                parameters=("workers", "cluster"),
            )
        for name, end, kind in (("input", source, VideoSource), ("output", sink, VideoSink)):
            if stage and not isinstance(end, kind):
                raise MediaError(
                    f"only videos are sent to workers and back, and the {name} {end.path} is not "
                    "one: use storage that all workers share",
                    parameters=("stage",),
                )
        self._source, self._sink, self._cuts = source, sink, job.cuts
        self._target = job.target
        self._path, self._output = Path(path).absolute(), Path(output).absolute()
        self._scheduler = scheduler
        self._settings, self._reading, self._writing = settings, reading, writing
        self._watch, self._report = watch, report
        self._stage = stage
        self._staged: StagedInput | None = None
        self.memory = 0
        self.plan = MemoryPlan(window=0, batch=0, band=0, in_memory=0)
        self.resumed = self.frames = sum(s.frames for s in sink.finished_segments)
        self.scenes: list[SceneRecord] = []
        self.seconds: dict[str, float] = {}
        self.lost_frames = self.damaged_frames = 0
        self.workers = scheduler.records
        self._finished: dict[int, Done] = {}  # by the unit's first frame

    def run(self) -> None:
        """Find the scenes, have their frames upscaled, and take over the segments."""
        start = time.perf_counter()
        index = self._index()
        self._frames_in_all = index.frames
        self.lost_frames, self.damaged_frames = index.lost, index.damaged
        self.seconds = {"scenes": time.perf_counter() - start}
        segments = self._sink.finished_segments
        try:
            self.scenes = recorded_scenes(segments)
            state = StreamState.from_bytes(self._sink.attachment() or b"") if segments else None
        except (ValueError, KeyError, TypeError) as error:
            raise MediaError(
                f"the unfinished work on {self._output} cannot be continued, because its records "
                f"are damaged: delete the folder {self._sink.folder}, and start again"
            ) from error
        self._units = units_of(index.frames, index.cuts, settings=self._settings, done=self.frames)
        if self.resumed:
            self._report(f"Continuing: {self.resumed} frames are done already")
        storage = self._sink.job.storage
        if self._stage:
            self._staged = StagedInput(self._path, allow_playlists=self._reading.allow_playlists)
        self._folder = storage.make_folder(UNITS)
        items = [
            self._item(unit, index, state if unit.first == self.resumed else None)
            for unit in self._units
        ]
        self._scheduler.run(items, done=self._done, failed=self._failed)

    def _index(self) -> FrameIndex:
        """Return the index of an earlier run, or make it."""
        storage = self._sink.job.storage
        with contextlib.suppress(OSError, ValueError):
            index = FrameIndex.from_bytes(storage.read(_INDEX, at_most=_LARGEST_INDEX))
            index.restore(self._source.changes)
            self._cuts.restore(index.cuts)
            return index
        together = (
            None
            if self._stage
            else scan_together(
                self._source,
                self._cuts,
                path=self._path,
                reading=self._reading,
                scheduler=self._scheduler,
            )
        )
        index = together or self._scan_alone()
        if together is not None:
            index.restore(self._source.changes)
            self._cuts.restore(index.cuts)
        try:
            storage.write(_SCENES, scene_list_text(index.cuts).encode())
            storage.write(_INDEX, index.to_bytes())
        except OSError as error:
            raise MediaError(f"cannot write {self._output}: {error.strerror}") from error
        return index

    def _scan_alone(self) -> FrameIndex:
        total = self._source.frame_count
        start = time.monotonic()

        def progress(frames: int) -> None:
            left = None
            if total:
                left = (time.monotonic() - start) / frames * max(0, total - frames)
            self._watch(Status("scenes", frames, total, left, {}))

        return scan(self._source, self._cuts, progress=progress, note=self._sink.note)

    def _item(self, unit: Unit, index: FrameIndex, state: StreamState | None) -> WorkItem:
        stamps, sums = index.part(unit.first, unit.stop)
        within = state is not None and state.arrays
        task = UnitTask(
            next(self._scheduler.numbers),
            path=self._path,
            output=self._output,
            folder=self._folder,
            reading=self._reading,
            writing=self._writing,
            first=unit.first,
            stop=unit.stop,
            starts=[cut for cut in index.cuts if unit.first <= cut < unit.stop],
            stamps=stamps,
            sums=sums,
            target=self._target,
            work=self._identity(sums),
            state=state.to_bytes() if state is not None and within else None,
            staged=self._staged is not None,
        )
        item = WorkItem(task, frames=unit.frames, name=f"frames {unit.first} to {unit.stop - 1}")
        if self._staged is not None:
            item.prepare = partial(self._send_input, item, memoryview(stamps).cast("q"))
            item.take_part = partial(write_part, self._folder)
        return item

    def _send_input(
        self, item: WorkItem, stamps: memoryview, send: Callable[[Piece], None]
    ) -> None:
        """Send a worker the part of the input that it needs, or all of it after a failure."""
        assert self._staged is not None
        shift = round(self._source.origin / self._source.time_base)
        whole = item.tries > 0 or self._staged.size <= WHOLE
        first, last = stamps[0] + shift, stamps[-1] + shift
        ranges = self._staged.ranges(first, last, whole=whole)
        self._staged.send(item.task.number, ranges, send)

    def _identity(self, sums: bytes) -> str:
        """Identify everything a unit's segments depend on besides its place."""
        journal = json.dumps(self._sink.job.identity, sort_keys=True).encode()
        return hashlib.sha256(journal + sums).hexdigest()

    def _done(self, item: WorkItem, done: Done) -> None:
        assert isinstance(item.task, UnitTask)
        self._finished[item.task.first] = done
        self.resumed += item.task.stop - item.task.first - done.frames
        self.memory, self.plan = done.memory, done.plan or self.plan
        for stage, seconds in done.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        while self._units and (ready := self._finished.pop(self._units[0].first, None)):
            self._take_over(self._units.pop(0), ready)

    def _failed(self, item: WorkItem, why: str) -> None:
        raise too_often(item, why)

    def _take_over(self, unit: Unit, done: Done) -> None:
        """Record a unit's segments in the journal."""
        assert done.folder is not None
        folder = self._folder / done.folder  # the same if it is absolute
        first = self.scenes[-1].first_frame + self.scenes[-1].frames if self.scenes else 0
        try:
            segments = read_records(folder)
            scenes = recorded_scenes(segments, first=first)
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise MediaError(
                f"the segments that a worker left in {folder} cannot be read ({error}): the "
                "workers and this process need one file system for the output"
            ) from error
        note: dict[str, Any] = {
            "scenes": [data for segment in segments for data in segment.note["scenes"]]
        }
        ended = unit.stop == self._frames_in_all
        # As in a single process, which has read the first frame of the next scene by then.
        images = image_record(self._source, unit.stop + (not ended), ended=ended)
        if images is not None:
            note["images"] = images
        state = StreamState.between_scenes(unit.stop).to_bytes()
        self._sink.take_segments(folder, segments, note=note, state=state)
        self.scenes += scenes
        self.frames = unit.stop
        shutil.rmtree(folder, ignore_errors=True)
