"""The rooms of the project and which of them may know which (read off the sources, not run)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FOLDERS = {
    "rbvsr_deploy": "rbvsr_deploy",
    "rbvsr_deploy.export": "export",
    "rbvsr_deploy.engines": "engines",
    "rbvsr_deploy.training": "training",
}

RUNTIME = (
    "batch",
    "before_after",
    "bundle",
    "compare",
    "comparison_page",
    "differences",
    "duration",
    "engine_sets",
    "errors",
    "files",
    "graph_check",
    "graph_sizes",
    "graphs",
    "job_identity",
    "manifest",
    "models",
    "onnx_fields",
    "onnx_reader",
    "pipeline",
    "pixels",
    "plan",
    "printable",
    "private_files",
    "progress",
    "propagation",
    "psnr",
    "refinement",
    "scenes",
    "spool",
    "stored_zip",
    "stream",
    "upscale_file",
    "upscale_frames",
    "upscaler",
    "video",
)
"""Modules of ``rbvsr_deploy`` that a machine without torch runs."""

BOTTOM = (
    "errors",
    "files",
    "printable",
    "private_files",
    "psnr",
    "graphs",
    "onnx_fields",
    "onnx_reader",
    "graph_sizes",
    "graph_check",
    "models",
    "engine_sets",
    "manifest",
    "stored_zip",
    "bundle",
    "model",
    "checkpoint",
)
"""Modules that know no room above them."""

ABOVE = ("commands", *(name for name in RUNTIME if name not in BOTTOM))
"""The runtime and the commands, which neither the engines nor the export know."""


def in_room(module: str, *rooms: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def imported(source: str) -> Iterator[str]:
    """Every module a source imports, inside functions and ``TYPE_CHECKING`` blocks too; a name
    imported from a package counts as a possible module of it. Relative ones begin with a dot.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def module_files() -> dict[str, Path]:
    """Installed name of every module of the project, and where its source lies."""
    files = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            files[".".join((package, *(p for p in parts if p != "__init__")))] = path
    return files


FILES = module_files()
IMPORTS = {name: set(imported(path.read_text())) for name, path in FILES.items()}


def of(*rooms: str) -> dict[str, set[str]]:
    """Imports of the modules in the rooms; fails if there are none, as a misspelt room would."""
    found = {name: imports for name, imports in IMPORTS.items() if in_room(name, *rooms)}
    assert found
    return found


def breaches(modules: dict[str, set[str]], *forbidden: str) -> list[str]:
    return sorted(
        f"{name} imports {target}"
        for name, targets in modules.items()
        for target in targets
        if in_room(target, *forbidden)
    )


def test_the_parser_sees_every_kind_of_import() -> None:
    """The tests below can fail: all spellings and places of an import are found."""
    source = """
import a.b as c, d
from e import f
from . import g
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import h
def function():
    try:
        from i.j import k
    except ImportError:
        import l
"""
    found = set(imported(source))
    assert {"a.b", "d", "e", "e.f", ".", "h", "i.j", "i.j.k", "l"} <= found
    assert breaches({"m": {"torch.nn"}}, "torch") == ["m imports torch.nn"]
    assert breaches({"m": {"torchvision"}}, "torch") == []


def test_every_room_is_seen() -> None:
    """The modules the rules speak of exist."""
    for name in (
        "checkpoint",
        "model",
        "commands.run",
        "engines.base",
        "export.export",
        "commands.train",
        "training.run",
    ):
        assert f"rbvsr_deploy.{name}" in FILES
    for name in RUNTIME:
        assert f"rbvsr_deploy.{name}" in FILES


def test_imports_are_absolute_and_by_the_installed_name() -> None:
    """No relative import, and no room under its bare name (which belongs to other projects)."""
    assert breaches(IMPORTS, "export", "engines", "training", "tests", "benchmarks") == []
    assert [f"{n}: {t}" for n, ts in IMPORTS.items() for t in ts if t.startswith(".")] == []


def test_every_import_of_the_project_exists() -> None:
    """What is imported from the project is a module of it or a name inside one."""
    ours = {t for targets in IMPORTS.values() for t in targets if in_room(t, "rbvsr_deploy")}
    assert [t for t in sorted(ours) if t not in FILES and t.rpartition(".")[0] not in FILES] == []


def test_nothing_outside_training_knows_training() -> None:
    """Training may use everything; nothing uses training but its own commands."""
    its_own = ("training", "commands.train", "commands.evaluate")
    rooms = [f"rbvsr_deploy.{name}" for name in its_own]
    others = {name: targets for name, targets in IMPORTS.items() if not in_room(name, *rooms)}
    assert breaches(others, "rbvsr_deploy.training") == []


def test_engines_know_shared_modules_and_the_graphs_only() -> None:
    """Of the export they know ``graphs``, the torch modules the reference engine runs; of the
    runtime above them nothing.
    """
    engines = of("rbvsr_deploy.engines")
    of_export = breaches(engines, "rbvsr_deploy.export")
    assert [b for b in of_export if " imports rbvsr_deploy.export.graphs" not in b] == []
    assert breaches(engines, *(f"rbvsr_deploy.{name}" for name in (*ABOVE, "training"))) == []


def test_export_knows_nothing_of_the_runtime() -> None:
    """The export uses the model, the bundle and engines to verify with, not video or commands; only
    its calibration sends footage through the runtime, and knows nothing of commands either.
    """
    modules = of("rbvsr_deploy.export")
    calibration = {"rbvsr_deploy.export.calibration": modules["rbvsr_deploy.export.calibration"]}
    rest = {name: targets for name, targets in modules.items() if name not in calibration}
    assert breaches(rest, *(f"rbvsr_deploy.{name}" for name in (*ABOVE, "training"))) == []
    above = [f"rbvsr_deploy.{name}" for name in ("commands", "training", "upscaler", "progress")]
    assert breaches(calibration, *above) == []


def test_shared_modules_are_at_the_bottom() -> None:
    """Errors, files, graphs, the bundle, the model and checkpoints know no room above them."""
    rooms = ("export", "engines", "training")
    modules = of(*(f"rbvsr_deploy.{name}" for name in BOTTOM))
    assert breaches(modules, *(f"rbvsr_deploy.{name}" for name in (*ABOVE, *rooms))) == []


def test_the_runtime_needs_no_torch() -> None:
    """What runs a video on a machine without torch imports neither torch, not even in a function,
    nor the modules that do.
    """
    runtime = of(*(f"rbvsr_deploy.{name}" for name in RUNTIME))
    forbidden = ("rbvsr_deploy.model", "rbvsr_deploy.checkpoint", "rbvsr_deploy.export")
    assert breaches(runtime, *forbidden, "torch", "onnx", "safetensors") == []


def test_only_the_edge_knows_click_and_rich() -> None:
    """The library neither parses nor draws: commands and progress.py do (training has its own)."""
    edge = ("rbvsr_deploy.commands", "rbvsr_deploy.progress", "rbvsr_deploy.training")
    library = {name: targets for name, targets in IMPORTS.items() if not in_room(name, *edge)}
    assert breaches(library, "click", "rich") == []


@pytest.mark.parametrize("room", ["export", "engines", "training"])
def test_a_room_refuses_its_bare_name(room: str) -> None:
    """From the root of a checkout, ``import export`` is an ImportError that names the right one."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {room}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: this folder is the package 'rbvsr_deploy.{room}'")
    assert "install the project" in last
