"""Runs ``rbvsr-run`` with several workers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbvsr_deploy.commands._common import report
from rbvsr_deploy.commands._progress import WorkersDisplay

if TYPE_CHECKING:
    from rbvsr_deploy.cluster.messages import Setup
    from rbvsr_deploy.cluster.workers import Workers
    from rbvsr_deploy.jobs.batch import Failure, Skipped
    from rbvsr_deploy.jobs.summary import Summary
    from rbvsr_deploy.runtime.output_size import OutputSize
    from rbvsr_deploy.video import ReadOptions, WriteOptions

__all__ = ["run_shared"]


def run_shared(
    paths: Sequence[Path],
    outputs: Sequence[Path],
    *,
    setup: Setup,
    workers: int | None,
    cluster: str | None,
    allow_mixed_engines: bool,
    stage: bool,
    size: OutputSize,
    reading: ReadOptions,
    writing: WriteOptions,
    **options: Any,
) -> list[Summary | Failure | Skipped]:
    """Upscale inputs with several workers: the parts of a single one, or each as a whole.

    Args:
        paths, outputs: one output for each input.
        setup: engine and settings of a worker.
        workers, cluster, allow_mixed_engines, stage: options of ``rbvsr-run``.
        size: how large the outputs are.
        reading, writing: options for reading and writing.
        options: of :func:`~rbvsr_deploy.cluster.film.share_file`.
    """
    from rbvsr_deploy.cluster.batch import share_files
    from rbvsr_deploy.cluster.film import share_file
    from rbvsr_deploy.cluster.scheduler import Scheduler

    with contextlib.ExitStack() as stack:
        display = stack.enter_context(WorkersDisplay())
        started = stack.enter_context(_workers(setup, workers=workers, cluster=cluster))
        scheduler = Scheduler(started, mixed=allow_mixed_engines, report=report, watch=display)
        if len(paths) > 1:
            return share_files(
                paths,
                outputs,
                scheduler=scheduler,
                size=size,
                reading=reading,
                writing=writing,
                scene_cuts=options["scene_cuts"],
                overwrite=options["overwrite"],
                keep_job=options["keep_job"],
                report=report,
            )
        engine = scheduler.open()
        report(f"Engine: {engine}, in {sum(not r.left_out for r in scheduler.records)} workers")
        summary = share_file(
            paths[0],
            outputs[0],
            scheduler=scheduler,
            engine=engine,
            settings=setup.settings,
            size=size,
            reading=reading,
            writing=writing,
            stage=stage,
            watch=display,
            report=report,
            **options,
        )
        return [summary]


def _workers(setup: Setup, *, workers: int | None, cluster: str | None) -> Workers:
    if cluster is None:
        from rbvsr_deploy.cluster.local import LocalWorkers

        return LocalWorkers(workers or 1, setup)
    from rbvsr_deploy.cluster.ray_workers import RayWorkers

    return RayWorkers(cluster, workers, setup)
