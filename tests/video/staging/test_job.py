"""The job folder: what is taken over, what is started over, and that nothing is left behind."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import portalocker
import pytest

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video import Job
from rbvsr_deploy.video.images import write_image
from rbvsr_deploy.video.staging.parts import StoredFile
from tests.support import media
from tests.support.sinks import write_parts

STATE = bytes(range(256))


def stored(job: Job, data: bytes) -> StoredFile:
    """A part's data, written as sinks do."""
    path = job.next_part(".packets")
    path.write_bytes(data)
    return StoredFile(path.name, len(data))


def begun(out: Path, *, parts: int, **identity: str) -> Job:
    """A job with some finished parts, closed."""
    with Job(out, identity=identity) as job:
        job.start({"codec": "c"})
        for number in range(parts):
            job.add_part(
                frames=number + 1,
                note={"number": number},
                media={},
                files=[stored(job, b"data")],
                attachment=STATE,
            )
    return job


def continued(out: Path, **identity: str) -> Job:
    """The next job for the same output, closed."""
    with Job(out, identity=identity) as job:
        job.start({"codec": "c"})
    return job


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.mp4"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return media.make_video(tmp_path / "clip.mp4", size=(32, 16))


class TestFolder:
    def test_name_is_hidden_and_always_the_same(self, out, tmp_path, monkeypatch):
        assert begun(out, parts=0).folder == tmp_path / ".out.mp4.job"
        monkeypatch.chdir(tmp_path)
        assert begun(Path("sub"), parts=0).folder == tmp_path / ".sub.job"
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        assert begun(Path("."), parts=0).folder == tmp_path / ".here.job"

    def test_without_a_finished_part_nothing_stays(self, out, tmp_path):
        with Job(out, identity={}) as job:
            job.start({})
            stored(job, b"half a part")
        assert everything(tmp_path) == []

    def test_with_a_finished_part_only_that_stays(self, out, tmp_path):
        with Job(out, identity={}) as job:
            job.start({})
            job.add_part(frames=1, note={}, media={}, files=[stored(job, b"1")])
            stored(job, b"half a part")
            (job.folder / "joined.mp4").write_bytes(b"half a file")
        assert everything(job.folder) == [
            "job.json",
            "lock",
            "part-000001.json",
            "part-000001.packets",
        ]

    def test_what_a_killed_run_left_is_removed(self, out, tmp_path):
        job = begun(out, parts=1)
        for name in ("part-000002.packets", ".part-000002.json.x.part", "pictures/1.png"):
            (job.folder / name).parent.mkdir(exist_ok=True)
            (job.folder / name).write_bytes(b"half")
        with Job(out, identity={}) as job:
            job.start({"codec": "c"})
            assert everything(job.folder) == [
                "job.json",
                "lock",
                "part-000001.json",
                "part-000001.packets",
                "part-000001.state",
            ]

    def test_an_error_before_the_start_loses_nothing(self, out):
        """A mistyped option is refused by the sink before it starts the job."""
        folder = begun(out, parts=2).folder
        before = everything(folder)
        with Job(out, identity={"input": "other"}):
            pass
        assert everything(folder) == before
        assert continued(out).resumed_parts == 2

    def test_closing_twice(self, out):
        job = begun(out, parts=0)
        job.close()

    def test_missing_parent(self, tmp_path):
        with pytest.raises(MediaError, match="no does not exist: create it"):
            Job(tmp_path / "no" / "out.mp4", identity={})


