"""Tests the wheel: one top-level name, every module in its mapped place, and nothing else."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

FOLDERS = {
    "rbvsr_deploy": "rbvsr_deploy",
    "export": "rbvsr_deploy/export",
    "engines": "rbvsr_deploy/engines",
    "training": "rbvsr_deploy/training",
}
"""Folder of the checkout -> its place in the wheel."""

NOT_COPIED = shutil.ignore_patterns(
    ".*", "build", "dist", "*.egg-info", "__pycache__", "demo", "venv", "shared", "model.plan"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """Build the wheel from a copy of the checkout, without network."""
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "checkout", ignore=NOT_COPIED)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)],
        cwd=folder / "checkout",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    assert built.name.startswith("rbvsr_deploy-")
    assert built.name.endswith("-py3-none-any.whl")
    return zipfile.Path(built)


def names(wheel: zipfile.Path) -> set[str]:
    return {name for name in wheel.root.namelist() if not name.endswith("/")}


def dist_info(wheel: zipfile.Path) -> zipfile.Path:
    (found,) = (entry for entry in wheel.iterdir() if entry.name.endswith(".dist-info"))
    return found


@pytest.mark.slow
def test_the_only_top_level_name_is_the_projects(wheel: zipfile.Path) -> None:
    """A wheel with a top-level ``training`` or ``export`` would overwrite other people's files."""
    top = {name.split("/")[0] for name in names(wheel)}
    assert top == {"rbvsr_deploy", dist_info(wheel).name}
    assert (dist_info(wheel) / "top_level.txt").read_text().split() == ["rbvsr_deploy"]


@pytest.mark.slow
def test_every_module_is_in_its_place_and_nothing_else(wheel: zipfile.Path) -> None:
    """It has exactly the Python files of the four folders: no tests, no benchmarks."""
    expected = {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    assert "rbvsr_deploy/export/onnx_export.py" in expected
    assert {name for name in names(wheel) if name.endswith(".py")} == expected


def test_data_files_are_included(wheel: zipfile.Path) -> None:
    """The type marker, the page templates, the training recipes and all models, weights and model
    cards of the checkout are included, byte for byte.
    """
    models = ROOT / "rbvsr_deploy" / "pretrained"
    data = [
        ROOT / "rbvsr_deploy" / name
        for name in (
            "py.typed",
            "jobs/page.html",
            "jobs/contact_sheet.html",
            "bench/result.schema.json",
        )
    ]
    data += [path for kind in ("*.plan", "*.safetensors", "*.md") for path in models.glob(kind)]
    packed = {path.relative_to(ROOT).as_posix(): path for path in data}
    web = ("header.html", "page.css", "page.js")
    packed |= {f"rbvsr_deploy/web/{n}": ROOT / "rbvsr_deploy" / "web" / n for n in web}
    presets = (ROOT / "training" / "presets").glob("*.toml")
    packed |= {f"rbvsr_deploy/training/presets/{path.name}": path for path in presets}
    for name, path in packed.items():
        assert name in names(wheel)
        assert wheel.root.read(name) == path.read_bytes()
    others = {n for n in names(wheel) if n.startswith("rbvsr_deploy/") and not n.endswith(".py")}
    assert others == set(packed)


def test_commands_are_included(wheel: zipfile.Path) -> None:
    """The console scripts point at functions that exist."""
    scripts = configparser.ConfigParser()
    scripts.read_string((dist_info(wheel) / "entry_points.txt").read_text())
    commands = dict(scripts["console_scripts"])
    assert {"rbvsr-run", "rbvsr-export", "rbvsr-info", "rbvsr-build"} <= commands.keys()
    for target in commands.values():
        module, function = target.split(":")
        source = wheel.root.read(f"{module.replace('.', '/')}.py").decode()
        assert f"\ndef {function}(" in source


def test_metadata(wheel: zipfile.Path) -> None:
    """The version is the package's own, the licence files are included, and optional packages are
    extras, not dependencies.
    """
    metadata = (dist_info(wheel) / "METADATA").read_text()
    source = wheel.root.read("rbvsr_deploy/version.py").decode()
    (version,) = (
        line.removeprefix("Version: ")
        for line in metadata.splitlines()
        if line.startswith("Version: ")
    )
    assert f'__version__ = "{version}"' in source
    licenses = {Path(name).name for name in names(wheel) if "/licenses/" in name}
    assert licenses == {"LICENSE", "NOTICE"}
    required = [
        line.removeprefix("Requires-Dist: ").lower()
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    assert required
    for heavy in ("torch", "onnx", "onnxruntime", "tensorrt", "safetensors"):
        assert not any(requirement.startswith(heavy) for requirement in required)


def test_versions_of_ci(wheel: zipfile.Path) -> None:
    """``.ci/constraints.txt`` has one version of every package that ``.ci/run`` installs, and it is
    one that the project allows.
    """
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    versions = {canonicalize_name(name): version for name, version in pairs}
    assert len(versions) == len(pairs)
    makefile = (ROOT / "Makefile").read_text()
    extras = set(re.findall(r"\w+", " ".join(re.findall(r"--editable '\.\[(.*?)\]'", makefile))))
    assert {"cpu", "dev", "docs"} < extras
    for line in (dist_info(wheel) / "METADATA").read_text().splitlines():
        if not line.startswith("Requires-Dist: "):
            continue
        required = Requirement(line.removeprefix("Requires-Dist: "))
        if required.name == "rbvsr-deploy":
            continue
        marker = required.marker
        environments = [{"extra": extra, "python_version": "3.11"} for extra in ("", *extras)]
        if marker is None or any(marker.evaluate(environment) for environment in environments):
            version = versions[canonicalize_name(required.name)]
            assert required.specifier.contains(version), required


def test_changelog_and_citation_have_the_version_of_the_wheel(wheel: zipfile.Path) -> None:
    """The newest section of the changelog and the citation have its version, and the same date."""
    metadata = (dist_info(wheel) / "METADATA").read_text()
    (version,) = re.findall(r"^Version: (.+)$", metadata, re.MULTILINE)
    assert wheel.root.filename is not None
    assert Path(wheel.root.filename).name.startswith(f"rbvsr_deploy-{version}-")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", changelog, re.MULTILINE)
    assert sections[0] == ("Unreleased", "")
    assert sections[1][0] == version
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in citation
    assert f"\ndate-released: {sections[1][1]}\n" in citation


def test_installed_wheel_imports(wheel: zipfile.Path, tmp_path: Path) -> None:
    """Unpacked away from the checkout, the packages of the wheel import under their full names."""
    assert wheel.root.filename is not None
    with zipfile.ZipFile(wheel.root.filename) as archive:
        archive.extractall(tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "import rbvsr_deploy, rbvsr_deploy.export, rbvsr_deploy.engines, rbvsr_deploy.training\n"
        "import rbvsr_deploy.commands.run, rbvsr_deploy.pretrained\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.startswith('rbvsr_deploy'):\n"
        f"        assert module.__file__.startswith({str(tmp_path)!r}), module.__file__\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
