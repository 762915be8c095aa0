"""Tests how jobs are kept on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.web import store as module
from rbvsr_deploy.web.records import Settings
from rbvsr_deploy.web.store import Job, Store
from rbvsr_deploy.web.uploads import Limits, UploadError


def uploaded(store: Store, name: str = "clip.mp4", text: str = "data") -> Job:
    job = store.new(name, kind="file", size=len(text), files=1)
    job.input.write_text(text)
    job.finish_upload()
    return job


def test_jobs_survive_the_server(tmp_path: Path) -> None:
    """The newest comes first; names, settings and states are kept."""
    with Store(tmp_path) as store:
        first, second = uploaded(store), uploaded(store, "b.mkv")
        first.change_step(
            "run", state="done", settings=Settings("large", "2", 0.5, 0.25, "1", "2"), seconds=3.5
        )
        before = {job.id: job.record for job in store.all()}
    with Store(tmp_path) as store:
        assert {job.id: job.record for job in store.all()} == before
        assert store.all()[0].id == max(first.id, second.id)
        found = store.get(first.id)
        assert found is not None
        assert found.record.run.settings == Settings("large", "2", 0.5, 0.25, "1", "2")


def test_unfinished_uploads_do_not_survive(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        job = store.new("clip.mp4", kind="file", size=10, files=1)
        job.input.write_text("part")
        assert store.all() == []
        assert store.get(job.id) is job
    with Store(tmp_path) as store:
        assert store.get(job.id) is None
        assert not job.folder.exists()


def test_an_incomplete_upload_is_no_job(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        job = store.new("frames", kind="folder", size=8, files=2)
        (job.input / "1.png").write_text("data")
        with pytest.raises(UploadError, match="incomplete"):
            job.finish_upload()
        (job.input / "2.png").write_text("dat")
        with pytest.raises(UploadError, match="incomplete"):
            job.finish_upload()
        (job.input / "2.png").write_text("data")
        job.finish_upload()
        assert store.all() == [job]


def test_more_than_announced_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        job = store.new("frames", kind="folder", size=8, files=2)
        job.expect(4)
        with pytest.raises(UploadError, match="more bytes or files"):
            job.expect(5)
        job.expect(4)
        with pytest.raises(UploadError, match="more bytes or files"):
            job.expect(0)


def test_uploads_reserve_their_bytes(tmp_path: Path) -> None:
    """Two uploads that do not fit the disk together are not both taken."""
    free = shutil.disk_usage(tmp_path).free
    with Store(tmp_path, limits=Limits(upload=free, spare=free // 4)) as store:
        job = store.new("a.mp4", kind="file", size=free // 2, files=1)
        with pytest.raises(UploadError, match="disk has only"):
            store.new("b.mp4", kind="file", size=free // 2, files=1)
        store.remove(job)
        store.new("b.mp4", kind="file", size=free // 2, files=1)


def test_abandoned_uploads_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as store:
        job = store.new("a.mp4", kind="file", size=9, files=1)
        complete = uploaded(store)
        monkeypatch.setattr(module, "_ABANDONED", -1.0)
        other = store.new("b.mp4", kind="file", size=9, files=1)
        assert store.get(job.id) is None
        assert store.get(other.id) is other
        assert store.get(complete.id) is complete


def test_names_are_made_safe(tmp_path: Path) -> None:
    with Store(tmp_path / "jobs") as store:
        job = store.new("../../../evil.mp4", kind="file", size=4, files=1)
        assert job.input == job.folder / "input" / "evil.mp4"
        assert [path.name for path in tmp_path.iterdir()] == ["jobs"]


def test_one_server_uses_a_folder(tmp_path: Path) -> None:
    with Store(tmp_path), pytest.raises(RbvsrError, match="another server is using the jobs"):
        Store(tmp_path)
    Store(tmp_path).close()


def test_foreign_and_damaged_folders_are_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "my files").mkdir()
    damaged = tmp_path / "20261126-034659-1f0c2a"
    damaged.mkdir()
    (damaged / "job.json").write_text('{"name": "../x", "kind": "fil')
    unsafe = tmp_path / "20261126-034659-1f0c2b"
    unsafe.mkdir()
    text = '{"name": "../x", "kind": "file", "size": 1, "created": 1, "uploaded": true}'
    (unsafe / "job.json").write_text(text)
    with Store(tmp_path) as store:
        assert store.all() == []
    assert damaged.exists()
    assert unsafe.exists()
    assert (tmp_path / "my files").exists()
    assert len(caplog.records) == 2


def test_the_output_appears_when_it_is_complete(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        job = uploaded(store)
        (job.output_folder / ".clip_x4.mp4.job").mkdir()
        assert job.output() is None
        (job.output_folder / "clip_x4.mp4").touch()
        assert job.output() == job.output_folder / "clip_x4.mp4"
        job.remove_output()
        assert job.output() is None
        assert (job.output_folder / ".clip_x4.mp4.job").exists()
