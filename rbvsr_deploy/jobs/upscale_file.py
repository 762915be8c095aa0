"""Runs one job: upscales a video, an image or an image folder.

Invalid requests are refused before any work. Upscaled frames go to the output's job folder in
segments; an interrupted run resumes after the last finished segment, from the state stored with it.
The output appears when all frames are done, and the other files after that.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rbvsr_deploy.engines.base import Description, Engine
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.jobs.before_after import check_apart, check_before_after, write_before_after
from rbvsr_deploy.jobs.frames import Progress, Run
from rbvsr_deploy.jobs.identity import has_same_images, job_identity
from rbvsr_deploy.jobs.page import check_report_page, write_report_page
from rbvsr_deploy.jobs.summary import Summary, WorkerRecord
from rbvsr_deploy.runtime.memory_plan import MemoryPlan
from rbvsr_deploy.runtime.output_size import OutputSize, Target, output_sides
from rbvsr_deploy.runtime.scenes import SceneCuts
from rbvsr_deploy.runtime.stream import SceneRecord, Settings
from rbvsr_deploy.video import (
    ImageSink,
    Job,
    ReadOptions,
    Sink,
    Source,
    WriteOptions,
    is_pipe,
    open_sink,
    open_source,
    output_multiple,
)

__all__ = ["OpenedJob", "Progress", "Upscaling", "run_job", "target_of", "upscale_file"]


@dataclass(frozen=True)
class OpenedJob:
    """Holds what an upscaling reads and writes."""

    source: Source
    sink: Sink
    target: Target | None
    """Size of the output; four times that of the source if ``None``."""
    cuts: SceneCuts


class Upscaling(Protocol):
    """Upscales the frames of a job; see :class:`~rbvsr_deploy.jobs.frames.Run`."""

    resumed: int
    frames: int
    scenes: list[SceneRecord]
    seconds: dict[str, float]
    workers: list[WorkerRecord]

    @property
    def memory(self) -> int: ...

    @property
    def plan(self) -> MemoryPlan: ...

    @property
    def lost_frames(self) -> int: ...

    @property
    def damaged_frames(self) -> int: ...

    def run(self) -> None:
        """Upscale and write all frames except those of an earlier run."""
        ...


def upscale_file(
    path: Path,
    output: Path,
    *,
    engine: Engine,
    settings: Settings | None = None,
    size: OutputSize | None = None,
    scene_cuts: bool = True,
    scene_list: Path | None = None,
    reading: ReadOptions | None = None,
    writing: WriteOptions | None = None,
    overwrite: bool = False,
    keep_job: bool = False,
    before_after: Path | None = None,
    page: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
    report: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Upscale a file or folder.

    Args:
        path: video, image or image folder; "-" is a y4m stream on standard input, which cannot be
            resumed.
        output: path of the result; see :func:`rbvsr_deploy.video.open_sink`.
        engine: stays open; the caller closes it.
        settings: scenes, lookahead, refinement, strength and memory.
        size: how large the output is; four times the input if ``None``.
        scene_cuts: detect cuts; if not, the whole input is one scene.
        scene_list: path of a file that lists where scenes begin; it is read if it exists, else
            written. Frames are numbered from the first that is read.
        reading: options for reading the input.
        writing: options for writing the output.
        overwrite: replace an existing output.
        keep_job: keep the job folder with the finished segments after success.
        before_after: path of an image of the middle frame, bicubic on the left and the result on
            the right.
        page: path of a report page (HTML) with some frames before and after.
        progress: called after every frame of every stage with the frames done and, if known, the
            total.
        report: called with a line about every choice that was made.

    Raises:
        MediaError: the input cannot be read or the output not written; no part of it remains.
        EngineError: the engine failed.
        RbvsrError: out of memory or disk space, or the size is out of range for the input.
    """
    settings, size = settings or Settings(), size or OutputSize()

    def begin(job: OpenedJob) -> Run:
        return Run(
            engine,
            settings,
            job.source,
            job.sink,
            target=job.target,
            cuts=job.cuts,
            progress=progress,
            report=report,
        )

    return run_job(
        path,
        output,
        engine=engine.describe(),
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
    )


