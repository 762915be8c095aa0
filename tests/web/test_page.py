"""Tests the page in a browser, and its server over HTTP: uploads, previews, runs, downloads.

One server serves all tests of this file; the last one kills it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from rbvsr_deploy.web.guard import EVENTS
from rbvsr_deploy.web.store import Store
from tests.support import media
from tests.support.chromium import CHROMIUM, Chromium

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("gradio") is None, reason="needs Gradio: .[web]"),
    pytest.mark.skipif(sys.platform == "win32", reason="needs pipes and SIGKILL"),
]

SCENES, LENGTH, SIZE = 24, 6, (96, 64)
FRAMES = SCENES * LENGTH


class Server:
    """Runs ``rbvsr web`` on a free port, or again on the same one."""

    def __init__(self, folder: Path, engine: Path) -> None:
        self.folder = folder
        self._engine = engine
        self.port = 0
        self.start()

    def start(self) -> None:
        program = "from rbvsr_deploy.commands.rbvsr import rbvsr; rbvsr()"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", program, "web", f"--port={self.port}"),
                *(f"--folder={self.folder}", f"--engine={self._engine}", "--device=cpu"),
                *("--max-upload=64MiB",),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[0]
        self.port = int(self.url.rstrip("/").rpartition(":")[2])
        self.process.stdout.close()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def request(
        self, method: str, path: str, body: bytes | Iterator[bytes] = b"", **headers: str
    ) -> tuple[int, bytes]:
        """Send a request exactly as given, and return status and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def upload(self, name: str, data: bytes) -> str:
        """Upload a file without a browser and return the id of its job."""
        announced = {"name": name, "kind": "file", "size": len(data), "files": 1}
        status, answer = self.request("POST", "/jobs", json.dumps(announced).encode())
        assert status == 200, answer
        job: str = json.loads(answer)["job"]
        assert self.request("PUT", f"/jobs/{job}/input?name=x", data)[0] == 201
        assert self.request("POST", f"/jobs/{job}/uploaded")[0] == 200
        return job

    def record(self, job: str) -> dict[str, Any]:
        """Return what is stored about a job."""
        found: dict[str, Any] = json.loads((self.folder / job / "job.json").read_text())
        return found

    def wait_for(self, job: str, step: str, *states: str) -> dict[str, Any]:
        """Wait until a step of a job is in one of the states, and return it."""
        end = time.monotonic() + 120
        while (found := self.record(job)[step])["state"] not in states:
            assert time.monotonic() < end, found
            time.sleep(0.05)
        return dict(found)

    def wait_for_segment(self, job: str) -> None:
        """Wait until the run of a job has finished a segment, long before it has finished all."""
        unfinished = self.folder / job / "output" / ".clip_x4.mp4.job"
        end = time.monotonic() + 120
        while not any(unfinished.glob("part-*.json")):
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("web") / "data", tiny_bundle)
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 130


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video of many short scenes, several of which make a segment."""
    draw = np.random.default_rng(5)
    images = []
    for _ in range(SCENES):
        blocks = draw.integers(0, 256, (8, 12, 3)).astype(np.uint8)
        still = blocks.repeat(8, axis=0).repeat(8, axis=1)
        images += [np.roll(still, number, axis=1) for number in range(LENGTH)]
    return media.make_video(
        tmp_path_factory.mktemp("clip") / "clip.mp4",
        stamps=[40 * number for number in range(FRAMES)],
        time_base=Fraction(1, 1000),
        rate=Fraction(25),
        size=SIZE,
        images=images,
    )


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with Chromium(tmp_path / "profile") as browser:
        yield browser


def visible(selector: str) -> str:
    """Return the JavaScript condition that an element is on the page and shown."""
    return f"(e => e && e.offsetParent !== null)(document.querySelector({selector!r}))"


def says(selector: str, text: str) -> str:
    """Return the JavaScript condition that an element contains a text."""
    return f"(e => e && e.textContent.includes({text!r}))(document.querySelector({selector!r}))"


def click(browser: Chromium, selector: str) -> None:
    browser.wait_for(visible(selector))
    browser.run(f"document.querySelector({selector!r}).click()")


def job_of(browser: Chromium) -> str:
    browser.wait_for("location.search.startsWith('?job=')")
    return str(browser.run("new URL(location).searchParams.get('job')"))


def open_with(browser: Chromium, url: str, path: Path, **size: Any) -> str:
    """Upload a file by the page and return the id of its job."""
    browser.visit(url, **(size or {"width": 1200, "height": 900}))
    browser.wait_for(visible("#rb-drop"))
    browser.choose_files("#rb-file", path)
    return job_of(browser)


def check_output(path: Path) -> None:
    with av.open(str(path)) as made:
        assert (made.streams.video[0].width, made.streams.video[0].height) == (384, 256)
        assert sum(1 for _ in made.decode(video=0)) == FRAMES


def test_upload_preview_run_cancel_resume_download(
    server: Server, clip: Path, browser: Chromium, tmp_path: Path
) -> None:
    """The whole way of a video in the browser, which requests nothing from elsewhere."""
    job = open_with(browser, server.url, clip)
    browser.wait_for(visible(".rb-view iframe"))
    browser.wait_for(says(".rb-card", f"All {FRAMES} frames, at 384×256, would take about"))
    frames = browser.run("fetch(document.querySelector('.rb-view iframe').src).then(r => r.text())")
    assert frames.count('"before": "data:') == 3
    click(browser, "#rb-start")
    server.wait_for_segment(job)
    click(browser, "#rb-cancel")
    browser.wait_for(says("#rb-start", "Resume"))
    assert server.record(job)["run"]["state"] == "cancelled"
    click(browser, "#rb-start")
    browser.wait_for(visible(".rb-download"))
    result = json.loads((server.folder / job / "run.json").read_text())
    assert 0 < result["resumed_frames"] < FRAMES
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    click(browser, ".rb-download")
    while not (tmp_path / "clip_x4.mp4").exists():
        time.sleep(0.05)
    check_output(tmp_path / "clip_x4.mp4")
    assert not browser.errors
    assert [url for url in browser.requests if not url.startswith((server.url, "data:"))] == []


def test_two_browsers_and_one_queue(
    server: Server, clip: Path, browser: Chromium, tmp_path: Path
) -> None:
    """Each shows its own job, the second waits for the first, and deleting frees the queue."""
    first = open_with(browser, server.url, clip)
    server.wait_for(first, "preview", "done")
    click(browser, "#rb-start")
    server.wait_for(first, "run", "running")
    with Chromium(tmp_path / "other") as other:
        second = open_with(other, server.url, clip, width=390, height=844, phone=True)
        other.wait_for(says(".rb-card", "One job runs at a time. First: clip.mp4."))
        assert other.run("document.documentElement.scrollWidth") == 390
        other.run("window.confirm = () => true")
        click(other, f'[data-delete="{first}"]')
        other.wait_for(visible(".rb-view iframe"))
    assert not (server.folder / first).exists()
    assert server.record(second)["preview"]["state"] == "done"
    browser.wait_for(f"!document.querySelector('[data-delete=\"{first}\"]')")


def test_a_folder_of_images(server: Server, browser: Chromium, tmp_path: Path) -> None:
    """It is uploaded as such, and comes back as a zip file."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(3):
        media.write_still(folder / f"{number}.png", media.gradient(number))
    browser.visit(server.url, width=1200, height=900)
    browser.wait_for(visible("#rb-drop"))
    browser.choose_files("#rb-folder", folder)
    job = job_of(browser)
    browser.wait_for(visible(".rb-view iframe"))
    assert server.record(job)["files"] == 3
    click(browser, "#rb-start")
    browser.wait_for(visible(".rb-download"))
    status, data = server.request("GET", f"/jobs/{job}/output")
    assert status == 200
    (tmp_path / "made.zip").write_bytes(data)
    import zipfile

    with zipfile.ZipFile(tmp_path / "made.zip") as archive:
        names = [f"frames_x4/{number}.png" for number in range(3)]
        assert archive.namelist() == names


