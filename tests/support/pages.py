"""Finds the commands in the project's Markdown pages, and runs them."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from rbvsr_deploy.video.images import write_image
from tests.conftest import DATA, moving_clip, short_clip

ROOT = Path(__file__).parents[2]

PROJECT: dict[str, Any] = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]

SCRIPTS: dict[str, str] = PROJECT["scripts"]
"""The project's commands, and the functions that they call."""

PAGES = sorted(
    [
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "integrations").glob("*/README.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        ROOT / "benchmarks" / "README.md",
        ROOT / "tests" / "data" / "README.md",
        ROOT / "rbvsr_deploy" / "pretrained" / "MODEL_CARD.md",
    ]
)

_BLOCK = re.compile(
    r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    """Number of its first line."""
    language: str
    text: str
    not_run: str | None
    """Why nobody runs it, as the page says in a comment before it."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Its shell commands: lines of an ``sh`` block, those after ``$`` of a ``console`` one."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        lines = [line.split("  #")[0].strip() for line in joined.splitlines()]
        if self.language == "console":
            return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [line for line in lines if line] if self.language == "sh" else []

    @property
    def outputs(self) -> list[str]:
        """The lines of a ``console`` block that are not commands."""
        if self.language != "console":
            return []
        return [line for line in self.text.splitlines() if not line.startswith("$ ")]


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start(2)) + 1, found[2], found[3], found[1])
        for found in _BLOCK.finditer(text)
    ]


def make_workspace(folder: Path, *, checkpoint: Path, bundle: Path) -> Path:
    """Make the files that the pages take as given: ``video.mp4``, ``video.y4m``, ``image.png``,
    ``frames/``, ``inputs/``, ``results/``, ``truth/``, ``checkpoint.safetensors``, ``model.plan``,
    all small, and ``clip.mp4``, which is large enough to be cut up for training.
    """
    short_clip(DATA / "sample.mp4", folder / "video.mp4", frames=10)
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
        for image in moving_clip(16, 256, 256):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    shutil.copy(checkpoint, folder / "checkpoint.safetensors")
    shutil.copy(bundle, folder / "model.plan")
    for name in ("frames", "inputs", "results", "truth"):
        (folder / name).mkdir()
    with av.open(str(DATA / "sample.mp4")) as container:
        for number, frame in zip(range(3), container.decode(video=0), strict=False):
            large = frame.to_ndarray(format="rgb24")[:128, :224]
            small = cv2.resize(large, (56, 32), interpolation=cv2.INTER_AREA)
            result = cv2.resize(small, (224, 128), interpolation=cv2.INTER_CUBIC)
            for name, image in (("truth", large), ("inputs", small), ("results", result)):
                image = np.ascontiguousarray(image, np.uint8)
                write_image(folder / name / f"{number:04}.png", image=image)
            shutil.copy(folder / "inputs" / f"{number:04}.png", folder / "frames")
    shutil.copy(folder / "frames" / "0000.png", folder / "image.png")
    grey = b"FRAME\n" + bytes([128]) * (64 * 48 * 3 // 2)
    (folder / "video.y4m").write_bytes(b"YUV4MPEG2 W64 H48 F25:1 C420jpeg\n" + 2 * grey)
    return folder


def run_command(command: str, folder: Path) -> str:
    """Run a shell command in a folder, with this environment's programs; return standard output.

    Raises:
        AssertionError: it failed.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def call_command(command: str, folder: Path) -> None:
    """Run a command of this project in this process, which has its libraries loaded; commands with
    a pipe, and those that start processes, in a shell.

    Raises:
        AssertionError: it failed.
    """
    words = shlex.split(command)
    if words[0] not in SCRIPTS or {"<", ">", "|", "--workers"} & {*words}:
        run_command(command, folder)
        return
    module, function = SCRIPTS[words[0]].split(":")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.chdir(folder)
        warnings.simplefilter("ignore")  # as in a process of its own
        done = CliRunner().invoke(getattr(importlib.import_module(module), function), words[1:])
    assert done.exit_code == 0, f"{command}: {done.output} {done.exception!r}"


def run_python(*programs: str, folder: Path) -> str:
    """Run Python programs in a folder, one after the other, and none with the names of another;
    return standard output.

    Raises:
        AssertionError: one failed.
    """
    code = "import sys\nfor program in sys.argv[1:]: exec(program, {'__name__': '__main__'})"
    done = subprocess.run(
        [sys.executable, "-c", code, *programs], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
