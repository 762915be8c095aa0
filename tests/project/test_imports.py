"""Tests that imports stay light: no heavy library is loaded before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "safetensors",
    "tensorrt",
    "tensorrt_rtx",
    "av",
    "cv2",
    "scenedetect",
    "rich",
    "numpy",
    "ray",
    "gradio",
    "starlette",
    "uvicorn",
}

REPORT = (
    "import json, sys; print('\\n' + json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
)


def loaded_by(program: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after a program."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{REPORT}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_check_finds_loaded_modules() -> None:
    """The tests below can fail: NumPy is found in a program that imports it."""
    assert "numpy" in loaded_by("import rbvsr_deploy.runtime.propagation")


def test_importing_the_package_is_light() -> None:
    """``import rbvsr_deploy`` loads none of the heavy libraries, nor click."""
    loaded = loaded_by("import rbvsr_deploy; assert rbvsr_deploy.__version__")
    assert "rbvsr_deploy" in loaded
    assert not loaded & (HEAVY | {"click"})


def test_importing_the_errors_is_light() -> None:
    """A program that only catches errors, or passes the package on, does not load them either."""
    loaded = loaded_by("import rbvsr_deploy; rbvsr_deploy.MediaError; dir(rbvsr_deploy)")
    assert not loaded & (HEAVY | {"click"})


@pytest.mark.parametrize(
    "module",
    [
        "errors",
        "graphs",
        "files",
        "bundle",
        "pretrained",
        "runtime.scenes",
        "bundle.engine_sets",
        "closing",
        "commands.run",
    ],
)
def test_modules_without_arrays_are_light(module: str) -> None:
    """Modules that do not handle arrays on import load none of the heavy libraries."""
    assert not loaded_by(f"import rbvsr_deploy.{module}") & HEAVY


@pytest.mark.parametrize(
    "command",
    [
        *("run", "export", "info", "build", "compare", "bench", "evaluate", "train"),
        *("degradations", "rbvsr", "web"),
    ],
)
@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_is_light(command: str, argument: str) -> None:
    """``--help`` and ``--version`` of every command load none of the heavy libraries."""
    program = f"""
from rbvsr_deploy.commands.{command} import {command}
try:
    {command}([{argument!r}], prog_name="rbvsr-{command}")
except SystemExit as stop:
    assert not stop.code, stop.code
"""
    assert not loaded_by(program) & HEAVY


def test_help_describes_the_command() -> None:
    """The light path shows the real help."""
    done = subprocess.run(
        [sys.executable, "-c", "from rbvsr_deploy.commands.run import run; run(['--help'])"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Upscale a video" in done.stdout
    assert "--engine" in done.stdout


def test_ray_is_loaded_for_a_cluster_only() -> None:
    """Workers on this machine do without Ray, whether it is installed or not."""
    program = "import rbvsr_deploy.cluster.film, rbvsr_deploy.cluster.ray_workers"
    assert "ray" not in loaded_by(program)


def test_opening_a_bundle_needs_no_array_library() -> None:
    """``rbvsr-info`` refuses a missing bundle without loading a heavy library."""
    program = """
from rbvsr_deploy.commands.info import info
try:
    info(["missing.plan"])
except SystemExit as stop:
    assert stop.code == 1, stop.code
"""
    assert not loaded_by(program) & HEAVY
