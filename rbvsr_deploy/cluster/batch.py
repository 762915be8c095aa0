"""Upscales many inputs as one queue over several workers, each input as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rbvsr_deploy.cluster.finished import FinishedInputs
from rbvsr_deploy.cluster.messages import Done, FileTask
from rbvsr_deploy.cluster.scheduler import Scheduler
from rbvsr_deploy.cluster.work import WorkItem
from rbvsr_deploy.files import total_size
from rbvsr_deploy.jobs.batch import Failure, Skipped
from rbvsr_deploy.jobs.summary import Summary
from rbvsr_deploy.runtime.output_size import OutputSize
from rbvsr_deploy.video import ReadOptions, WriteOptions

__all__ = ["share_files"]


def share_files(
    inputs: Sequence[Path],
    outputs: Sequence[Path],
    *,
    scheduler: Scheduler,
    size: OutputSize,
    reading: ReadOptions,
    writing: WriteOptions,
    scene_cuts: bool,
    overwrite: bool,
    keep_job: bool,
    report: Callable[[str], None],
) -> list[Summary | Failure | Skipped]:
    """Upscale every input; one that fails does not stop the others.

    Args:
        inputs, outputs: paths, one output for each input.
        scheduler: hands the inputs out; not opened yet.
        size, reading, writing, scene_cuts, overwrite, keep_job: as in
            :func:`~rbvsr_deploy.jobs.upscale_file.upscale_file`.
        report: called with a line when an input is finished, skipped or fails.

    Returns:
        The results in the order of the inputs.

    Raises:
        EngineError: no worker can work, or none is left.
    """
    results: dict[int, Summary | Failure | Skipped] = {}
    places: dict[int, int] = {}  # place of an input by the number of its task
    items = []
    paths = [(p.absolute(), o.absolute()) for p, o in zip(inputs, outputs, strict=True)]
    known = FinishedInputs(*zip(*paths, strict=True), options=f"{size} {reading}")

    def skip(place: int) -> None:
        path, output = str(inputs[place]), str(outputs[place])
        results[place] = Skipped(path, output, f"{output} is finished already")

    for place, (path, output) in enumerate(paths):
        if not overwrite and known.has(path, output):
            skip(place)
            continue
        task = FileTask(
            next(scheduler.numbers),
            path=path,
            output=output,
            size=size,
            reading=reading,
            writing=writing,
            scene_cuts=scene_cuts,
            overwrite=overwrite,
            keep_job=keep_job,
        )
        places[task.number] = place
        items.append(WorkItem(task, None, name=str(inputs[place]), size=_size(path)))

    def done(item: WorkItem, answer: Done) -> None:
        place = places[item.task.number]
        if answer.summary is None:
            skip(place)
        else:
            results[place] = answer.summary
            report(f"{inputs[place]}: done ({len(results)} of {len(inputs)})")
        known.add(*paths[place])

    def failed(item: WorkItem, why: str) -> None:
        place = places[item.task.number]
        results[place] = Failure(str(inputs[place]), str(outputs[place]), why)
        report(f"{inputs[place]}: failed: {why}")

    if items:
        scheduler.open()
        if len(items) < (usable := sum(not r.left_out for r in scheduler.records)):
            report(
                f"{len(items)} of {usable} workers are used, as each of several inputs is done by "
                "one: give a long one alone, and its parts are shared"
            )
    scheduler.run(items, done=done, failed=failed)
    return [results[place] for place in range(len(inputs))]


def _size(path: Path) -> int:
    """Return the bytes of an input."""
    try:
        return max(1, total_size(path))
    except OSError:
        return 1  # the worker says what is wrong
