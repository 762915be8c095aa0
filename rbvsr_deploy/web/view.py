"""Describes what the page shows about a job and the others, as HTML fragments; no Gradio here."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rbvsr_deploy.units import show_bytes, show_duration
from rbvsr_deploy.web.progress import read_messages, read_progress
from rbvsr_deploy.web.records import StepName
from rbvsr_deploy.web.runner import Runner
from rbvsr_deploy.web.store import Job, Store

__all__ = ["View", "describe", "history"]

_LABELS = {"new": "Start", "done": "Start again", "cancelled": "Resume", "failed": "Try again"}
_STATES = {
    "new": "ready",
    "waiting": "waiting",
    "running": "running",
    "cancelled": "cancelled",
    "failed": "failed",
    "done": "finished",
}


@dataclass(frozen=True)
class View:
    """Holds what the page shows about one job; texts are HTML."""

    heading: str = ""
    preview: str = ""
    status: str = ""
    start: str = "Start"
    """Label of the button that starts the run."""
    can_start: bool = False
    start_is_next: bool = True
    """Whether that button is the first choice."""
    can_preview: bool = False
    can_cancel: bool = False


def describe(job: Job, runner: Runner) -> View:
    """Return what the page shows about a job now."""
    record = job.record
    busy = record.preview.is_active or record.run.is_active
    return View(
        heading=_heading(job),
        preview=_preview(job),
        status=_status(job, runner),
        start=_LABELS.get(record.run.state, "Start"),
        can_start=not record.run.is_active,
        start_is_next=record.run.state != "done" and record.preview.state != "failed",
        can_preview=not busy,
        can_cancel=busy and not runner.is_cancelling(job),
    )


def history(store: Store, *, shown: str) -> str:
    """Return the list of all jobs, the newest first.

    Args:
        store: the jobs.
        shown: id of the job that the page shows.
    """
    rows = [_row(job, is_shown=job.id == shown) for job in store.all()]
    if not rows:
        return '<p class="rb-faint">No jobs yet.</p>'
    return f'<ul class="rb-jobs">{"".join(rows)}</ul>'


def _row(job: Job, *, is_shown: bool) -> str:
    record = job.record
    shown: StepName = "preview" if record.run.state == "new" else "run"
    state = record.step(shown).state
    text = _STATES[state]
    if shown == "preview" and state == "done":
        state, text = "new", _STATES["new"]
    elif shown == "preview" and state == "running":
        text = "preview"
    if state == "running" and (now := read_progress(job.log(shown), now=time.time())):
        text += f" {now.fraction:.0%}"
    when = time.strftime("%d %b %Y, %H:%M", time.localtime(record.created))
    current = ' aria-current="page"' if is_shown else ""
    title = escape(record.name)
    return (
        f'<li><a href="?job={job.id}"{current}><span class="rb-name">{title}</span>'
        f'<span class="rb-faint">{when} · {_size(record.size)}</span></a>'
        f'<span class="rb-state rb-{state}">{text}</span>'
        f'<button type="button" data-delete="{job.id}" data-name="{title}" '
        f'aria-label="Delete {title}" title="Delete">✕</button></li>'
    )


def _heading(job: Job) -> str:
    record, made = job.record, job.result("preview")
    facts = [_size(record.size)]
    if record.kind == "folder":
        facts.insert(0, f"{record.files} images")
    elif made:
        facts.insert(0, _count(made["frames"], "frame"))
    return (
        f'<h2 class="rb-title">{escape(record.name)}</h2>'
        f'<p class="rb-faint">{" · ".join(facts)}</p>'
    )


def _preview(job: Job) -> str:
    step = job.record.preview
    if step.state == "done" and job.page.exists():
        made = job.result("preview")
        aspect = made["width"] / made["height"] if made else 16 / 9
        version = job.page.stat().st_mtime_ns
        return (
            f'<div class="rb-view" style="--aspect: {aspect:.5f}"><iframe '
            f'src="jobs/{job.id}/preview?v={version}" title="Preview of {escape(job.record.name)}, '
            'before and after" sandbox="allow-scripts"></iframe></div>'
        )
    if step.state == "failed":
        text = "There is no preview of this file."
    elif step.state == "cancelled":
        text = "The preview was cancelled."
    elif step.state == "waiting":
        text = "The preview is waiting for its turn."
    else:
        text = "Making the preview: three frames, before and after."
    return f'<div class="rb-empty"><p>{text}</p></div>'


def _status(job: Job, runner: Runner) -> str:
    record = job.record
    if runner.is_cancelling(job):
        return '<p class="rb-card">Cancelling …</p>'
    if record.preview.is_active:
        return _active(job, "preview", runner, what="Preview")
    if record.run.is_active:
        return _active(job, "run", runner, what="Upscaling")
    if record.run.state == "new" and record.preview.state != "failed":
        return _estimate(job)
    if record.run.state == "new":
        return _failure(job, "preview")
    if record.run.state == "failed":
        return _failure(job, "run")
    if record.run.state == "cancelled":
        return (
            '<p class="rb-card">Cancelled. What is finished so far is kept: Resume continues '
            "there, unless you change the settings.</p>"
        )
    return _finished(job)


def _active(job: Job, name: StepName, runner: Runner, *, what: str) -> str:
    if job.record.step(name).state == "waiting":
        first = runner.ahead_of(job, name)
        names = ", ".join(escape(other.record.name) for other in first if other is not job)
        text = f"One job runs at a time. First: {names}." if names else "Starting …"
        return f'<div class="rb-card" role="status"><p><b>{what} is waiting.</b> {text}</p></div>'
    now = read_progress(job.log(name), now=time.time())
    if now is None:
        bar, text = '<progress aria-label="Progress"></progress>', "starting"
    else:
        percent = min(99, int(100 * now.fraction))
        bar = f'<progress aria-label="Progress" max="100" value="{percent}"></progress>'
        left = f", about {show_duration(now.seconds_left)} left" if now.seconds_left else ""
        text = f"{percent}%{left}"
    return (
        f'<div class="rb-card" role="status">{bar}<p><b>{what}:</b> {text}</p></div>'
        f"{_messages(job, name)}"
    )


def _estimate(job: Job) -> str:
    made = job.result("preview")
    if not made or job.record.preview.state != "done":
        return ""
    return (
        f'<div class="rb-card"><p>All {_count(made["frames"], "frame")}, at '
        f"{made['width']}×{made['height']}, would take about "
        f"<b>{show_duration(made['estimated_seconds'])}</b> on this machine.</p></div>"
    )


def _failure(job: Job, name: StepName) -> str:
    message = _shortened(job.record.step(name).message, job.folder)
    if not message.startswith(job.record.name):
        message = message[:1].upper() + message[1:]
    message += "" if message.endswith(".") else "."
    return (
        f'<div class="rb-card rb-error" role="alert"><p>{escape(message)}</p></div>'
        f"{_messages(job, name)}"
    )


def _finished(job: Job) -> str:
    output, made, step = job.output(), job.result("run"), job.record.run
    if output is None:
        return '<div class="rb-card rb-error"><p>The output was removed from the disk.</p></div>'
    size = ", as a zip file" if output.is_dir() else f", {_size(output.stat().st_size)}"
    facts = f" in {show_duration(step.seconds)}" if step.seconds else ""
    if made:
        count = _count(made["frames"], "frame")
        facts = f": {count} of {made['width']}×{made['height']}{facts}"
    return (
        f'<div class="rb-card" role="status"><p><b>Finished</b>{facts}.</p>'
        f'<a class="rb-download" href="jobs/{job.id}/output" download>Download</a>'
        f'<p class="rb-faint">{escape(output.name)}{size}</p>{_changes(made)}</div>'
        f"{_messages(job, 'run')}"
    )


def _changes(made: dict[str, Any]) -> str:
    """List what of the input the output does not keep as it was."""
    lines = [
        f"<li>{title}: {escape(str(change['what']))} ({escape(str(change['reason']))})</li>"
        for title, key in (("Converted", "converted"), ("Dropped", "dropped"))
        for change in made.get(key, ())
    ]
    return f'<ul class="rb-faint">{"".join(lines)}</ul>' if lines else ""


def _messages(job: Job, name: StepName) -> str:
    text = _shortened(read_messages(job.log(name)), job.folder).strip()
    if not text:
        return ""
    return f"<details><summary>Messages</summary><pre>{escape(text)}</pre></details>"


def _shortened(text: str, folder: Path) -> str:
    """Leave out the path of the job's folder, which says nothing to users."""
    for part in ("input", "output"):
        text = text.replace(f"{folder / part}{os.sep}", "")
    return text.replace(f"{folder}{os.sep}", "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _size(size: int) -> str:
    """Format the size of a file."""
    if size < 1024**2:
        return f"{max(1, round(size / 1024))} KiB"
    return show_bytes(size)
