"""Tests job folders prepared by an attacker: files outside them stay untouched."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rbvsr_deploy.commands.run import run
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video import Frame, Job, open_sink, open_source
from rbvsr_deploy.video.images import write_image
from rbvsr_deploy.video.staging import parts
from tests.conftest import short_clip
from tests.support import media
from tests.support.sinks import write_segments

LENGTHS = [3, 3]
OUTPUTS = ["out.mp4", "out.mkv", "frames"]

pytestmark = pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links need a POSIX system")


def snapshot(folder: Path) -> dict[str, object]:
    """Return names, kinds, modes and contents of everything in a folder."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        found[str(path.relative_to(folder))] = (status.st_mode, content)
    return found


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder with files that are named like those of a job folder, and others."""
    folder = tmp_path / "victim"
    (folder / "pictures" / "deep").mkdir(parents=True)
    for name in (
        "thesis.txt",
        "lock",
        "job.json",
        "joined.mp4",
        "joined.mkv",
        "part-000001.packets",
        "part-000001.json",
        "pictures/0.png",
        "pictures/00000000.png",
        "pictures/deep/x",
    ):
        (folder / name).write_text(f"{name} is precious")
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return media.make_video(tmp_path / "clip.mp4", stamps=[1001 * n for n in range(6)])


@pytest.fixture(params=OUTPUTS)
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "shared" / str(request.param)


@pytest.fixture
def place(out: Path) -> Path:
    """Path of the job folder of the output, in an empty folder."""
    out.parent.mkdir()
    return out.with_name(f".{out.name}.job")


def refused(clip: Path, out: Path, *, match: str) -> None:
    """Check that the job is refused in one sentence and the output's folder does not change."""
    before = snapshot(out.parent)
    with pytest.raises(MediaError, match=match) as caught:
        write_segments(clip, out, lengths=LENGTHS)
    assert "\n" not in str(caught.value)
    assert snapshot(out.parent) == before


def contents(path: Path) -> object:
    """Return the content of an output."""
    return snapshot(path) if path.is_dir() else path.read_bytes()


class TestTakenPaths:
    def test_link_to_a_folder(self, clip: Path, out: Path, place: Path, victim: Path) -> None:
        place.symlink_to(victim)
        before = snapshot(victim)
        refused(clip, out, match=r"\.job, .* is a link: remove it, or choose another output")
        assert snapshot(victim) == before

    def test_link_to_a_job_folder(self, clip: Path, out: Path, place: Path, tmp_path: Path) -> None:
        """Even this user's own job folder is refused: only its path says which output it is for."""
        other = tmp_path / "else" / out.name
        other.parent.mkdir()
        real = write_segments(clip, other, lengths=LENGTHS, stop_after=3).folder
        place.symlink_to(real)
        before = snapshot(real)
        refused(clip, out, match="is a link")
        assert snapshot(real) == before

    def test_relative_link(self, clip: Path, out: Path, place: Path, victim: Path) -> None:
        """A link that an archive could contain is refused."""
        place.symlink_to(Path("..") / "victim" / "pictures")
        before = snapshot(victim)
        refused(clip, out, match="is a link")
        assert snapshot(victim) == before

    def test_link_to_nothing(self, clip: Path, out: Path, place: Path, tmp_path: Path) -> None:
        place.symlink_to(tmp_path / "not there")
        refused(clip, out, match="is a link")
        assert not (tmp_path / "not there").exists()

    @pytest.mark.parametrize(
        "make", [lambda path: path.write_text("mine"), os.mkfifo], ids=["file", "fifo"]
    )
    def test_something_else(
        self, clip: Path, out: Path, place: Path, make: Callable[[Path], object]
    ) -> None:
        make(place)
        refused(clip, out, match="is not a folder")

    @pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
    def test_folder_that_others_can_write_to(
        self, clip: Path, out: Path, place: Path, mode: int
    ) -> None:
        place.mkdir()
        place.chmod(mode)
        refused(clip, out, match=r"can be written to by others: .* chmod go-w ")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_folder_of_another_user(self, clip: Path, out: Path, place: Path) -> None:
        place.mkdir()
        (place / "lock").touch()
        os.chown(place, 65534, 65534)
        refused(clip, out, match="belongs to another user")

    @pytest.mark.parametrize(
        "names",
        [
            ["thesis.txt"],
            ["lock", "thesis.txt"],
            ["job.json", "part-000001.packets", "src/main.py"],
            ["lock", "pictures/holidays/1.png"],
            ["lock", "joined.mp4/1.txt"],
            ["pictures/1.png"],
            ["part-000001.packets"],
            [".git/config"],
        ],
    )
    def test_folder_of_other_things(
        self, clip: Path, out: Path, place: Path, names: list[str]
    ) -> None:
        """Everything is kept, even names that a job folder can hold."""
        for name in names:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text("mine")
        refused(clip, out, match=r"holds '.*: move it away, or choose another output")


