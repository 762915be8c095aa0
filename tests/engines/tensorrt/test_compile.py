"""Tests adding engines to a bundle and removing them, by the real commands, without a GPU."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rbvsr_deploy.bundle import Manifest, open_bundle, write_bundle
from rbvsr_deploy.bundle.engine_sets import ShapeProfile
from rbvsr_deploy.commands.build import build
from rbvsr_deploy.commands.export import export
from rbvsr_deploy.commands.info import info
from rbvsr_deploy.engines.tensorrt import compile as compile_module
from rbvsr_deploy.engines.tensorrt.build import BuildOptions
from rbvsr_deploy.engines.tensorrt.compile import choose_targets
from rbvsr_deploy.engines.tensorrt.flavours import load_flavour
from rbvsr_deploy.errors import EngineError

RTX = ("--target", "tensorrt-rtx", "--compute-capability")
SMALL = ("--min-size", "32x32", "--opt-size", "64x48", "--max-size", "128x96", "--batch", "2")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the GPU, if there is one, to test the behaviour without it."""
    monkeypatch.setattr(compile_module, "_this_machines_driver", lambda: (None, "no driver"))


@pytest.fixture
def path(tiny_bundle_float16: Path, tmp_path: Path) -> Path:
    """Provide a bundle without engines that a test may change."""
    bundle = open_bundle(tiny_bundle_float16)
    path = tmp_path / "model.plan"
    # Two graphs are enough if their number is not tested.
    names = ("ingest", "emit")
    manifest = replace(bundle.manifest, graphs={n: bundle.manifest.graphs[n] for n in names})
    write_bundle(path, manifest, {name: bundle.graph(name) for name in names})
    return path


