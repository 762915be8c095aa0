"""Every command of the README is run: the two make targets by CI, all others here, in order, in one
folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest

from rbvsr_deploy.video.images import write_image
from tests.conftest import DATA, short_clip

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

BY_CI = ("make demo", "make test")
BY_THE_DEMO = ("pip install ",)
"""``make demo`` installs the package in this very way into an empty environment."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(blocks("sh")).splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small ``video.mp4``, ``video.y4m``, ``picture.png`` and ``frames/``."""
    folder = tmp_path_factory.mktemp("readme")
    sample = DATA / "sample.mp4"
    short_clip(sample, folder / "video.mp4", frames=10)
    (folder / "frames").mkdir()
    with av.open(str(sample)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            image = frame.to_ndarray(format="rgb24")[:48, :64]
            write_image(folder / "frames" / f"{i:04}.png", image=image)
            if i == 2:
                break
    shutil.copy(folder / "frames" / "0000.png", folder / "picture.png")
    grey = b"FRAME\n" + bytes([128]) * (64 * 48 * 3 // 2)
    (folder / "video.y4m").write_bytes(b"YUV4MPEG2 W64 H48 F25:1 C420jpeg\n" + 2 * grey)
    return folder


def test_the_two_make_commands_are_ci() -> None:
    """CI runs both commands of the page, and the demo installs as the page says."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in BY_CI:
        assert command in commands()
        assert re.search(rf"^{command}$", script, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert 'pip install --quiet --upgrade ".[cpu]"' in makefile


def test_every_other_command(folder: Path) -> None:
    """They all succeed, and write what the page says."""
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    ran = 0
    for command in commands():
        if command in BY_CI or command.startswith(BY_THE_DEMO):
            continue
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        ran += 1
    assert ran >= 8
    for name in (
        "video_x4.mp4",
        "larger.mkv",
        "picture_x4.png",
        "middle.png",
        "page.html",
        "video_x4.html",
        "excerpt.mp4",
        "frames.mp4",
        "piped.y4m",
        "from_pipe.mp4",
        "model.plan",
        "long.mp4",
        "cuts.txt",
        "rtx.plan",
        "with_rtx.mp4",
        "int8.plan",
        "worst.png",
        "scores/scores.json",
    ):
        assert (folder / name).stat().st_size > 0
    assert len(list((folder / "frames_x4").iterdir())) == 3
    assert {p.name for p in (folder / "all").iterdir()} == {"frames_x4", "picture_x4.png"}


def test_python_example(folder: Path) -> None:
    """The Python example runs as it stands, with the bundle made before."""
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "from_python.mp4").stat().st_size > 0


def test_links_and_files_exist() -> None:
    """What the page points at is there."""
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
    for name in re.findall(r"`(\w+(?:/\w+)*\.py)`", README):
        assert (ROOT / name).exists() or (ROOT / "rbvsr_deploy" / name).exists(), name
