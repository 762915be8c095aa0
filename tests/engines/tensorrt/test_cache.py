"""Tests that cache files are atomic and checksummed, and that unsuitable timings are rejected."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rbvsr_deploy.engines.tensorrt.cache import (
    cache_folder,
    cache_key,
    read_cached,
    write_cached,
)
from rbvsr_deploy.engines.tensorrt.timing_cache import TimingCache
from tests.support.tensorrt_bindings import bindings


def config() -> Any:
    return bindings("10.3.0").Builder(None).create_builder_config()


def test_the_folder_is_the_users_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``RBVSR_CACHE`` overrides the user's cache folder for this project."""
    monkeypatch.setenv("RBVSR_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("RBVSR_CACHE")
    assert "rbvsr-deploy" in cache_folder().parts


def test_a_key_changes_with_every_value() -> None:
    """It changes with nested values too, but not with the order in a mapping."""
    keys = {cache_key(1, {"a": 2, "b": None}), cache_key(1, {"a": 2}), cache_key(2, {"a": 2})}
    assert len(keys) == 3
    assert cache_key({"a": 1, "b": 2}) == cache_key({"b": 2, "a": 1})


def test_written_content_is_read(tmp_path: Path) -> None:
    """Missing folders are created, and no other file is left."""
    path = tmp_path / "a" / "b" / "file.cache"
    assert read_cached(path) is None
    for content in (b"", b"first", b"second"):
        write_cached(path, content)
        assert read_cached(path) == content
    assert list(path.parent.iterdir()) == [path]


def test_every_damaged_byte_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A flipped, truncated or empty file is removed with a warning, and nothing is returned."""
    path = tmp_path / "file.cache"
    write_cached(path, b"content")
    whole = path.read_bytes()
    damaged = [whole[:i] for i in range(len(whole))]
    damaged += [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
    for data in damaged:
        caplog.clear()
        path.write_bytes(data)
        assert read_cached(path) is None
        assert not path.exists()
        assert "is damaged and is rebuilt" in caplog.text


def test_a_folder_that_cannot_be_written_causes_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If a file is in the folder's place, a warning says what to set, and no error is raised."""
    (tmp_path / "taken").write_bytes(b"")
    write_cached(tmp_path / "taken" / "file.cache", b"content")
    assert "set RBVSR_CACHE" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_timings_are_kept_for_the_next_build(tmp_path: Path) -> None:
    """The next build finds what a build added; the file is written only if something was."""
    path = tmp_path / "gpu.cache"
    first = config()
    timings = TimingCache(path)
    timings.attach(first)
    first.timing_cache.content += b"a kernel"
    timings.keep(first)
    second = config()
    again = TimingCache(path)
    again.attach(second)
    assert second.timing_cache.content == b"a kernel"
    path.unlink()
    again.keep(second)
    assert not path.exists()


def test_timings_of_another_gpu_are_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorRT rejects a foreign cache by returning False; an empty one replaces it."""
    path = tmp_path / "gpu.cache"
    write_cached(path, b"foreign timings")
    timings = TimingCache(path)
    build = config()
    timings.attach(build)
    assert build.timing_cache.content == b""
    assert "rejected the timing cache" in caplog.text
    timings.keep(build)
    assert read_cached(path) == b""


def test_damaged_timings_never_reach_tensorrt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One flipped byte would abort the process inside TensorRT."""
    path = tmp_path / "gpu.cache"
    write_cached(path, b"timings")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    given: list[bytes] = []

    def create(content: bytes) -> object:
        given.append(content)
        return object()

    build = SimpleNamespace(
        create_timing_cache=create,
        set_timing_cache=lambda cache, ignore: True,
    )
    TimingCache(path).attach(build)
    assert given == [b""]
    assert "damaged" in caplog.text