class TestContents:
    NAMES = (
        "joined.mp4",
        "joined.mkv",
        "job.json",
        "part-000001.json",
        "part-000001.packets",
        "part-000001.state",
        "pictures",
        "copy",
        "lock",
    )

    def filled(self, place: Path, make: Callable[[Path], object]) -> None:
        """Create a job folder in which every name is of the wrong kind."""
        place.mkdir(mode=0o755)
        for name in self.NAMES:
            make(place / name)

    def check_normal_run(self, clip: Path, out: Path, place: Path) -> None:
        write_segments(clip, out, lengths=LENGTHS)
        plain = out.with_name(f"plain-{out.name}")
        write_segments(clip, plain, lengths=LENGTHS)
        assert contents(out) == contents(plain)
        assert not place.exists()

    def test_links(self, clip: Path, out: Path, place: Path, victim: Path) -> None:
        """Links are removed and the output is written; link targets are untouched."""
        before = snapshot(victim)
        self.filled(place, lambda path: path.symlink_to(victim / path.name))
        self.check_normal_run(clip, out, place)
        assert snapshot(victim) == before

    def test_links_to_nothing(self, clip: Path, out: Path, place: Path, tmp_path: Path) -> None:
        """Opening a dangling link for writing would create a file elsewhere."""
        (tmp_path / "elsewhere").mkdir()
        self.filled(place, lambda path: path.symlink_to(tmp_path / "elsewhere" / path.name))
        self.check_normal_run(clip, out, place)
        assert snapshot(tmp_path / "elsewhere") == {}

    def test_fifos(self, clip: Path, out: Path, place: Path) -> None:
        """The run does not block on FIFOs."""
        self.filled(place, os.mkfifo)
        done = threading.Thread(target=self.check_normal_run, args=(clip, out, place), daemon=True)
        done.start()
        done.join(60)
        assert not done.is_alive()
        assert out.exists()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices")
    def test_devices(self, clip: Path, out: Path, place: Path) -> None:
        def device(path: Path) -> None:
            try:
                os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
            except PermissionError:
                pytest.skip("devices cannot be created here")

        self.filled(place, device)
        self.check_normal_run(clip, out, place)

    def test_hard_links(self, clip: Path, out: Path, place: Path, victim: Path) -> None:
        """Files are created, not opened for writing, so hard-linked files are untouched."""
        (victim / "copy").write_text("mine")
        (victim / "part-000001.state").write_text("mine")
        place.mkdir(mode=0o755)
        for name in self.NAMES:
            if (victim / name).is_file():
                os.link(victim / name, place / name)
        before = snapshot(victim)
        self.check_normal_run(clip, out, place)
        assert snapshot(victim) == before

    def test_link_for_the_images_of_a_finished_segment(self, clip: Path, tmp_path: Path) -> None:
        """Images in the link's target are not taken for the segment's images."""
        out = tmp_path / "frames"
        place = write_segments(clip, out, lengths=LENGTHS, stop_after=3).folder
        (place / "pictures").rename(tmp_path / "moved")
        (place / "pictures").symlink_to(tmp_path / "moved")
        before = snapshot(tmp_path / "moved")
        assert write_segments(clip, out, lengths=LENGTHS).resumed_segments == 0
        assert len(list(out.iterdir())) == 6
        assert not out.is_symlink()
        assert snapshot(tmp_path / "moved") == before

    @pytest.mark.parametrize(
        "name", ["../victim.txt", "/etc/hostname", "pictures/../../victim.txt", "job.json", "lock"]
    )
    @pytest.mark.parametrize("key", ["files", "attachment"])
    def test_record_that_names_other_files(
        self, clip: Path, tmp_path: Path, name: str, key: str
    ) -> None:
        """The segment counts as damaged, and the file is neither read nor removed."""
        out = tmp_path / "out.mp4"
        place = write_segments(clip, out, lengths=LENGTHS, stop_after=3).folder
        (tmp_path / "victim.txt").write_text("precious")
        record = json.loads((place / "part-000001.json").read_text())
        path = place / name
        size = path.stat().st_size if path.is_file() else 0
        file = {"name": name, "size": size, "sha256": None}
        del record[parts._SEAL]
        record[key] = [file] if key == "files" else file
        (place / "part-000001.json").write_text(json.dumps(record))
        assert write_segments(clip, out, lengths=LENGTHS).resumed_segments == 0
        assert (tmp_path / "victim.txt").read_text() == "precious"
        assert media.stamps_of(out) == media.stamps_of(clip)


