"""Tests which requests reach the page."""

from __future__ import annotations

import json

import pytest

from rbvsr_deploy.web.guard import is_local, plain_event, refusal

OWN = {"host": "127.0.0.1:7860"}


def status(method: str, path: str, headers: dict[str, str], host: str = "127.0.0.1") -> int | None:
    refused = refusal(method, path, headers, host=host)
    return None if refused is None else refused[0]


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/config", "/theme.css", "/assets/index-Dph_vygg.js", "/static/img/logo.svg"),
        *("/gradio_api/queue/data", "/jobs/20261126-034659-1f0c2a/output"),
    ],
)
def test_the_page_is_reached(path: str) -> None:
    assert status("GET", path, OWN) is None


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/proxy=https://example.org/",
        "/gradio_api/upload",
        "/gradio_api/run/looked",
        "/gradio_api/call/looked",
        "/gradio_api/queue/join/",
        "/gradio_api/stream/a/b/c/playlist.m3u8",
        "/gradio_api/custom_component/a/client/component/index.js",
        "/gradio_api/component_server",
        "/gradio_api/vibe-code",
        "/gradio_api/deep_link",
        "/gradio_api/openapi.json",
        "/monitoring",
        "/static/../../../etc/passwd",
        "/assets/..",
        "/assets//etc/passwd\n",
        "/jobs/../../etc/passwd",
        "/jobs/a/output/../../b",
        "/jobs/a/job.json",
        "//etc/passwd",
        "/etc/passwd",
        "/svelte/x",
        "/config/..",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "HEAD"])
def test_nothing_else_is_reached(method: str, path: str) -> None:
    assert status(method, path, {**OWN, "content-length": "1"}) == 404


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        *(("127.0.0.1:7860", True), ("localhost:7860", True), ("[::1]:7860", True)),
        *(("192.168.1.7", True), ("evil.example", False), ("localhost.evil.example", False)),
        *(("", False), ("127.0.0.1.evil.example", False), ("a@b", False)),
    ],
)
def test_names_of_other_sites_are_refused(name: str, allowed: bool) -> None:
    """A site whose name leads to this machine cannot read the page (DNS rebinding)."""
    assert (status("GET", "/", {"host": name}) is None) is allowed


def test_the_name_it_listens_on_is_its_own() -> None:
    assert status("GET", "/", {"host": "Studio.lan:80"}, host="studio.lan") is None


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
    ],
)
def test_other_sites_start_nothing(headers: dict[str, str]) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert status(method, "/jobs", {**OWN, **headers, "content-length": "1"}) == 403
    own = {**OWN, "origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}
    assert status("POST", "/jobs", {**own, "content-length": "1"}) is None


def test_links_from_other_sites_open_the_page() -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert status("GET", "/", {**OWN, **link}) is None
    assert status("POST", "/jobs", {**OWN, **link, "content-length": "1"}) == 403


def test_only_uploads_are_large() -> None:
    large = {**OWN, "content-length": str(2**31)}
    assert status("PUT", "/jobs/a/input", large) is None
    assert status("POST", "/jobs", large) == 413
    assert status("PUT", "/jobs/a/output", large) == 413
    assert status("POST", "/gradio_api/queue/join", large) == 413
    assert status("POST", "/jobs", {**OWN, "transfer-encoding": "chunked"}) == 411
    assert status("GET", "/", {**OWN, "transfer-encoding": "chunked"}) == 411
    assert status("PUT", "/jobs/a/input", {**OWN, "content-length": "-1"}) == 411


def test_local_addresses() -> None:
    assert [
        h for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "a.b") if is_local(h)
    ] == [
        "127.0.0.1",
        "::1",
        "localhost",
    ]


def test_events_carry_plain_values() -> None:
    """No event can name a file, which Gradio would copy into its cache."""
    given = {"data": ["a", 1, 0.5, True, None], "fn_index": 1, "session_hash": "x"}
    whole = {**given, "event_data": None, "trigger_id": 7}
    for event in (given, whole):
        plain = plain_event(json.dumps(event).encode())
        assert plain is not None
        assert json.loads(plain) == {**whole, **event} | {"trigger_id": event.get("trigger_id")}
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    for change in ({"data": [file]}, {"data": [[file]]}, {"event_data": file}, {"state": file}):
        assert plain_event(json.dumps({**given, **change}).encode()) is None
    twice = b'{"data": [{"path": "/etc/passwd"}], "fn_index": 1, "session_hash": "x", "data": []}'
    plain = plain_event(twice)
    assert plain is None or b"passwd" not in plain
    assert plain_event(b"") is None