class TestTakingOver:
    def test_parts(self, out):
        begun(out, parts=3, input="a")
        job = continued(out, input="a")
        assert job.started_over is None
        assert job.resumed_parts == 3
        assert [(part.frames, part.note) for part in job.parts] == [
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
    def test_behind_a_lost_state_nobody_can_go_on(self, out, damage):
        """Only the last part has its state: without it, the parts before are of no use either."""
        damage(begun(out, parts=3).folder)
        assert continued(out).resumed_parts == 0

    @pytest.mark.parametrize(
        "damage",
        [
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"),
            lambda path: path.unlink(),
        ],
        ids=["short", "changed", "missing"],
    )
    def test_damaged_part_is_made_again(self, tmp_path, clip, caplog, damage):
        """It and those behind it, to the same result."""
        options = {"lengths": [3, 3, 3, 3], "attach": False}
        write_parts(clip, tmp_path / "plain.mp4", **options)
        folder = write_parts(clip, tmp_path / "out.mp4", stop_after=9, **options).folder
        damage(folder / "part-000002.packets")
        with caplog.at_level(logging.WARNING):
            assert write_parts(clip, tmp_path / "out.mp4", **options).resumed_parts == 1
        assert "part 2 of the unfinished" in caplog.text
        assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()


class TestStartingOver:
    @pytest.mark.parametrize(
        ("new", "why"),
        [
            ({"input": "b", "model": "m"}, "the input was a and is b"),
            ({"input": "a", "model": "n"}, "the model was m and is n"),
            ({"input": "a"}, "the model was m and is not known"),
            ({"input": "a", "model": "m", "noise": "1"}, "the noise was not known and is 1"),
        ],
    )
    def test_another_identity(self, out, new, why):
        begun(out, parts=2, input="a", model="m")
        job = continued(out, **new)
        assert job.started_over == why
        assert job.parts == []
        assert not job.folder.exists()

    def test_of_the_sink(self, tmp_path, clip):
        """Its settings count as the caller's do."""
        write_parts(clip, tmp_path / "out.mp4", lengths=[6, 6], stop_after=6)
        job = write_parts(clip, tmp_path / "out.mp4", lengths=[6, 6], crf=30)
        assert job.started_over is not None
        assert job.started_over.startswith("the encoder setting was crf=18")
        assert len(media.stamps_of(tmp_path / "out.mp4")) == 12

    def test_nothing_was_there(self, out):
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
    def test_damaged_or_foreign_record(self, out, text, why):
        path = begun(out, parts=1).folder / "job.json"
        path.unlink() if text is None else path.write_text(text)
        job = continued(out)
        assert why in str(job.started_over)
        assert job.parts == []


class TestLock:
    def test_second_run_is_refused(self, out, tmp_path):
        with Job(out, identity={}) as job:
            job.start({})
            with pytest.raises(MediaError, match=r"another run is working on .*out\.mp4: wait"):
                Job(out, identity={})
            assert job.folder.exists()
        assert everything(tmp_path) == []

    def test_folder_removed_while_it_is_locked(self, out, monkeypatch):
        """By the end of another run: a lock in a folder that is gone would keep nobody out."""
        lock, calls = portalocker.lock, []

        def late(handle: int, flags: portalocker.LockFlags) -> None:
            if not calls:
                shutil.rmtree(out.with_name(".out.mp4.job"))
            calls.append(flags)
            lock(handle, flags)

        monkeypatch.setattr(portalocker, "lock", late)
        with Job(out, identity={}), pytest.raises(MediaError, match="another run"):
            Job(out, identity={})
        assert len(calls) == 3

    def test_other_outputs_are_free(self, out, tmp_path):
        with Job(out, identity={}), Job(tmp_path / "other.mp4", identity={}):
            pass


class TestPublishing:
    @pytest.mark.parametrize("name", ["out.mp4", "frames", "one.png"])
    @pytest.mark.parametrize("keep", [False, True])
    def test_keep(self, tmp_path, clip, name, keep):
        """What is kept is enough to publish again."""
        path, lengths = clip, [6, 6]
        if name == "one.png":
            path, lengths = tmp_path / "in.png", [1]
            write_image(path, image=media.gradient(0))
        out = tmp_path / name
        job = write_parts(path, out, lengths=lengths, keep=keep)
        assert out.exists()
        assert job.folder.exists() == keep
        if keep:
            with pytest.raises(MediaError, match=r"exists|is a folder"):
                write_parts(path, out, lengths=lengths)
            out.rename(tmp_path / "before")
            assert write_parts(path, out, lengths=lengths).resumed_parts == len(lengths)
            assert out.exists()
            assert not job.folder.exists()

    def test_folder_that_is_there(self, tmp_path):
        """An empty one is replaced in one step, another gets what it has not."""
        source, out = tmp_path / "in", tmp_path / "frames"
        source.mkdir()
        out.mkdir()
        write_image(source / "1.png", image=media.gradient(0))
        write_parts(source, out, lengths=[1])
        (out / "other.txt").write_text("mine")
        with Job(out, identity={}, overwrite=True) as job:
            job.start({})
            (job.folder / "new").mkdir()
            (job.folder / "new" / "2.png").write_text("new")
            job.publish(job.folder / "new")
        assert everything(tmp_path / "frames") == ["1.png", "2.png", "other.txt"]
        assert not job.folder.exists()

    def test_note_must_fit_into_json(self, out, tmp_path):
        with Job(out, identity={}) as job:
            job.start({})
            with pytest.raises(TypeError):
                job.add_part(frames=1, note={"a": object()}, media={}, files=[stored(job, b"1")])
        assert everything(tmp_path) == []

    def test_journal_names_the_identity(self, out):
        """For whoever looks into a kept folder."""
        job = begun(out, parts=1, input="a")
        data = json.loads((job.folder / "job.json").read_text())
        assert data["identity"] == {"input": "a", "codec": "c"}