class TestReplacedDuringTheRun:
    @pytest.mark.parametrize("when", [0, 1, 3, 4, 6])
    def test_by_a_link(self, clip: Path, out: Path, place: Path, victim: Path, when: int) -> None:
        """The folder is replaced at the start, within or between segments, or at the end."""
        before = snapshot(victim)
        with (
            open_source(clip) as source,
            Job(out, identity={}) as job,
            open_sink(out, source=source, width=64, height=48, job=job) as sink,
        ):
            replaced = False

            def work() -> None:
                nonlocal replaced
                for number, frame in enumerate([*source, None]):
                    if number == when:
                        place.rename(place.with_name("moved"))
                        place.symlink_to(victim)
                        replaced = True
                    if frame is not None:
                        sink.write(Frame(frame.image, frame.pts, frame.duration))
                    if number == 2:
                        sink.end_segment({}, attachment=b"state")
                sink.finish()

            with pytest.raises(MediaError, match="was removed or replaced") as caught:
                work()
            assert replaced
            assert "\n" not in str(caught.value)
        assert snapshot(victim) == before
        assert place.is_symlink()
        assert not out.exists()

    def test_by_another_folder(self, clip: Path, out: Path, place: Path, victim: Path) -> None:
        """Even an empty foreign folder is not removed."""
        with (
            open_source(clip) as source,
            Job(out, identity={}) as job,
            open_sink(out, source=source, width=64, height=48, job=job),
        ):
            place.rename(place.with_name("moved"))
            place.mkdir()
        assert place.is_dir()


