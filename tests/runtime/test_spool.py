"""Tests the spool: arrays come back from the disk as they were stored."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.runtime.spool import Spool


@pytest.fixture(params=[True, False], ids=["positional", "seeking"])
def positional(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return whether the system reads and writes at a position; Windows and old macOS do not."""
    if not request.param:
        monkeypatch.delattr(os, "preadv")
        monkeypatch.delattr(os, "pwritev")
    return bool(request.param)


def array(seed: int, dtype: str = "float32") -> NDArray[Any]:
    return np.random.default_rng(seed).normal(size=(1, 3, 4, 5)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.usefixtures("positional")
def test_arrays_come_back(dtype: str, tmp_path: Path) -> None:
    """They do bit for bit, in any order, after others were dropped and their places reused."""
    with Spool(tmp_path) as spool:
        for i in range(10):
            spool.put(i, array(i, dtype))
        for i in (1, 4, 5, 9):
            spool.drop(i)
        for i in (20, 21, 22):
            spool.put(i, array(i, dtype))
        spool.put(7, array(70, dtype))  # in place of the old one
        assert len(spool) == 9
        for i in (22, 0, 8, 20, 2, 6, 21, 3):
            assert i in spool
            np.testing.assert_array_equal(spool.get(i), array(i, dtype))
        np.testing.assert_array_equal(spool.get(7), array(70, dtype))
        assert 4 not in spool
        with pytest.raises(KeyError):
            spool.get(4)


def test_the_file_does_not_grow_with_dropped_arrays(tmp_path: Path) -> None:
    """A thousand arrays, five at a time, take the space of five; and the file has no name."""
    with Spool(tmp_path) as spool:
        for i in range(1000):
            spool.put(i, array(i))
            spool.drop(i - 5)
        assert spool._file is not None
        assert os.fstat(spool._file.fileno()).st_size <= 6 * array(0).nbytes
        assert list(tmp_path.iterdir()) == []


def test_arrays_are_copied(tmp_path: Path) -> None:
    """The caller may reuse its buffers."""
    with Spool(tmp_path) as spool:
        buffer = array(1)
        spool.put(0, buffer)
        buffer[:] = 0
        np.testing.assert_array_equal(spool.get(0), array(1))


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    """All arrays must be dropped first."""
    with Spool(tmp_path) as spool:
        spool.put(0, array(0))
        with pytest.raises(ValueError, match=r"expected float32 \(1, 3, 4, 5\), got float16"):
            spool.put(1, array(1, "float16"))
        spool.clear()
        spool.put(1, array(1, "float16"))
        np.testing.assert_array_equal(spool.get(1), array(1, "float16"))


def test_a_full_disk_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, positional: bool
) -> None:
    """Stored arrays stay readable."""
    with Spool(tmp_path) as spool:
        spool.put(0, array(0))

        def full(*arguments: object) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "pwritev" if positional else "write", full)
            with pytest.raises(RbvsrError, match=r"No space left on device.*longest scene"):
                spool.put(1, array(1))
        spool.put(2, array(2))
        np.testing.assert_array_equal(spool.get(0), array(0))
        np.testing.assert_array_equal(spool.get(2), array(2))


def test_where_the_file_is_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on a disk if there is a folder for that; the user's own choice takes precedence."""

    def folder() -> Path:
        with Spool() as spool:
            spool.put(0, array(0))
            return spool._folder

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert folder() == tmp_path
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("TMPDIR")
    assert folder() in (Path("/var/tmp"), Path(tempfile.gettempdir()))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert folder() == Path(tempfile.gettempdir())


def test_partial_writes_and_reads_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, positional: bool
) -> None:
    """The system may write and read less than requested."""
    if positional:
        write_at, read_at = os.pwritev, os.preadv
        monkeypatch.setattr(os, "pwritev", lambda f, b, at: write_at(f, [b[0][:7]], at))
        monkeypatch.setattr(os, "preadv", lambda f, b, at: read_at(f, [b[0][:11]], at))
    else:
        write, read = os.write, os.read
        monkeypatch.setattr(os, "write", lambda f, b: write(f, b[:7]))
        monkeypatch.setattr(os, "read", lambda f, n: read(f, min(n, 11)))
    with Spool(tmp_path) as spool:
        for i in range(3):
            spool.put(i, array(i))
        for i in range(3):
            np.testing.assert_array_equal(spool.get(i), array(i))


def test_a_system_that_does_not_delete_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is deleted once it is closed."""

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    with Spool(tmp_path) as spool:
        for number in range(2):
            with monkeypatch.context() as patched:
                patched.setattr(os, "unlink", refuse)
                spool.put(0, array(number))
                assert len(list(tmp_path.iterdir())) == 1
                np.testing.assert_array_equal(spool.get(0), array(number))
            spool.clear()
            assert list(tmp_path.iterdir()) == []