def test_what_is_not_a_video_is_refused(server: Server, browser: Chromium, tmp_path: Path) -> None:
    """A text that is called .mp4 gets a sentence on the page."""
    path = tmp_path / "notes.mp4"
    path.write_text("These are not frames.\n" * 100)
    open_with(browser, server.url, path)
    browser.wait_for(visible(".rb-error"))
    assert "notes.mp4" in browser.run("document.querySelector('.rb-error').textContent")


def test_a_playlist_reads_no_other_file(server: Server, clip: Path) -> None:
    """A text that makes decoders open other files is refused, whatever it is called."""
    scripts = {
        "concat.mp4": f"ffconcat version 1.0\nfile '{clip}'\n",
        "list.mp4": f"#EXTM3U\n#EXTINF:10,\n{clip.as_uri()}\n#EXT-X-ENDLIST\n",
    }
    for name, text in scripts.items():
        job = server.upload(name, text.encode())
        assert server.wait_for(job, "preview", "failed", "done")["state"] == "failed"


def test_names_cannot_leave_the_folder(server: Server) -> None:
    before = {path.name for path in server.folder.parent.iterdir()}
    job = server.upload("../../../evil.mp4", b"text")
    assert [path.name for path in (server.folder / job / "input").iterdir()] == ["evil.mp4"]
    assert {path.name for path in server.folder.parent.iterdir()} == before
    server.wait_for(job, "preview", "failed")