def run(command: Any, *arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def capabilities(path: Path) -> list[str]:
    return [s.compute_capability for s in open_bundle(path).manifest.engine_sets]


@pytest.mark.slow
def test_sets_are_added_listed_replaced_and_removed(path: Path, tmp_path: Path) -> None:
    """There is one set per compute capability, and compiling it again replaces only that set.

    A set is removed by name, here into another file.
    """
    graphs = open_bundle(path).graphs()
    run(build, path, *RTX, "8.6,12.0", *SMALL)
    assert capabilities(path) == ["8.6", "12.0"]
    run(build, path, *RTX, "8.9,8.6", *SMALL)
    assert sorted(capabilities(path)) == ["12.0", "8.6", "8.9"]
    bundle = open_bundle(path)
    assert bundle.graphs() == graphs
    for engine_set in bundle.manifest.engine_sets:
        plans = bundle.plans(engine_set)
        assert all(plan.startswith(b"vtrt") for plan in plans.values())
        assert engine_set.profile == ShapeProfile((32, 32), (48, 64), (96, 128), batch=2)
        assert engine_set.layers["emit"]["CAST uint8"] == 1

    lines = run(info, path).output.splitlines()
    listed = [line.split()[1].rstrip(":") for line in lines if line.lstrip().startswith("engines ")]
    assert listed == [s.name for s in bundle.manifest.engine_sets]
    assert "32x32 to 128x96, tuned for 64x48, batches up to 2" in "\n".join(lines)
    assert "1 cast uint8" in run(info, path, "-v").output
    assert len(json.loads(run(info, path, "--json").output)["engine_sets"]) == 3

    other = tmp_path / "other.plan"
    run(build, path, "--remove", listed[0], "-o", other)
    assert listed[0] not in [s.name for s in open_bundle(other).manifest.engine_sets]
    assert len(capabilities(other)) == 2
    assert len(capabilities(path)) == 3


@pytest.fixture
def exported(tiny_bundle_float16: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replace the export by a copy of an existing bundle; return the requested checkpoints."""
    checkpoints: list[Path] = []

    def export_bundle(checkpoint: Path, output: Path, **options: Any) -> Manifest:
        checkpoints.append(checkpoint)
        output.write_bytes(tiny_bundle_float16.read_bytes())
        return open_bundle(output).manifest

    monkeypatch.setattr("rbvsr_deploy.export.to_bundle.export_bundle", export_bundle)
    return checkpoints


@pytest.mark.slow
def test_an_export_contains_the_requested_engines(exported: list[Path], tmp_path: Path) -> None:
    """``--fp16 --target tensorrt-rtx`` compiles all seven graphs without a GPU, in float16."""
    path = tmp_path / "model.plan"
    done = run(export, "-o", path, "--fp16", *RTX, "8.6,8.9", *SMALL, "--json")
    assert capabilities(path) == ["8.6", "8.9"]
    bundle = open_bundle(path)
    for engine_set in bundle.manifest.engine_sets:
        assert set(bundle.plans(engine_set)) == set(bundle.manifest.graphs)
        assert engine_set.layers["reconstruct"]["CONVOLUTION float16"] == 5
    assert len(json.loads(done.stdout)["engine_sets"]) == 2
    assert len(exported) == 1


def test_auto_exports_only_graphs_without_a_gpu(exported: list[Path], tmp_path: Path) -> None:
    """This is reported."""
    path = tmp_path / "model.plan"
    done = run(export, "-o", path, "--target", "auto")
    assert "Graphs only: there is no GPU here to compile for (no driver)" in done.stderr
    assert capabilities(path) == []


def test_an_export_whose_engines_fail_keeps_its_graphs(
    exported: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export may have taken hours: a later failure is reported, and the graphs are kept."""

    def failing(*arguments: Any, **options: Any) -> None:
        raise EngineError("graph 'flow' could not be compiled")

    monkeypatch.setattr(compile_module, "build_engine_set", failing)
    path = tmp_path / "model.plan"
    message = run(export, "-o", path, *RTX, "8.6", code=1).stderr
    assert (
        f"'flow' could not be compiled; '{path}' was written with graphs but no engines" in message
    )
    assert open_bundle(path).graphs()


USAGE: list[tuple[tuple[str, ...], str]] = [
    ((), "nothing to do"),
    (("--remove", "none", "--compute-capability", "8.6"), "--compute-capability needs --target"),
    (("--target", "auto", "--compute-capability", "8.6"), "cannot be combined with --target auto"),
    ((*RTX, "86"), "'86' is not a compute capability: use numbers such as 8.6,8.9,12.0"),
    ((*RTX, "8.6,,8.9"), "'' is not a compute capability"),
    (
        (*RTX, "8.6", "--max-size", "1280"),
        "'1280' is not a size: use width x height, such as 1280x720",
    ),
    ((*RTX, "8.6", "--opt-size", "0x64"), "'0x64' is not a size"),
    ((*RTX, "8.6", "--min-size", "64x64", "--max-size", "32x96"), "smallest <= the usual"),
    ((*RTX, "8.6", "--batch", "0"), "0 is out of range: use a number from 1 to 1024"),
    ((*RTX, "8.6", "--workspace", "much"), "'much' is not a valid memory size"),
    ((*RTX, "8.6", "--optimization-level", "6"), "6 is not in the range 0<=x<=5"),
    (("--target", "openvino"), "'openvino' is not one of"),
]


@pytest.mark.parametrize(("arguments", "words"), USAGE, ids=[" ".join(a) for a, _ in USAGE])
def test_wrong_usage_is_reported(path: Path, arguments: tuple[str, ...], words: str) -> None:
    """The exit code is 2, the message explains the error, and the bundle is unchanged."""
    before = path.read_bytes()
    assert words in " ".join(run(build, path, *arguments, code=2).stderr.split())
    assert path.read_bytes() == before


IMPOSSIBLE: list[tuple[tuple[str, ...], str]] = [
    (
        ("--target", "auto"),
        "there is no GPU here to compile for (no driver): ",
    ),
    (("--target", "tensorrt-rtx"), "needs to know which GPUs to compile for"),
    ((*RTX, "9.0"), "not for 9.0"),
    ((*RTX, "8.6", "--hardware-compatible"), "has no hardware-compatible engines"),
    (("--remove", "none"), "does not contain the engine set 'none' to remove; it contains none"),
]


@pytest.mark.parametrize(
    ("arguments", "words"), IMPOSSIBLE, ids=[" ".join(a) for a, _ in IMPOSSIBLE]
)
def test_impossible_requests_are_reported(
    path: Path, arguments: tuple[str, ...], words: str
) -> None:
    """The exit code is 1, the message is one sentence, and the bundle is unchanged."""
    before = path.read_bytes()
    message = run(build, path, *arguments, code=1).stderr
    assert re.fullmatch(r"Error: .*\n", message)
    assert words in message
    assert path.read_bytes() == before


def test_an_export_rejects_impossible_engines_first(exported: list[Path], tmp_path: Path) -> None:
    """They are rejected before anything is exported."""
    path = tmp_path / "model.plan"
    assert "not for 9.0" in run(export, "-o", path, *RTX, "9.0", code=1).stderr
    arguments = ("--target", "auto", "--compute-capability", "8.6")
    assert "cannot be combined with --target auto" in run(export, *arguments, code=2).stderr
    assert exported == []


def test_missing_tensorrt_is_reported_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The message names both extras."""
    monkeypatch.setattr(compile_module, "installed_flavours", tuple)
    gpu: Any = None
    with pytest.raises(EngineError, match=r"rbvsr-deploy\[tensorrt\].*rbvsr-deploy\[rtx\]"):
        compile_module.flavour_for(gpu, options=BuildOptions())


def test_one_set_per_compute_capability() -> None:
    """A capability given twice is compiled once; the order is kept."""
    wanted = ("12.0", "8.6", "12.0")
    targets = choose_targets("tensorrt-rtx", wanted, options=BuildOptions())
    assert [t.compute_capability for t in targets] == ["12.0", "8.6"]
    assert {t.tensorrt for t in targets} == {load_flavour("tensorrt-rtx")}


@pytest.mark.slow
def test_ctrl_c_leaves_the_bundle_unchanged(tiny_bundle_float16: Path, tmp_path: Path) -> None:
    """Interrupted while compiling, the exit code is 130 and no other file is left."""
    path = tmp_path / "model.plan"
    path.write_bytes(tiny_bundle_float16.read_bytes())
    # A shell may run tests in the background, where Ctrl-C is ignored; this process must not.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{listen}; from rbvsr_deploy.commands.build import build; build()"
    many = ",".join(f"{c}" for c in ("7.5", "8.0", "8.6", "8.9", "12.0"))
    command = [sys.executable, "-c", program, str(path), *RTX, many]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("compiling flow"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert "Interrupted" in rest
    assert path.read_bytes() == tiny_bundle_float16.read_bytes()
    assert list(tmp_path.iterdir()) == [path]
