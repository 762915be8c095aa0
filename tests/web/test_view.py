"""Tests what the page says about jobs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rbvsr_deploy.web.records import Settings
from rbvsr_deploy.web.runner import Runner
from rbvsr_deploy.web.store import Job, Store
from rbvsr_deploy.web.view import View, describe, history
from tests.web.test_store import uploaded


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path) as store:
        yield store


@pytest.fixture
def runner(store: Store) -> Runner:
    """Return a queue in which nothing runs."""
    runner = Runner(store, command=["/nowhere"], models={"small": None})
    runner.close()
    return runner


def text(fragment: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", fragment).split())


def with_preview(store: Store) -> Job:
    job = uploaded(store)
    report = {"frames": 54, "width": 1280, "height": 720, "estimated_seconds": 49.2}
    job.result_file("preview").write_text(json.dumps(report))
    job.page.write_text("a page")
    job.change_step("preview", state="done")
    return job


def test_before_the_preview(store: Store, runner: Runner) -> None:
    job = uploaded(store)
    runner.start(job, "preview", Settings())
    view = describe(job, runner)
    assert "Preview is waiting." in view.status
    assert "waiting for its turn" in view.preview
    assert (view.can_start, view.can_preview, view.can_cancel) == (True, False, True)


def test_waiting_names_what_is_first(store: Store, runner: Runner) -> None:
    first, second = uploaded(store, "first.mp4"), uploaded(store)
    runner.start(first, "run", Settings())
    runner.start(second, "run", Settings())
    assert "One job runs at a time. First: first.mp4." in text(describe(second, runner).status)


def test_preview_and_estimate(store: Store, runner: Runner) -> None:
    job = with_preview(store)
    view = describe(job, runner)
    assert f'src="jobs/{job.id}/preview?v=' in view.preview
    assert 'sandbox="allow-scripts"' in view.preview
    assert text(view.status) == (
        "All 54 frames, at 1280×720, would take about 49 s on this machine."
    )
    assert text(view.heading) == "clip.mp4 54 frames · 1 KiB"
    assert (view.start, view.can_start, view.can_preview, view.can_cancel) == (
        *("Start", True, True, False),
    )
    job.page.unlink()
    assert "iframe" not in describe(job, runner).preview


def test_progress(store: Store, runner: Runner) -> None:
    job = with_preview(store)
    job.change_step("run", state="running")
    assert "starting" in describe(job, runner).status
    log = job.log("run")
    log.write_text("Engine: x\nforward: 12 of 54 frames (30% done), 2 min 5 s left\n")
    os.utime(log, (2**40, 2**40))  # in the future: no time has passed since the line
    view = describe(job, runner)
    assert 'value="30"' in view.status
    assert "Upscaling: 30%, about 2 min 5 s left" in text(view.status)
    assert "running 30%" in text(history(store, shown=""))
    assert not view.can_start
    assert view.can_cancel


def test_cancelled(store: Store, runner: Runner) -> None:
    job = with_preview(store)
    runner.start(job, "run", Settings())
    runner.cancel(job)
    view = describe(job, runner)
    assert (view.start, view.can_start, view.start_is_next) == ("Resume", True, True)
    assert "Cancelled." in view.status


def test_failed(store: Store, runner: Runner) -> None:
    """The sentence is a sentence, without the path of the job's folder."""
    job = uploaded(store)
    message = f"{job.input} is not a video: <b>give one</b>"
    job.change_step("preview", state="failed", message=message)
    view = describe(job, runner)
    assert ">clip.mp4 is not a video: &lt;b&gt;give one&lt;/b&gt;.<" in view.status
    assert "There is no preview" in view.preview
    job.change_step("run", state="failed", message="out of memory")
    view = describe(job, runner)
    assert "Out of memory." in view.status
    assert view.start == "Try again"


def test_finished(store: Store, runner: Runner) -> None:
    job = with_preview(store)
    output = job.output_folder / "clip_x4.mp4"
    output.write_bytes(bytes(3 * 2**20))
    report: dict[str, Any] = {"frames": 1, "width": 1280, "height": 720, "converted": []}
    report["dropped"] = [{"what": "stream 2", "reason": "MP4 holds no <that>"}]
    job.result_file("run").write_text(json.dumps(report))
    job.change_step("run", state="done", seconds=61)
    view = describe(job, runner)
    said = text(view.status)
    assert said.startswith("Finished : 1 frame of 1280×720 in 1 min 1 s. Download clip_x4.mp4, 3 M")
    assert "Dropped: stream 2 (MP4 holds no &lt;that&gt;)" in said
    assert f'href="jobs/{job.id}/output"' in view.status
    assert (view.start, view.start_is_next) == ("Start again", False)
    output.unlink()
    assert "removed from the disk" in describe(job, runner).status


def test_history(store: Store) -> None:
    assert "No jobs yet." in history(store, shown="")
    ready, done = with_preview(store), uploaded(store, "a&b.mp4")
    done.change_step("run", state="done")
    rows = history(store, shown=done.id).split("<li>")[1:]
    assert sorted("ready" in row for row in rows) == [False, True]
    (row,) = (row for row in rows if done.id in row)
    assert "finished" in row
    assert 'aria-current="page"' in row
    assert "a&amp;b.mp4" in row
    assert f'href="?job={ready.id}"' in "".join(rows)


def test_names_are_not_markup(store: Store, runner: Runner) -> None:
    """Even a name that got past the upload is shown as text everywhere."""
    job = uploaded(store)
    record = job.record
    object.__setattr__(record, "name", "<script>'\"&")
    for state in ("new", "waiting", "running", "cancelled", "failed", "done"):
        job.change_step("preview", state=state, message="<script>")
        job.change_step("run", state=state, message="<script>")
        view = describe(job, runner)
        shown = "".join(str(part) for part in vars(view).values()) + history(store, shown="")
        assert "<script>" not in shown
    assert View().can_start is False
