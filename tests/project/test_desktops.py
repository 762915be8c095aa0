"""Tests that everything works without what only POSIX systems have, as on Windows."""

from __future__ import annotations

import ast
import ctypes
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from rbvsr_deploy.commands.run import run
from rbvsr_deploy.engines import control_groups, memory
from rbvsr_deploy.files import open_folder
from rbvsr_deploy.training.data.cache import FrameCache
from rbvsr_deploy.training.data.footage import VideoFile
from rbvsr_deploy.video import Job
from rbvsr_deploy.video.encoding import encoder_settings
from rbvsr_deploy.video.images import write_image
from rbvsr_deploy.video.staging import job_folder
from rbvsr_deploy.video.staging.job_folder import is_stored_name
from tests.conftest import moving_clip, short_clip
from tests.project.test_layers import FILES, ROOT
from tests.support import media, windows_double
from tests.support.sinks import write_segments

# Text files must not depend on the encoding that Windows uses by default.
START = """
import warnings
from tests.support import windows_double
windows_double.install()
warnings.filterwarnings("error", category=EncodingWarning, module="rbvsr_deploy")
"""
RUN = "import sys; from rbvsr_deploy.commands.run import run; run(sys.argv[1:])"
PARTS = """
import sys
from pathlib import Path
from tests.support.sinks import write_segments
path, out, stop_after = sys.argv[1:]
job = write_segments(Path(path), Path(out), lengths=[4, 2], stop_after=int(stop_after) or None)
print(job.resumed_segments)
"""


def as_on_windows(
    code: str, *arguments: object, data: bytes = b"", start: str = START
) -> subprocess.CompletedProcess[bytes]:
    """Run a program in a process that behaves like one on Windows."""
    return subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", start + code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        input=data,
        capture_output=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def clip(sample: Path, tmp_path: Path) -> Path:
    return short_clip(sample, tmp_path / "Übersicht.mp4")