class TestModes:
    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
    def test_private_until_it_is_published(
        self, clip: Path, out: Path, place: Path, umask: int
    ) -> None:
        """The job folder and its records are private; the output has the usual mode."""
        before = os.umask(umask)
        try:
            write_segments(clip, out, lengths=LENGTHS, stop_after=3)
            modes = {path.name: path.stat().st_mode & 0o777 for path in place.iterdir()}
            assert place.stat().st_mode & 0o777 == 0o700
            assert {mode for name, mode in modes.items() if name != "pictures"} == {0o600}
            write_segments(clip, out, lengths=LENGTHS)
        finally:
            os.umask(before)
        files = list(out.iterdir()) if out.is_dir() else [out]
        assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~umask}
        if out.is_dir():
            assert out.stat().st_mode & 0o777 == 0o777 & ~umask

    def test_folder_of_an_earlier_version(self, clip: Path, out: Path, place: Path) -> None:
        """A folder readable by all is resumed, with the same result."""
        plain = out.with_name(f"plain-{out.name}")
        write_segments(clip, plain, lengths=LENGTHS)
        write_segments(clip, out, lengths=LENGTHS, stop_after=3)
        as_an_earlier_version_left_it(place)
        assert write_segments(clip, out, lengths=LENGTHS).resumed_segments == 1
        assert contents(out) == contents(plain)

    def test_file_system_that_has_one_mode_for_all(
        self, clip: Path, out: Path, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A folder that cannot be made private, as on memory cards, is still used."""

        def open_to_all(made: Callable[..., None]) -> Callable[..., None]:
            def make(path: str | Path, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
                made(path, dir_fd=dir_fd)
                os.chmod(path, 0o777, dir_fd=dir_fd)

            return make

        monkeypatch.setattr(os, "mkdir", open_to_all(os.mkdir))
        monkeypatch.setattr(os, "fchmod", lambda handle, mode: None)
        write_segments(clip, out, lengths=LENGTHS, stop_after=3)
        assert write_segments(clip, out, lengths=LENGTHS).resumed_segments == 1
        assert not place.exists()
        assert {path.name for path in out.parent.iterdir()} == {out.name}


def as_an_earlier_version_left_it(folder: Path) -> None:
    """Give a job folder the modes and records of versions before private folders and checksums."""
    for path in folder.glob("part-*.json"):
        record = json.loads(path.read_text())
        assert set(record) == {"frames", "note", "media", "files", "attachment", parts._SEAL}
        del record[parts._SEAL]
        path.write_text(json.dumps(record, indent=1))
    folder.chmod(0o755)
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o644)


@pytest.mark.slow
class TestFaults:
    """Tests failing system calls, as occur on network file systems."""

    @pytest.mark.parametrize("name", ["scandir", "open", "stat", "lstat"])
    @pytest.mark.parametrize("output", ["out.mp4", "frames"])
    def test_one_sentence_and_the_same_result(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, output: str
    ) -> None:
        """Each call of an interrupted run and the next one fails in turn."""
        clip = media.make_video(tmp_path / "three.mp4", stamps=[0, 1001, 2002], size=(16, 16))
        plain = tmp_path / "plain"
        plain.mkdir()
        write_segments(clip, plain / output, lengths=[1, 2])
        real = getattr(os, name)
        for number in itertools.count():
            place = tmp_path / f"{number}"
            place.mkdir()
            calls = _Failing(real, number=number, below=place)
            monkeypatch.setattr(os, name, calls)
            for stop_after in (2, None):  # in the middle of the second segment
                with contextlib.suppress(MediaError):
                    write_segments(clip, place / output, lengths=[1, 2], stop_after=stop_after)
            monkeypatch.setattr(os, name, real)
            if not (place / output).exists():
                write_segments(clip, place / output, lengths=[1, 2])
            found = snapshot(place)
            assert {key: found.get(key) for key in snapshot(plain)} == snapshot(plain)
            if not calls.failed:
                break
        assert number > 0


class _Failing:
    """Wraps a system call so that its n-th call within a folder fails."""

    def __init__(self, call: Callable[..., Any], *, number: int, below: Path) -> None:
        self.failed = False
        self._call = call
        self._left = number
        self._below = str(below)

    def __call__(self, path: Any, *arguments: Any, **options: Any) -> Any:
        # Paths given as, or relative to, a descriptor are in the job folder.
        relative = isinstance(path, int) or {"dir_fd", "src_dir_fd"} & set(options)
        if relative or self._below in os.fspath(path):
            self._left -= 1
            if self._left == -1:
                self.failed = True
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return self._call(path, *arguments, **options)


class TestCommand:
    """The command exits with code 1 and a one-line error."""

    @pytest.fixture
    def real_clip(self, sample: Path, tmp_path: Path) -> Path:
        folder = tmp_path / "clone"
        folder.mkdir()
        return short_clip(sample, folder / "clip.mp4", frames=2)

    def invoke(self, *arguments: object) -> Result:
        return CliRunner().invoke(run, [*map(str, arguments), "--device", "cpu"])

    def assert_refused(self, result: Result, *words: str) -> None:
        assert result.exit_code == 1, result.output
        errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1
        assert "Traceback" not in result.output
        for word in words:
            assert word in errors[0]

    def test_clone_with_a_link(self, real_clip: Path, victim: Path) -> None:
        """With default options, the link's target is not emptied."""
        place = real_clip.with_name(".clip_x4.mp4.job")
        place.symlink_to("../victim")
        before = snapshot(victim.parent)
        self.assert_refused(self.invoke(real_clip), str(place), "is a link")
        assert snapshot(victim.parent) == before

    def test_clone_with_a_folder(self, real_clip: Path, victim: Path) -> None:
        place = real_clip.with_name(".clip_x4.mp4.job")
        victim.rename(place)
        before = snapshot(real_clip.parent)
        self.assert_refused(self.invoke(real_clip), str(place), "move it away")
        assert snapshot(real_clip.parent) == before

    def test_clone_with_links_in_a_folder(self, real_clip: Path, victim: Path) -> None:
        place = real_clip.with_name(".clip_x4.mp4.job")
        place.mkdir(mode=0o755)
        (place / "lock").touch()
        (place / "joined.mp4").symlink_to("../../victim/thesis.txt")
        before = snapshot(victim)
        result = self.invoke(real_clip)
        assert result.exit_code == 0, result.output
        assert snapshot(victim) == before
        names = {path.name for path in real_clip.parent.iterdir()}
        assert names == {"clip.mp4", "clip_x4.mp4"}

    @pytest.mark.slow
    def test_image_and_several(self, real_clip: Path, victim: Path, tmp_path: Path) -> None:
        """A refused input does not stop the others."""
        image = real_clip.with_name("one.png")
        write_image(image, image=media.gradient(0))
        real_clip.with_name(".one_x4.png.job").symlink_to(victim)
        before = snapshot(victim)
        result = self.invoke(image, real_clip)
        assert result.exit_code == 1
        assert "Failed: " in result.stderr
        assert "1 of 2 inputs failed" in result.stdout
        assert snapshot(victim) == before
        assert real_clip.with_name("clip_x4.mp4").exists()
        assert not image.with_name("one_x4.png").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
def test_planted_by_another_user(tmp_path: Path, victim: Path) -> None:
    """A link planted by another user in a shared folder is refused."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    clip = media.make_video(tmp_path / "clip.mp4")
    plant = "import os, sys; os.setuid(65534); os.symlink(sys.argv[1], sys.argv[2])"
    place = shared / ".o.mp4.job"
    victim.chmod(0o700)
    planted = subprocess.run(
        [sys.executable, "-c", plant, str(victim), ".o.mp4.job"], cwd=shared, check=False
    )
    if planted.returncode:
        pytest.skip("another user cannot get here")
    before = snapshot(victim)
    with pytest.raises(MediaError, match="is a link"):
        write_segments(clip, shared / "o.mp4", lengths=[12])
    assert snapshot(victim) == before
    assert place.is_symlink()
