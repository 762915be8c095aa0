"""Tests the job folder: resuming, starting over, cleaning up and publishing."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import portalocker
import pytest

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video import Job
from rbvsr_deploy.video.images import write_image
from rbvsr_deploy.video.staging.parts import StoredFile
from tests.support import media
from tests.support.sinks import write_segments

STATE = bytes(range(256)) * 300  # large enough to be kept for the last segment only


def stored(job: Job, data: bytes) -> StoredFile:
    """Write a segment's data as sinks do."""
    path = job.next_segment(".packets")
    path.write_bytes(data)
    return StoredFile(path.name, len(data))


def begun(out: Path, *, parts: int, **identity: str) -> Job:
    """Return a closed job with some finished segments."""
    with Job(out, identity=identity) as job:
        job.start({"codec": "c"})
        for number in range(parts):
            job.add_segment(
                frames=number + 1,
                note={"number": number},
                media={},
                files=[stored(job, b"data")],
                attachment=STATE,
            )
    return job


def continued(out: Path, **identity: str) -> Job:
    """Return the next job for the same output, closed."""
    with Job(out, identity=identity) as job:
        job.start({"codec": "c"})
    return job


def all_names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.mp4"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return media.make_video(tmp_path / "clip.mp4", size=(32, 16))


class TestFolder:
    def test_name_is_hidden_and_always_the_same(
        self, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert begun(out, parts=0).folder == tmp_path / ".out.mp4.job"
        monkeypatch.chdir(tmp_path)
        assert begun(Path("sub"), parts=0).folder == tmp_path / ".sub.job"
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        assert begun(Path("."), parts=0).folder == tmp_path / ".here.job"

    def test_folder_without_finished_segments_is_removed(self, out: Path, tmp_path: Path) -> None:
        with Job(out, identity={}) as job:
            job.start({})
            stored(job, b"half a segment")
        assert all_names(tmp_path) == []

    def test_only_finished_segments_are_kept(self, out: Path, tmp_path: Path) -> None:
        with Job(out, identity={}) as job:
            job.start({})
            job.add_segment(frames=1, note={}, media={}, files=[stored(job, b"1")])
            stored(job, b"half a segment")
            (job.folder / "joined.mp4").write_bytes(b"half a file")
        assert all_names(job.folder) == [
            "job.json",
            "lock",
            "part-000001.json",
            "part-000001.packets",
        ]

    def test_leftovers_of_a_killed_run_are_removed(self, out: Path, tmp_path: Path) -> None:
        job = begun(out, parts=1)
        for name in ("part-000002.packets", ".part-000002.json.x.part", "pictures/1.png"):
            (job.folder / name).parent.mkdir(exist_ok=True)
            (job.folder / name).write_bytes(b"half")
        with Job(out, identity={}) as job:
            job.start({"codec": "c"})
            assert all_names(job.folder) == [
                "job.json",
                "lock",
                "part-000001.json",
                "part-000001.packets",
                "part-000001.state",
            ]

    def test_an_error_before_the_start_loses_nothing(self, out: Path) -> None:
        """A mistyped option is refused by the sink before it starts the job."""
        folder = begun(out, parts=2).folder
        before = all_names(folder)
        with Job(out, identity={"input": "other"}):
            pass
        assert all_names(folder) == before
        assert continued(out).resumed_segments == 2

    def test_closing_twice(self, out: Path) -> None:
        job = begun(out, parts=0)
        job.close()

    def test_missing_parent(self, tmp_path: Path) -> None:
        with pytest.raises(MediaError, match="no does not exist: create it"):
            Job(tmp_path / "no" / "out.mp4", identity={})


class TestTakingOver:
    def test_segments(self, out: Path) -> None:
        begun(out, parts=3, input="a")
        job = continued(out, input="a")
        assert job.started_over is None
        assert job.resumed_segments == 3
        assert [(segment.frames, segment.note) for segment in job.segments] == [
            (1, {"number": 0}),
            (2, {"number": 1}),
            (3, {"number": 2}),
        ]
        assert job.attachment() == STATE

    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: (folder / "part-000002.packets").write_bytes(b"dat"),
            lambda folder: (folder / "part-000003.packets").unlink(),
            lambda folder: (folder / "part-000003.json").write_text("{}"),
            lambda folder: (folder / "part-000003.json").write_text("[1"),
            lambda folder: (folder / "part-000003.state").write_bytes(STATE[::-1]),
            lambda folder: (folder / "part-000001.json").unlink(),
        ],
    )
    def test_no_resume_after_a_lost_state(
        self, out: Path, damage: Callable[[Path], object]
    ) -> None:
        """Only the last segment has a state: without it, earlier segments are useless too."""
        damage(begun(out, parts=3).folder)
        assert continued(out).resumed_segments == 0

    @pytest.mark.parametrize("lost", [1, 2, 3])
    def test_small_states_are_kept(self, out: Path, lost: int) -> None:
        """Work resumes after the last segment whose data and state are whole."""
        with Job(out, identity={}) as job:
            job.start({"codec": "c"})
            for number in range(3):
                files = [stored(job, b"data")]
                state = bytes([number]) * 100
                job.add_segment(frames=1, note={}, media={}, files=files, attachment=state)
        (job.folder / f"part-00000{lost}.packets").unlink()
        again = continued(out)
        assert again.resumed_segments == lost - 1

    def test_what_a_segment_was_made_of_has_changed(self, out: Path) -> None:
        """The caller decides; what it raises about a malformed note counts as changed."""
        begun(out, parts=3)
        for valid, count in (
            (lambda part: True, 3),
            (lambda part: bool(part.note["missing"]), 0),
        ):
            with Job(out, identity={}, still_valid=valid) as job:
                job.start({"codec": "c"})
                assert job.resumed_segments == count

    @pytest.mark.parametrize(
        "damage",
        [
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"),
            lambda path: path.unlink(),
        ],
        ids=["short", "changed", "missing"],
    )
    def test_damaged_segment_is_redone(
        self,
        tmp_path: Path,
        clip: Path,
        caplog: pytest.LogCaptureFixture,
        damage: Callable[[Path], object],
    ) -> None:
        """The damaged segment and all later ones are redone, with the same result."""
        options: dict[str, Any] = {"lengths": [3, 3, 3, 3], "attach": False}
        write_segments(clip, tmp_path / "plain.mp4", **options)
        folder = write_segments(clip, tmp_path / "out.mp4", stop_after=9, **options).folder
        damage(folder / "part-000002.packets")
        with caplog.at_level(logging.WARNING):
            assert write_segments(clip, tmp_path / "out.mp4", **options).resumed_segments == 1
        assert "segment 2 of the unfinished" in caplog.text
        assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()