def test_no_other_file_can_be_read(server: Server) -> None:
    """Neither by Gradio's paths, nor by traversal, nor by events with files for values."""
    secret = server.folder.parent / "secret.txt"
    secret.write_text("a-secret")
    job = server.upload("a.mp4", b"text")
    server.wait_for(job, "preview", "failed")
    inside = server.folder / job / "job.json"
    up = "../" * 12
    paths = [
        *(f"/gradio_api/file={path}" for path in (secret, inside, f"{up}{secret}", "/etc/passwd")),
        *(f"/gradio_api/file/{secret}", f"/file={secret}", f"/static/{up}{secret}"),
        *(f"/assets/{up}{secret}", f"/assets/%2e%2e/%2e%2e{secret}", f"//{secret}", f"{secret}"),
        *(f"/jobs/{job}/output/../job.json", f"/jobs/{job}%2f..%2f{job}/output"),
        *(f"/jobs/..%2f..%2f/{secret}", f"/jobs/{job}/job.json", f"/jobs/{job}/run.log"),
        *("/gradio_api/proxy=http://127.0.0.1/", "/gradio_api/custom_component/a/b/c/d"),
    ]
    for path in paths:
        status, data = server.request("GET", path)
        assert status in (403, 404), path
        assert b"a-secret" not in data
    status, data = server.request("POST", "/gradio_api/upload", b"x" * 10)
    assert status == 404
    file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    events = json.loads(server.request("GET", "/config")[1])["dependencies"]
    assert len(events) == 5
    for event in events:
        for value, expected in ((file, 400), ([file], 400), (str(secret), 200)):
            body = {
                "data": [value] * len(event["inputs"]),
                "fn_index": event["id"],
                "session_hash": "h",
                "event_data": None,
                "trigger_id": None,
            }
            kind = {"content-type": "application/json"}
            join = server.request("POST", EVENTS, json.dumps(body).encode(), **kind)
            assert join[0] == expected
    with contextlib.suppress(http.client.IncompleteRead):
        answer = server.request("GET", "/gradio_api/queue/data?session_hash=h")[1]
        assert answer.count(b"process_completed") == len(events)
        assert b"a-secret" not in answer
    assert not list((server.folder / "gradio").rglob("*secret*"))


