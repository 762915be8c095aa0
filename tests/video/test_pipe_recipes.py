"""Runs the pipelines of docs/pipes.md with the real programs, where they are installed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest

from tests.support.media import make_video
from tests.support.pages import ROOT, blocks
from tests.support.tensorrt_double import small_bundle

FRAMES = 6

RECIPES = [
    command
    for block in blocks(ROOT / "docs" / "pipes.md")
    for command in block.commands
    if "|" in command
]

GST_ELEMENTS = "gst-inspect-1.0 --exists y4mdec && gst-inspect-1.0 --exists avdec_h264"

# Players show nothing here.
MPV = 'exec {mpv} --no-config --vo=null --ao=null "$@"'
RUN = 'exec {python} -c "from rbvsr_deploy.commands.run import run; run()" "$@" {options}'


def programs_of(recipe: str) -> set[str]:
    """Return the programs of a pipeline besides ``rbvsr-run``."""
    return {shlex.split(part)[0] for part in recipe.split(" | ")} - {"rbvsr-run"}


def test_there_are_recipes_for_every_program() -> None:
    assert set().union(*map(programs_of, RECIPES)) == {"ffmpeg", "gst-launch-1.0", "mpv"}
    assert len(RECIPES) >= 7


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: re.sub(r"\W+", "-", recipe)[-40:])
def test_a_recipe_runs(recipe: str, tmp_path: Path) -> None:
    """Every program of the pipeline succeeds, and the file at its end has all frames, of the right
    size and pixel format.
    """
    for program in programs_of(recipe):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if "gst-launch-1.0" in recipe and subprocess.run(GST_ELEMENTS, shell=True).returncode:
        pytest.skip("GStreamer lacks y4mdec or a decoder for H.264")
    bundle = small_bundle(tmp_path / "small.plan")
    stamps = [1001 * number for number in range(FRAMES)]
    make_video(tmp_path / "video.mp4", stamps=stamps, size=(96, 54), audio="aac", audio_blocks=9)
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    lines = {
        "mpv": MPV.format(mpv=shutil.which("mpv")),
        "rbvsr-run": RUN.format(
            python=sys.executable, options=f"--engine {bundle.path} --device cpu"
        ),
    }
    for name, line in lines.items():
        (scripts / name).write_text(f"#!/bin/sh\n{line}\n")
        (scripts / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", recipe],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if "--live" in recipe:
        assert "Delay: 2 frames, 0." in done.stderr
    if recipe.endswith("mpv -"):
        assert "yuv420p" in done.stdout  # the video that it shows
        return
    words = shlex.split(recipe)[-1].removeprefix("location=")
    with av.open(str(tmp_path / words)) as made:
        stream = made.streams.video[0]
        frames = sum(1 for _ in made.decode(stream))
        assert frames == FRAMES
        scale = 2 if "--scale 2" in recipe else 4
        assert (stream.width, stream.height) == (96 * scale, 54 * scale)
        asked = re.search(r"--pix-fmt (\w+)", recipe)
        if asked is not None:
            assert stream.codec_context.pix_fmt == asked[1]
