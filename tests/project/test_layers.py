"""Tests which folders import which, by parsing the sources without running them."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FOLDERS = {
    "rbvsr_deploy": "rbvsr_deploy",
    "rbvsr_deploy.export": "export",
    "rbvsr_deploy.engines": "engines",
    "rbvsr_deploy.training": "training",
}
"""Folder in the checkout by installed package name."""

LAYERS = (
    "rbvsr_deploy",  # the modules directly in the folder: what every stage shares
    "rbvsr_deploy.bundle",
    "rbvsr_deploy.pretrained",
    "rbvsr_deploy.engines",
    "rbvsr_deploy.video",
    "rbvsr_deploy.runtime",
    "rbvsr_deploy.jobs",
    "rbvsr_deploy.cluster",
    "rbvsr_deploy.parity",
    "rbvsr_deploy.export",
    "rbvsr_deploy.upscaler",  # the Python API, exported by the package itself
    "rbvsr_deploy.triton",
    "rbvsr_deploy.bench",
    "rbvsr_deploy.training.degradations",
    "rbvsr_deploy.training.data",
    "rbvsr_deploy.training.evaluation",
    "rbvsr_deploy.training",
    "rbvsr_deploy.web",
    "rbvsr_deploy.commands",
)
"""Layers from bottom to top: a module imports from its own layer and lower ones only."""

NEEDS_TORCH = (
    *("model", "checkpoint", "checkpoint_file", "graph_modules"),
    *("export", "engines.pytorch", "training"),
)
"""Modules that require torch."""

ALWAYS_WORKS = (
    "video",
    "runtime",
    "jobs",
    "cluster",
    "parity",
    "pretrained",
    "upscaler",
    "bundle",
    "graphs",
    "triton",
)
"""Modules that run without torch."""


def imported(source: str) -> Iterator[str]:
    """Yield all modules that a source imports, also in functions and ``TYPE_CHECKING`` blocks.

    A name imported from a package counts as a possible module of it; relative imports begin with a
    dot.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def module_files() -> dict[str, Path]:
    """Return the file of every module of the project, by installed name."""
    files = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            files[".".join((package, *(p for p in parts if p != "__init__")))] = path
    return files


def resolve(target: str) -> str:
    """Return the module of the project that an import refers to, or else the target itself."""
    name = target
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or target


FILES = module_files()
RAW = {name: set(imported(path.read_text())) for name, path in FILES.items()}
IMPORTS = {name: {resolve(target) for target in targets} for name, targets in RAW.items()}


def is_in(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def layer(module: str) -> int:
    """Return a module's index in LAYERS; the package's ``__init__`` belongs to the API."""
    if module == "rbvsr_deploy":
        return LAYERS.index("rbvsr_deploy.upscaler")
    return LAYERS.index(max((name for name in LAYERS if is_in(module, name)), key=len))


def violations(modules: dict[str, set[str]], *forbidden: str) -> list[str]:
    return sorted(
        f"{name} imports {target}"
        for name, targets in modules.items()
        for target in targets
        if is_in(target, *forbidden)
    )


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """Return one cycle of a graph, or an empty list."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def imports_within(package: str) -> dict[str, set[str]]:
    """Return the imports between the modules and sub-packages directly in a package."""

    def member(module: str) -> str:
        return ".".join(module.split(".")[: package.count(".") + 2])

    edges: dict[str, set[str]] = {}
    for name, targets in IMPORTS.items():
        if is_in(name, package) and name != package:
            inside = {member(t) for t in targets if is_in(t, package) and t != package}
            edges.setdefault(member(name), set()).update(inside - {member(name)})
    return edges


def test_the_parser_finds_every_kind_of_import() -> None:
    """All spellings and places of an import are found, so that the tests below can fail."""
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
    assert {"a.b", "d", "e.f", "..g", "h", "i.j.k", "l"} <= set(imported(source))
    assert violations({"m": {"torch.nn"}}, "torch") == ["m imports torch.nn"]
    assert violations({"m": {"torchvision"}}, "torch") == []
    assert cycle({"a": {"b"}, "b": {"a"}})
    assert not cycle({"a": {"b"}, "b": set()})


def test_every_layer_has_modules() -> None:
    """Every layer is spelt correctly: a misspelt one would allow everything."""
    assert {layer(name) for name in FILES} == set(range(len(LAYERS)))


def test_imports_are_absolute_and_by_the_installed_name() -> None:
    """Imports are neither relative nor by bare names, which belong to other projects."""
    assert violations(RAW, "export", "engines", "training", "tests", "benchmarks") == []
    assert [f"{n}: {t}" for n, ts in RAW.items() for t in ts if t.startswith(".")] == []


def test_every_import_of_the_project_exists() -> None:
    """Every import from the project is one of its modules or a name in one."""
    ours = {t for targets in RAW.values() for t in targets if is_in(t, "rbvsr_deploy")}
    assert [t for t in sorted(ours) if t not in FILES and t.rpartition(".")[0] not in FILES] == []


def test_no_module_imports_from_a_layer_above() -> None:
    assert [
        f"{name} imports {target}"
        for name, targets in IMPORTS.items()
        for target in targets
        if is_in(target, "rbvsr_deploy") and layer(target) > layer(name)
    ] == []


def test_no_cycle_of_modules() -> None:
    assert cycle(IMPORTS) == []


@pytest.mark.parametrize(
    "package", sorted({name.rpartition(".")[0] for name in FILES if "." in name})
)
def test_no_cycle_in_a_folder(package: str) -> None:
    """Neither modules nor sub-folders of a folder import each other in a cycle."""
    assert cycle(imports_within(package)) == []


def test_no_folder_is_crowded() -> None:
    """A folder holds at most 26 modules, the package's own folder 16."""
    counts: dict[Path, int] = {}
    for path in FILES.values():
        counts[path.parent] = counts.get(path.parent, 0) + 1
    assert [f"{folder}: {n}" for folder, n in counts.items() if n > 26] == []
    assert counts[ROOT / "rbvsr_deploy"] <= 16


def test_running_needs_no_torch() -> None:
    """Modules that run without torch import neither torch, not even in functions, nor modules that
    require it.
    """
    works = [f"rbvsr_deploy.{name}" for name in ALWAYS_WORKS]
    modules = {name: targets for name, targets in IMPORTS.items() if is_in(name, *works)}
    assert len(modules) > 50
    forbidden = [f"rbvsr_deploy.{name}" for name in NEEDS_TORCH]
    assert violations(modules, *forbidden, "torch", "onnx", "safetensors") == []


def test_only_commands_import_click_and_rich() -> None:
    """The library neither parses command lines nor draws."""
    library = {n: ts for n, ts in IMPORTS.items() if not is_in(n, "rbvsr_deploy.commands")}
    assert violations(library, "click", "rich") == []


@pytest.mark.parametrize("package", ["export", "engines", "training"])
def test_a_package_refuses_its_bare_name(package: str) -> None:
    """From the root of a checkout, ``import export`` is an ImportError with the right name."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {package}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: this folder is the package 'rbvsr_deploy.{package}'")
    assert "install the project" in last
