"""Tests videos whose other streams, chapters, tags and attachments mean harm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import pytest

from tests.support import media
from tests.support.sinks import copy_video
from tests.support.streams import Text, texts, write

SEGMENT, CLUSTER = bytes.fromhex("18538067"), bytes.fromhex("1F43B675")


def through(path: Path, out: Path) -> list[str]:
    """Copy a video, and return what was dropped."""
    return [f"{change.what}: {change.reason}" for change in copy_video(path, out).dropped]


def element(name: str, content: bytes) -> bytes:
    """Return an element of Matroska."""
    return bytes.fromhex(name) + (1 << 56 | len(content)).to_bytes(8, "big") + content


def number(name: str, value: int) -> bytes:
    return element(name, value.to_bytes(8, "big"))


def with_elements(path: Path, extra: bytes) -> Path:
    """Write a Matroska file with further elements before its frames."""
    data = media.make_video(path, codec="ffv1", stamps=[0, 1001, 2002]).read_bytes()
    size, cluster = data.index(SEGMENT) + 4, data.index(CLUSTER)
    longer = int.from_bytes(data[size + 1 : size + 8], "big") + len(extra)
    path.write_bytes(
        data[: size + 1]
        + longer.to_bytes(7, "big")
        + data[size + 8 : cluster]
        + extra
        + data[cluster:]
    )
    return path


def test_texts_are_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Texts that are too long, and more lines than can be seen at once, are left out and counted,
    as the time of converting them grows with the square.
    """
    crowd = tuple((100, 900, f"line {number}") for number in range(80))
    lines = ((0, 100, "before"), *crowd, (1000, 100, "x" * 40_000), (1200, 100, "after"))
    path = write(tmp_path / "in.mkv", Text("subrip", lines))
    through(path, tmp_path / "out.mp4")
    shown = texts(tmp_path / "out.mp4")
    assert [text for _, _, text in shown if "line" not in text] == ["before", "after"]
    assert [text.count("line") for _, _, text in shown if "line" in text] == [50]
    assert "texts left out: 31 too long, or too many at once" in caplog.text


def test_chapters_are_bounded(tmp_path: Path) -> None:
    atoms = b"".join(
        element(
            "B6", number("73C4", n + 1) + number("91", n * 10**6) + number("92", (n + 1) * 10**6)
        )
        for n in range(10_001)
    )
    path = with_elements(tmp_path / "in.mkv", element("1043A770", element("45B9", atoms)))
    dropped = through(path, tmp_path / "out.mkv")
    assert dropped == ["chapters: there are more than 10000"]
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert container.chapters() == []


@pytest.mark.parametrize("name", ["../../evil.txt", "/etc/evil.ttf", "..\\evil.exe", "a\0b", ""])
def test_attachments_are_not_written_as_files(name: str, tmp_path: Path) -> None:
    attached = (
        element("466E", name.encode())
        + element("4660", b"application/x-truetype-font")
        + number("46AE", 7)
        + element("465C", b"payload")
    )
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    path = with_elements(folder / "in.mkv", element("1941A469", element("61A7", attached)))
    through(path, folder / "out.mkv")
    found = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert found == {"in/here/in.mkv", "in/here/out.mkv"}


@pytest.mark.slow
def test_tags_do_not_keep_the_program_busy(tmp_path: Path) -> None:
    """FFmpeg's time to read many tags is that of hours: the file is refused, and the process ends
    although a thread is still reading it.
    """
    tags = b"".join(
        element("7373", element("67C8", element("45A3", b"T%d" % n) + element("4487", b"x")))
        for n in range(5000)
    )
    path = with_elements(tmp_path / "in.mkv", element("1254C367", tags))
    program = (
        "import sys; from pathlib import Path; from rbvsr_deploy.video import open_source, pyav\n"
        "pyav._LONGEST_OPENING = 0.5; open_source(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "MediaError" in done.stderr.splitlines()[-1]
    assert "opening it takes more than 0.5 seconds" in done.stderr.splitlines()[-1]