def run_job(
    path: Path,
    output: Path,
    *,
    engine: Description,
    settings: Settings,
    size: OutputSize,
    begin: Callable[[OpenedJob], Upscaling],
    scene_cuts: bool,
    scene_list: Path | None,
    reading: ReadOptions | None,
    writing: WriteOptions | None,
    overwrite: bool,
    keep_job: bool,
    before_after: Path | None,
    page: Path | None,
    report: Callable[[str], None],
    work: Collection[str] = (),
) -> Summary:
    """Do everything of a job but the upscaling itself.

    Args:
        engine: describes what upscales.
        begin: called with the opened job; returns what upscales it.
        work: names in the job folder that unfinished work consists of; see
            :class:`~rbvsr_deploy.video.Job`.

    The other arguments, the result and the errors are those of :func:`upscale_file`.
    """
    start = time.perf_counter()
    reading, writing = reading or ReadOptions(), writing or WriteOptions()
    _check_beside(before_after, page, scene_list, path=path, output=output, overwrite=overwrite)
    cuts = SceneCuts(scene_list, detect=scene_cuts)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_source(path, reading))
        target = target_of(size, source, output=output, writing=writing, report=report)
        height, width = output_sides(target, height=source.height, width=source.width)
        job = None
        if not is_pipe(output):
            job = Job(
                output,
                identity=job_identity(
                    path, engine=engine, settings=settings, size=size, reading=reading, cuts=cuts
                ),
                work=work,
                overwrite=overwrite,
                keep=keep_job,
                resume=not is_pipe(path),
                still_valid=lambda part: has_same_images(source, part.note.get("images")),
                verify=source.files.check if source.files is not None else lambda: None,
            )
            stack.enter_context(job)
        sink = stack.enter_context(
            open_sink(
                output,
                source=source,
                width=width,
                height=height,
                sample_aspect=None if target is None else target.sample_aspect,
                job=job,
                options=writing,
            )
        )
        if reading.fps is not None and isinstance(sink, ImageSink):
            raise MediaError(f"fps is for videos, and the output {output} consists of images")
        for note in source.notes:
            report(note)
        if (ahead := settings.lookahead) is not None:
            report(
                f"Delay: {ahead} frame{'s' * (ahead != 1)}, {float(ahead / source.rate):.2g} s at "
                f"{float(source.rate):.5g} frames/s: each draws on as many that follow"
            )
        if job is not None and job.started_over is not None:
            report(f"Starting over: {job.started_over}")
        run = begin(OpenedJob(source, sink, target, cuts))
        run.run()
        sink.finish()
    cuts.finish(frames=run.frames)
    if before_after is not None:
        write_before_after(
            before_after, path, output, number=run.frames // 2, reading=reading, target=target
        )
    summary = Summary(
        input=str(path),
        output=str(output),
        frames=run.frames,
        resumed_frames=run.resumed,
        width=width,
        height=height,
        engine=engine,
        memory=run.memory,
        plan=run.plan,
        scenes=run.scenes,
        excerpt=_excerpt(reading),
        lost_frames=run.lost_frames,
        damaged_frames=run.damaged_frames,
        kept=source.changes.kept,
        converted=source.changes.converted,
        dropped=source.changes.dropped,
        workers=run.workers,
        seconds=_rounded({**run.seconds, "total": time.perf_counter() - start}),
    )
    if page is not None:
        write_report_page(page, path, output, summary=summary, reading=reading, target=target)
    return summary


def target_of(
    size: OutputSize,
    source: Source,
    *,
    output: Path,
    writing: WriteOptions,
    report: Callable[[str], None],
) -> Target | None:
    """Return the size of the output for a source; ``None`` for four times its size.

    Raises:
        MediaError, RbvsrError: an option of writing is not supported, or the size is not possible.
    """
    if size == OutputSize():
        return None
    target = size.target(
        height=source.height,
        width=source.width,
        sample_aspect=source.sample_aspect,
        multiple=output_multiple(output, source=source, options=writing),
    )
    if target is not None:
        report(f"Size: {target.width}x{target.height} ({size})")
    return target


def _check_beside(
    before_after: Path | None,
    page: Path | None,
    scene_list: Path | None,
    *,
    path: Path,
    output: Path,
    overwrite: bool,
) -> None:
    """Refuse files that could not be written after the output."""
    for name, file in (("before_after", before_after), ("page", page)):
        if file is not None and (is_pipe(path) or is_pipe(output)):
            raise MediaError(
                f"{name} reads input and output a second time, which pipes do not allow: use files"
            )
    others = {"input": path, "output": output}
    if scene_list is not None:
        check_apart(scene_list, what="scene list", others=others)
        others["scene list"] = scene_list
    if before_after is not None:
        check_before_after(before_after, overwrite=overwrite, others=others)
    if page is not None:
        check_report_page(page, overwrite=overwrite, others=others)


def _excerpt(reading: ReadOptions) -> dict[str, float] | None:
    """Return the requested excerpt for the summary."""
    given = {"start": reading.start, "end": reading.end, "frames": reading.frames}
    found = {
        name: value if isinstance(value, int) else float(value)
        for name, value in given.items()
        if value is not None
    }
    return found or None


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {stage: round(value, 3) for stage, value in seconds.items()}
