"""Writes through sinks like the runtime does: with a job, and in segments on request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rbvsr_deploy.video import Frame, Job, Sink, Source, WriteOptions, open_sink, open_source
from rbvsr_deploy.video.changes import Changes


@contextmanager
def job_sink(
    path: Path,
    *,
    source: Source,
    width: int,
    height: int,
    overwrite: bool = False,
    **options: Any,
) -> Iterator[Sink]:
    """Open the sink for ``path``, for tests that are not about resuming.

    ``options`` are those of ``WriteOptions``.
    """
    with (
        Job(path, identity={}, overwrite=overwrite) as job,
        open_sink(
            path,
            source=source,
            width=width,
            height=height,
            job=job,
            options=WriteOptions(**options),
        ) as sink,
    ):
        yield sink


def copy_video(path: Path, out: Path) -> Changes:
    """Write the frames of a video as they are; return what became of everything else."""
    with (
        open_source(path) as source,
        job_sink(out, source=source, width=source.width, height=source.height) as sink,
    ):
        for frame in source:
            sink.write(frame)
        sink.finish()
        return source.changes


def write_segments(
    path: Path,
    out: Path,
    *,
    lengths: list[int],
    stop_after: int | None = None,
    keep: bool = False,
    attach: bool = True,
    identity: dict[str, str] | None = None,
    **options: Any,
) -> Job:
    """Copy a video in segments, continuing after those that are finished.

    Args:
        path: the input.
        out: the output.
        lengths: number of frames of each part, covering the whole input.
        stop_after: number of frames to stop after, at the end of a part or not.
        keep: passed to ``Job``.
        attach: whether to add an attachment to each part.
        identity: passed to ``Job``.
        options: those of ``WriteOptions``.

    Returns:
        The job, closed.
    """
    ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    with (
        open_source(path) as source,
        Job(out, identity=identity or {}, keep=keep) as job,
        open_sink(
            out,
            source=source,
            width=source.width,
            height=source.height,
            job=job,
            options=WriteOptions(**options),
        ) as sink,
    ):
        done = sum(part.frames for part in sink.finished_segments)
        for number, frame in enumerate(source):
            if number == stop_after:
                return job
            if number >= done:
                sink.write(Frame(frame.image, frame.pts, frame.duration, frame.name))
                if number + 1 in ends:
                    state = f"state {number}".encode() if attach else None
                    sink.end_segment({"end": number + 1}, attachment=state)
        if stop_after is None:
            sink.finish()
    return job