class TestStartingOver:
    @pytest.mark.parametrize(
        ("new", "why"),
        [
            ({"input": "b", "model": "m"}, "the input was a and is b"),
            ({"input": "a", "model": "n"}, "the model was m and is n"),
            ({"input": "a"}, "the model was m and is not known"),
            ({"input": "a", "model": "m", "noise": "1"}, "the noise was not known and is 1"),
            (
                {"input": "a", "model": "m", "picture size": "8x8"},
                "the image size was not known and is 8x8",
            ),
        ],
    )
    def test_another_identity(self, out: Path, new: dict[str, Any], why: str) -> None:
        begun(out, parts=2, input="a", model="m")
        job = continued(out, **new)
        assert job.started_over == why
        assert job.segments == []
        assert not job.folder.exists()

    def test_other_settings_of_the_sink(self, tmp_path: Path, clip: Path) -> None:
        """The sink's settings belong to the identity too."""
        write_segments(clip, tmp_path / "out.mp4", lengths=[6, 6], stop_after=6)
        job = write_segments(clip, tmp_path / "out.mp4", lengths=[6, 6], crf=30)
        assert job.started_over is not None
        assert job.started_over.startswith("the encoder setting was crf=18")
        assert len(media.stamps_of(tmp_path / "out.mp4")) == 12

    def test_nothing_to_discard(self, out: Path) -> None:
        begun(out, parts=0, input="a")
        assert continued(out, input="b").started_over is None

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("{", "damaged"),
            ("[]", "damaged"),
            ('{"schema": 1}', "damaged"),
            ('{"schema": 2, "identity": {}}', "another version"),
            (None, "damaged"),
        ],
    )
    def test_damaged_or_foreign_record(self, out: Path, text: str | None, why: str) -> None:
        path = begun(out, parts=1).folder / "job.json"
        path.unlink() if text is None else path.write_text(text)
        job = continued(out)
        assert why in str(job.started_over)
        assert job.segments == []