def upscale(*arguments: object, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the command with the model that the package includes."""
    done = as_on_windows(RUN, *arguments, "--device", "cpu", data=data)
    assert done.returncode == 0, done.stderr.decode("cp1252")
    assert b"cannot remove" not in done.stderr
    return done


def posix_imports(source: str) -> list[str]:
    """Return the modules of POSIX systems that a source imports outside of functions."""
    tree, inside = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside |= set(ast.walk(node))
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in inside:
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node not in inside:
            names.append(node.module or "")
    return [name for name in names if name in windows_double.MODULES]


@pytest.mark.slow
def test_no_module_of_posix_systems_is_imported_at_once() -> None:
    """Scripts are included. The check can fail, too."""
    assert posix_imports("import fcntl\ntry:\n    from pwd import x\nexcept ImportError: ...")
    assert not posix_imports("def function():\n    import fcntl")
    files = [*FILES.values(), *(ROOT / "benchmarks").glob("*.py")]
    assert {p.name: f for p in files if (f := posix_imports(p.read_text(encoding="utf-8")))} == {}


def test_the_double_refuses_what_windows_refuses(tmp_path: Path) -> None:
    """The tests below can fail."""
    done = as_on_windows(
        """
import os, select, signal, sys, tempfile

def refused(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except (OSError, NotImplementedError, ImportError, TypeError):
        return
    raise AssertionError((call, arguments))

os.chdir(sys.argv[1])
refused(__import__, "fcntl")
assert not any(hasattr(os, name) for name in ("preadv", "geteuid", "O_NOFOLLOW", "fchmod"))
assert not hasattr(signal, "SIGHUP")
os.mkdir("folder")
os.mkdir("other")
refused(os.open, "folder", os.O_RDONLY)
refused(os.stat, "folder", dir_fd=3)
refused(os.scandir, 3)
refused(select.select, [0], [], [], 0)
with open("folder/file", "wb") as file:
    file.write(b"data")
    refused(os.unlink, "folder/file")
    refused(os.replace, "folder/file", "new")
    refused(os.rename, "folder", "moved")
refused(os.replace, "folder", "other")
with open("folder/file", "rb") as file:
    refused(os.fsync, file.fileno())
os.replace("folder/file", "new")
os.unlink("new")
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr.decode("cp1252")


@pytest.mark.slow
def test_everything_can_be_imported() -> None:
    names = [name for name in FILES if name.count(".") or name == "rbvsr_deploy"]
    names.remove("rbvsr_deploy.triton.model")  # runs inside Triton, which has a module of its own
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    done = as_on_windows(code, *names)
    assert done.returncode == 0, done.stderr.decode("cp1252")
    assert len(names) > 150


@pytest.mark.slow
def test_a_clip_is_upscaled(clip: Path, tmp_path: Path) -> None:
    """The results are those on Linux, and no other file is left. What does not fit into memory goes
    through the disk.
    """
    before_after = tmp_path / "before_after.png"
    done = upscale(
        *(
            clip,
            "-o",
            tmp_path / "out.mp4",
            "--memory",
            "11MiB",
            "-v",
            "--before-after",
            before_after,
        )
    )
    window = re.search(rb"windows of (\d+) frames", done.stderr)
    assert window is not None
    assert int(window[1]) < 6
    upscale(clip, "-o", tmp_path / "images", "--max-scene", "4", "--json")
    for arguments in (("out.mp4",), ("images", "--max-scene", "4")):
        other = tmp_path / "posix" / arguments[0]
        other.parent.mkdir(exist_ok=True)
        command = [str(clip), "-o", str(other), *arguments[1:], "--device", "cpu"]
        assert CliRunner().invoke(run, command).exit_code == 0
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "posix" / "out.mp4").read_bytes()
    for file in (tmp_path / "posix" / "images").iterdir():
        assert (tmp_path / "images" / file.name).read_bytes() == file.read_bytes()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {clip.name, "out.mp4", before_after.name, "images", "posix"}


@pytest.mark.slow
def test_pipes() -> None:
    """y4m passes through standard input and output, neither of which can be waited for."""
    header = b"YUV4MPEG2 W32 H24 F25:1 Ip A1:1 C420jpeg\n"
    frames = b"".join(b"FRAME\n" + bytes([n]) * (32 * 24 * 3 // 2) for n in range(40, 43))
    done = upscale("-", "-o", "-", data=header + frames)
    first, _, rest = done.stdout.partition(b"\n")
    assert first.startswith(b"YUV4MPEG2 W128 H96 F25:1 ")
    assert len(rest) == 3 * (len(b"FRAME\n") + 128 * 96 * 3 // 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "images"])
def test_resuming(tmp_path: Path, name: str) -> None:
    """A stopped job is resumed, and publishes the same as on Linux. An empty output folder is
    replaced.
    """
    if name == "images":
        path = tmp_path / "in"
        for folder in (path, tmp_path / name):
            folder.mkdir()
        for number in range(6):
            write_image(path / f"{number}.png", image=media.gradient(number))
    else:
        path = media.make_video(tmp_path / "in.mp4", stamps=[1001 * n for n in range(6)])
    out, other = tmp_path / name, tmp_path / f"posix-{name}"
    for stop_after, resumed in ((5, b"0"), (0, b"1")):
        done = as_on_windows(PARTS, path, out, stop_after)
        assert done.returncode == 0, done.stderr.decode("cp1252")
        assert done.stdout.strip() == resumed
        assert out.with_name(f".{name}.job").exists() == bool(stop_after)
        assert b"cannot remove" not in done.stderr
    write_segments(path, other, lengths=[4, 2])
    assert {p.name for p in tmp_path.iterdir()} == {path.name, out.name, other.name}
    if out.is_dir():
        assert {p.name: p.read_bytes() for p in out.iterdir()} == {
            p.name: p.read_bytes() for p in other.iterdir()
        }
    else:
        assert media.stamps_of(out) == media.stamps_of(other)


def test_a_job_of_another_process_is_locked(tmp_path: Path) -> None:
    """The lock also keeps out a process without ``fcntl``."""
    path = media.make_video(tmp_path / "in.mp4")
    with Job(tmp_path / "out.mp4", identity={}):
        done = as_on_windows(PARTS, path, tmp_path / "out.mp4", 0)
    assert done.returncode == 1
    assert b"BusyError: another run is working on" in done.stderr


@pytest.mark.slow
def test_a_system_without_locks(tmp_path: Path) -> None:
    """Jobs work without a lock if portalocker cannot be imported."""
    path = media.make_video(tmp_path / "in.mp4")
    code = "import sys; sys.modules['fcntl'] = None\n"
    done = as_on_windows(PARTS, path, tmp_path / "out.mp4", 0, start=code)
    assert done.returncode == 0, done.stderr.decode("cp1252")
    assert (tmp_path / "out.mp4").exists()


def test_no_file_stays_open_after_an_error(tmp_path: Path) -> None:
    """Segments that nobody can resume are removed, even if joining them fails."""
    path = media.make_video(tmp_path / "in.mp4", stamps=[1001 * n for n in range(6)])
    code = """
import sys
from pathlib import Path
from rbvsr_deploy.video import Job, open_sink, open_source
from rbvsr_deploy.video.assembly import Assembly

def fail(self, time, *, name):
    raise OSError(28, "No space left on device")

Assembly._copy_until = fail
path, out = map(Path, sys.argv[1:])
with open_source(path) as source, Job(out, identity={}, resume=False) as job:
    size = {"width": source.width, "height": source.height}
    with open_sink(out, source=source, job=job, **size) as sink:
        for frame in source:
            sink.write(frame)
        sink.finish()
"""
    done = as_on_windows(code, path, tmp_path / "out.mp4")
    assert b"No space left on device" in done.stderr
    assert b"cannot remove" not in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["in.mp4"]


def test_records_name_no_other_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backslashes separate folders on Windows, and on other systems they do not."""
    assert is_stored_name("pictures/..\\x.png")
    monkeypatch.setattr(job_folder, "PurePath", PureWindowsPath)
    assert is_stored_name("pictures/x.png")
    assert is_stored_name("part-000001.packets")
    assert not is_stored_name("pictures/..\\x.png")
    assert not is_stored_name("pictures/..\\..\\x.png")


def test_a_junction_is_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows reports it as a folder, and any user can make one."""

    class Junction:
        st_mode, st_reparse_tag = stat.S_IFDIR | 0o777, 0xA0000003

    monkeypatch.delattr(os, "O_DIRECTORY")
    monkeypatch.setattr(os, "lstat", lambda path: Junction)
    with pytest.raises(NotADirectoryError):
        open_folder(tmp_path)


def test_windows_reports_memory_and_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are read through the Windows API where there is no ``/proc``."""

    class Kernel32:
        def GlobalMemoryStatusEx(self, status: ctypes.Array[ctypes.c_uint64]) -> bool:  # noqa: N802
            assert status[0] == ctypes.sizeof(status)
            status[1], status[2] = 16 * 2**30, 6 * 2**30
            return True

        def IsProcessorFeaturePresent(self, feature: int) -> bool:  # noqa: N802
            return feature == 41

    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=Kernel32()), raising=False)
    monkeypatch.setattr(memory, "Path", lambda path: tmp_path / "missing")
    monkeypatch.setattr(control_groups, "_ROOT", tmp_path)
    monkeypatch.setattr(sys, "platform", "win32")
    found = memory.free_host_memory(), encoder_settings._has_avx512()
    monkeypatch.undo()
    assert found == (6 * 2**30, True)


def test_closing_the_console_of_windows_stops_the_command() -> None:
    """It sends SIGBREAK, which no other system has."""
    code = """
import signal
signal.SIGBREAK = signal.SIGUSR1
from rbvsr_deploy.commands._process import exit_on_signals
with exit_on_signals():
    signal.raise_signal(signal.SIGBREAK)
"""
    done = as_on_windows(code, start="")
    assert done.returncode == 128 + signal.SIGUSR1, done.stderr


def test_a_cached_file_that_another_worker_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Windows does not replace a file that is in use: the finished one is used."""
    footage = VideoFile(media.make_video(tmp_path / "in.mp4"))
    cached = FrameCache(tmp_path / "cache", limit=2**20).admit(footage)
    replace = os.replace

    def in_use(source: Path, target: Path) -> None:
        replace(source, target)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", in_use)
    np.testing.assert_array_equal(list(cached.decode(0, 2)), list(footage.decode(0, 2)))
    assert not caplog.text


@pytest.mark.slow
def test_training_with_workers_that_are_not_forked(tmp_path: Path) -> None:
    """On Windows and macOS, processes that prepare clips start afresh."""
    photos = tmp_path / "photos-é"
    photos.mkdir()
    write_image(photos / "0.png", image=moving_clip(1, 96, 128)[0])
    settings: dict[str, object] = {"iterations": 1, "workers": 1, "data.length": 4, "data.crop": 16}
    settings |= {"flow.iterations": 1, "network.flow_levels": 1, "network.flow_channels": "[8]"}
    options = [option for item in settings.items() for option in ("--set", "{}={}".format(*item))]
    code = """
import multiprocessing, sys
multiprocessing.set_start_method("spawn")
from rbvsr_deploy.commands.train import train
train(sys.argv[1:])
"""
    done = as_on_windows(
        *(code, "tiny-stage1", *options, "--device", "cpu"),
        *("--data", photos, "--output", tmp_path / "run"),
    )
    assert done.returncode == 0, done.stderr.decode("cp1252")
    assert {"latest.pth", "model.safetensors"} <= {p.name for p in (tmp_path / "run").iterdir()}
