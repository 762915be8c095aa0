"""What an import costs: nothing heavy is loaded before it is needed, nothing optional at all."""

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
}

REPORT = (
    "import json, sys; print('\\n' + json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
)


def loaded_by(program: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running the program."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{REPORT}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_check_sees_what_is_loaded() -> None:
    """The tests below can fail: a program that imports NumPy is seen to."""
    assert "numpy" in loaded_by("import rbvsr_deploy.runtime.propagation")


def test_importing_the_package_is_light() -> None:
    """``import rbvsr_deploy`` loads none of the libraries it works with, nor click."""
    loaded = loaded_by("import rbvsr_deploy; assert rbvsr_deploy.__version__")
    assert "rbvsr_deploy" in loaded
    assert not loaded & (HEAVY | {"click"})


@pytest.mark.parametrize(
    "module",
    ["errors", "graphs", "files", "bundle", "models", "scenes", "engine_sets", "commands.run"],
)
def test_modules_without_arrays_are_light(module: str) -> None:
    """Modules that handle no arrays, or not at once, load none of the libraries that do."""
    assert not loaded_by(f"import rbvsr_deploy.{module}") & HEAVY


@pytest.mark.parametrize(
    "command", ["run", "export", "info", "build", "compare", "evaluate", "train"]
)
@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_is_light(command: str, argument: str) -> None:
    """``--help`` and ``--version`` of every command answer without loading any of them."""
    program = f"""
from rbvsr_deploy.commands.{command} import {command}
try:
    {command}([{argument!r}], prog_name="rbvsr-{command}")
except SystemExit as stop:
    assert not stop.code, stop.code
"""
    assert not loaded_by(program) & HEAVY


def test_help_says_what_the_command_is_for() -> None:
    """The light path is the real one: the text is the command's own."""
    done = subprocess.run(
        [sys.executable, "-c", "from rbvsr_deploy.commands.run import run; run(['--help'])"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Upscale a video" in done.stdout
    assert "--engine" in done.stdout


def test_opening_a_bundle_needs_no_array_library() -> None:
    """``rbvsr-info`` on something that is no bundle answers in one line, exit code 1, light."""
    program = """
from rbvsr_deploy.commands.info import info
try:
    info(["missing.plan"])
except SystemExit as stop:
    assert stop.code == 1, stop.code
"""
    assert not loaded_by(program) & HEAVY