class TestLock:
    def test_second_run_is_refused(self, out: Path, tmp_path: Path) -> None:
        with Job(out, identity={}) as job:
            job.start({})
            with pytest.raises(MediaError, match=r"another run is working on .*out\.mp4: wait"):
                Job(out, identity={})
            assert job.folder.exists()
        assert all_names(tmp_path) == []

    def test_folder_removed_while_it_is_locked(
        self, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A lock in a folder that another run has just removed would exclude nobody."""
        lock = portalocker.lock
        calls: list[Any] = []

        def late(handle: int, flags: portalocker.LockFlags) -> None:
            if not calls:
                shutil.rmtree(out.with_name(".out.mp4.job"))
            calls.append(flags)
            lock(handle, flags)

        monkeypatch.setattr(portalocker, "lock", late)
        with Job(out, identity={}), pytest.raises(MediaError, match="another run"):
            Job(out, identity={})
        assert len(calls) == 3

    def test_other_outputs_are_not_locked(self, out: Path, tmp_path: Path) -> None:
        with Job(out, identity={}), Job(tmp_path / "other.mp4", identity={}):
            pass


class TestPublishing:
    @pytest.mark.parametrize("name", ["out.mp4", "frames", "one.png"])
    @pytest.mark.parametrize("keep", [False, True])
    def test_keep(self, tmp_path: Path, clip: Path, name: str, keep: bool) -> None:
        """A kept folder is enough to publish again."""
        path, lengths = clip, [6, 6]
        if name == "one.png":
            path, lengths = tmp_path / "in.png", [1]
            write_image(path, image=media.gradient(0))
        out = tmp_path / name
        job = write_segments(path, out, lengths=lengths, keep=keep)
        assert out.exists()
        assert job.folder.exists() == keep
        if keep:
            with pytest.raises(MediaError, match=r"exists|is a folder"):
                write_segments(path, out, lengths=lengths)
            out.rename(tmp_path / "before")
            assert write_segments(path, out, lengths=lengths).resumed_segments == len(lengths)
            assert out.exists()
            assert not job.folder.exists()

    def test_existing_folder(self, tmp_path: Path) -> None:
        """An empty folder is replaced in one step; otherwise, files are added to it."""
        source, out = tmp_path / "in", tmp_path / "frames"
        source.mkdir()
        out.mkdir()
        write_image(source / "1.png", image=media.gradient(0))
        write_segments(source, out, lengths=[1])
        (out / "other.txt").write_text("mine")
        with Job(out, identity={}, overwrite=True) as job:
            job.start({})
            (job.folder / "new").mkdir()
            (job.folder / "new" / "2.png").write_text("new")
            job.publish(job.folder / "new")
        assert all_names(tmp_path / "frames") == ["1.png", "2.png", "other.txt"]
        assert not job.folder.exists()

    def test_note_must_be_json_serialisable(self, out: Path, tmp_path: Path) -> None:
        with Job(out, identity={}) as job:
            job.start({})
            with pytest.raises(TypeError):
                job.add_segment(frames=1, note={"a": object()}, media={}, files=[stored(job, b"1")])
        assert all_names(tmp_path) == []

    def test_journal_names_the_identity(self, out: Path) -> None:
        """The identity is readable in a kept folder."""
        job = begun(out, parts=1, input="a")
        data = json.loads((job.folder / "job.json").read_text())
        assert data["identity"] == {"input": "a", "codec": "c"}
