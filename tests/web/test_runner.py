"""Tests the queue of one, with a program that stands in for rbvsr-run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rbvsr_deploy.commands.run import run
from rbvsr_deploy.web.records import Settings, State
from rbvsr_deploy.web.runner import Runner
from rbvsr_deploy.web.store import Job, Store
from tests.support import web_child
from tests.web.test_store import uploaded

COMMAND = [sys.executable, "-S", "-E", str(Path(web_child.__file__))]


def wait_until(condition: Callable[[], object], *, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path) as store:
        yield store


def new_runner(store: Store, *, grace: float = 20.0) -> Runner:
    models = {"small": None, "large": Path("/models/large.plan")}
    return Runner(store, command=COMMAND, models=models, options=["--device=cpu"], grace=grace)


def run_state(job: Job) -> State:
    return job.record.run.state


def calls(job: Job) -> list[list[str]]:
    text = (job.folder / "calls.txt").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_preview_and_run(store: Store) -> None:
    """Both are done, with the model, device and settings as words of their own."""
    job = uploaded(store, text="ok")
    with new_runner(store) as runner:
        runner.start(job, "preview", Settings("large", start=" 1 --overwrite"))
        runner.start(job, "run", Settings("unknown", end="2"))
        wait_until(lambda: run_state(job) == "done")
    assert job.record.preview.state == "done"
    preview, run = calls(job)
    assert {"--preview=3", "--engine=/models/large.plan", "--device=cpu"} <= set(preview)
    assert "--start=1 --overwrite" in preview
    assert "--end=2" in run
    assert not any(word.startswith("--engine") for word in run)
    assert job.result("preview")["frames"] == 4
    assert job.output() == job.output_folder / "made.mp4"


def test_one_at_a_time_previews_first(store: Store) -> None:
    jobs = [uploaded(store, text="wait") for _ in range(3)]
    with new_runner(store) as runner:
        for job in jobs:
            runner.start(job, "run", Settings())
        wait_until(lambda: run_state(jobs[0]) == "running")
        runner.start(jobs[2], "preview", Settings())
        assert [run_state(job) for job in jobs] == ["running", "waiting", "waiting"]
        assert runner.ahead_of(jobs[2], "preview") == [jobs[0]]
        assert runner.ahead_of(jobs[2], "run") == [jobs[0], jobs[2], jobs[1]]
        runner.cancel(jobs[0])
        wait_until(lambda: jobs[2].record.preview.state == "running")
        assert [run_state(job) for job in jobs] == ["cancelled", "waiting", "waiting"]


def test_cancel_and_resume(store: Store) -> None:
    job = uploaded(store, text="wait")
    with new_runner(store) as runner:
        runner.start(job, "run", Settings(start="1"))
        wait_until(lambda: job.log("run").exists() and job.log("run").read_text())
        runner.cancel(job)
        wait_until(lambda: run_state(job) == "cancelled")
        assert not runner.is_cancelling(job)
        job.input.write_text("ok")
        runner.start(job, "run", Settings(start="1"))
        wait_until(lambda: run_state(job) == "done")
    first, second = calls(job)
    assert first == second


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.02, 0.05])
def test_cancel_at_any_moment(store: Store, delay: float) -> None:
    """Before, while and after the child begins."""
    job = uploaded(store, text="wait")
    with new_runner(store) as runner:
        runner.start(job, "run", Settings())
        time.sleep(delay)
        runner.cancel(job)
        wait_until(lambda: run_state(job) == "cancelled")


@pytest.mark.slow
def test_a_child_that_does_not_end_is_killed(store: Store) -> None:
    job = uploaded(store, text="deaf")
    with new_runner(store, grace=0.1) as runner:
        runner.start(job, "run", Settings())
        wait_until(lambda: job.input.with_name("deaf").exists())
        runner.cancel(job)
        assert runner.is_cancelling(job)
        wait_until(lambda: run_state(job) == "cancelled")


def test_failures_do_not_stop_the_queue(store: Store) -> None:
    words = ("fail", "die", "ok")
    jobs = [uploaded(store, text=word) for word in words]
    with new_runner(store) as runner:
        for job in jobs:
            runner.start(job, "run", Settings())
        wait_until(lambda: run_state(jobs[-1]) == "done")
    assert [run_state(job) for job in jobs] == ["failed", "failed", "done"]
    assert jobs[0].record.run.message == "the frames are bad"
    assert "signal 9" in jobs[1].record.run.message


def test_a_missing_program_does_not_stop_the_queue(store: Store) -> None:
    job = uploaded(store)
    with Runner(store, command=["/nowhere"], models={"small": None}) as runner:
        runner.start(job, "run", Settings())
        wait_until(lambda: run_state(job) == "failed")
    assert "No such file" in job.record.run.message


def test_started_twice_runs_once(store: Store) -> None:
    job = uploaded(store, text="ok")
    with new_runner(store) as runner:
        for _ in range(3):
            runner.start(job, "run", Settings())
        wait_until(lambda: run_state(job) == "done")
    assert len(calls(job)) == 1


def test_a_finished_run_is_done_again(store: Store) -> None:
    job = uploaded(store, text="ok")
    with new_runner(store) as runner:
        for times in (1, 2):
            runner.start(job, "run", Settings())
            wait_until(lambda: run_state(job) == "done")
            assert len(calls(job)) == times


def test_removing_ends_the_child(store: Store) -> None:
    job = uploaded(store, text="wait")
    with new_runner(store) as runner:
        runner.start(job, "run", Settings())
        wait_until(lambda: run_state(job) == "running")
        runner.remove(job)
        assert not job.folder.exists()
        assert store.all() == []
        runner.start(job, "run", Settings())
        assert not job.folder.exists()


def test_the_next_server_resumes(tmp_path: Path) -> None:
    """The queue of a server that was closed or killed continues in order, with its settings."""
    with Store(tmp_path) as store:
        jobs = [uploaded(store, text="wait") for _ in range(2)]
        with new_runner(store) as runner:
            for job in jobs:
                runner.start(job, "run", Settings("large"))
            wait_until(lambda: run_state(jobs[0]) == "running")
        assert [run_state(job) for job in jobs] == ["running", "waiting"]
    for job in jobs:
        job.input.write_text("ok")
    with Store(tmp_path) as store, new_runner(store):
        jobs = list(reversed(store.all()))
        wait_until(lambda: all(run_state(job) == "done" for job in jobs))
        assert all("--engine=/models/large.plan" in calls(job)[-1] for job in jobs)
        assert os.stat(jobs[0].folder / "run.json").st_mtime <= time.time()


def test_a_run_that_was_finished_is_not_done_again(tmp_path: Path) -> None:
    """The server was killed after the output appeared, and before it knew."""
    with Store(tmp_path) as store:
        job = uploaded(store, text="fail")
        job.change_step("run", state="running")
        (job.output_folder / "clip_x4.mp4").write_text("made")
    with Store(tmp_path) as store, new_runner(store):
        (job,) = store.all()
        wait_until(lambda: run_state(job) == "done")
    assert not (job.folder / "calls.txt").exists()


def test_settings_are_words_of_their_own() -> None:
    texts = {f.name: "-x --y" for f in dataclasses.fields(Settings) if f.type == "str"}
    words = Settings(**texts, strength=0.5, denoise=0).arguments()
    assert len(words) == 5
    assert all(re.fullmatch(r"--\w+=(-x --y|0\.5|0)", word) for word in words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(), []),
        (Settings(size="1.5", strength=0.25), ["--scale=1.5", "--strength=0.25"]),
        (Settings(size="1080p", denoise=0), ["--height=1080", "--denoise=0"]),
        (Settings(start=" 1 ", end=""), ["--start=1"]),
    ],
)
def test_settings_become_options(settings: Settings, words: list[str]) -> None:
    """Options of rbvsr-run, which are only given where they differ from its defaults."""
    assert settings.arguments() == words
    context = run.make_context("rbvsr-run", ["clip.mp4", *words])
    assert len(context.args) == 0