def test_limits_of_uploads(server: Server) -> None:
    """Too large an upload is refused before and while it is sent; nothing of it remains."""

    def announce(**changes: Any) -> tuple[int, bytes]:
        given = {"name": "a.mp4", "kind": "file", "size": 10, "files": 1, **changes}
        return server.request("POST", "/jobs", json.dumps(given).encode())

    before = set(os.listdir(server.folder))
    assert announce(size=2**31) == (
        413,
        b"the upload has 2.0 GiB, and at most 64 MiB are taken: cut it up, or use rbvsr-run",
    )
    assert announce(size=-1)[0] == announce(files=2)[0] == 413
    assert announce(kind="device")[0] == announce(size="x")[0] == 400
    job = json.loads(announce()[1])["job"]
    assert server.request("PUT", f"/jobs/{job}/input", b"x" * 11)[0] == 400
    assert server.request("PUT", f"/jobs/{job}/input", b"x")[0] == 404
    job = json.loads(announce()[1])["job"]
    assert server.request("PUT", f"/jobs/{job}/input", b"x" * 9)[0] == 201
    assert server.request("POST", f"/jobs/{job}/uploaded")[0] == 400
    assert set(os.listdir(server.folder)) == before


def test_large_uploads_take_little_memory(server: Server) -> None:
    """The server's peak of memory does not grow with the upload, which arrives in full."""
    size = 48 * 2**20
    before = peak_memory(server.process.pid)
    announced = {"name": "large.mp4", "kind": "file", "size": size, "files": 1}
    job = json.loads(server.request("POST", "/jobs", json.dumps(announced).encode())[1])["job"]
    block = bytes(2**20)
    kind = {"content-length": str(size)}
    status, _ = server.request("PUT", f"/jobs/{job}/input", iter([block] * 48), **kind)
    assert status == 201
    assert (server.folder / job / "input" / "large.mp4").stat().st_size == size
    assert peak_memory(server.process.pid) - before < 16 * 2**20
    assert server.request("DELETE", f"/jobs/{job}")[0] == 200
    assert not (server.folder / job).exists()


def peak_memory(pid: int) -> int:
    """Return the most memory that a process has used, in bytes."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_an_interrupted_upload_leaves_nothing(server: Server) -> None:
    before = set(os.listdir(server.folder))
    announced = {"name": "a.mp4", "kind": "file", "size": 2**20, "files": 1}
    job = json.loads(server.request("POST", "/jobs", json.dumps(announced).encode())[1])["job"]
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.putrequest("PUT", f"/jobs/{job}/input")
    connection.putheader("Content-Length", str(2**20))
    connection.endheaders()
    connection.send(b"x" * 1000)
    connection.close()
    end = time.monotonic() + 20
    while set(os.listdir(server.folder)) != before:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_second_server_refuses_the_folder(server: Server) -> None:
    with pytest.raises(Exception, match="another server is using the jobs"):
        Store(server.folder)


def test_a_killed_server_resumes(server: Server, clip: Path, browser: Chromium) -> None:
    """Its child ends with it; the next server shows the job, resumes and finishes it, and the page
    that was open works on.
    """
    job = open_with(browser, server.url, clip)
    server.wait_for(job, "preview", "done")
    click(browser, "#rb-start")
    server.wait_for_segment(job)
    children = children_of(server.process.pid)
    assert children
    server.kill()
    end = time.monotonic() + 60
    while any(is_running(child) for child in children):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert server.record(job)["run"]["state"] == "running"
    server.start()
    server.wait_for(job, "run", "done")
    result = json.loads((server.folder / job / "run.json").read_text())
    assert 0 < result["resumed_frames"] < FRAMES
    check_output(server.folder / job / "output" / "clip_x4.mp4")
    browser.wait_for(visible(".rb-download"))


def children_of(pid: int) -> list[int]:
    """Return the ids of a process's children."""
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return done.stdout.strip() not in ("", "Z", "Zs", "Zl", "Zsl")
