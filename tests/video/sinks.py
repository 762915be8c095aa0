"""Sinks with a job of their own, for tests that are not about resuming."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rbvsr_deploy.video import Job, Sink, open_sink


@contextmanager
def job_sink(path: Path, *, overwrite: bool = False, **options: object) -> Iterator[Sink]:
    """The sink for ``path``; job and sink are closed at the end."""
    with (
        Job(path, identity={}, overwrite=overwrite) as job,
        open_sink(path, job=job, **options) as sink,
    ):
        yield sink
