"""Tests NVIDIA's Polygraphy as referee: its ONNX Runtime half, and that it builds our graphs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from rbvsr_deploy.bundle import open_bundle, write_bundle
from rbvsr_deploy.bundle.engine_sets import EngineSet, ShapeProfile
from rbvsr_deploy.commands.compare import compare
from rbvsr_deploy.errors import EngineError, MissingDependencyError
from rbvsr_deploy.graphs import OPTIONAL
from rbvsr_deploy.parity import referee
from rbvsr_deploy.parity.referee import judge
from rbvsr_deploy.video import open_source
from rbvsr_deploy.video.images import write_image
from tests.conftest import moving_clip
from tests.support.tensorrt_double import small_bundle


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    for number, image in enumerate(moving_clip(4, 12, 16)):
        write_image(folder / f"{number}.png", image=image)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("small") / "small.plan").path


@pytest.fixture
def _polygraphy() -> None:
    pytest.importorskip("polygraphy")


def wrong(path: Path, bundle: Path) -> Path:
    """Copy a bundle with one graph whose constants are a little off."""
    opened = open_bundle(bundle)
    graphs = dict(opened.graphs())
    model = onnx.load_from_string(graphs["forward"])
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            changed = onnx.numpy_helper.from_array(
                np.asarray(values * 1.05, np.float32), tensor.name
            )
            tensor.CopyFrom(changed)
    graphs["forward"] = model.SerializeToString()
    write_bundle(path, opened.manifest, graphs)
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("_polygraphy")
def test_the_same_graphs_pass(bundle: Path, clip: Path) -> None:
    """Every graph is run on recorded inputs, twice each."""
    with open_source(clip) as source:
        (verdict,) = judge(bundle, bundle, source, frames=4)
    assert verdict.failures == []
    assert set(verdict.graphs) == set(open_bundle(bundle).graphs()) - set(OPTIONAL)
    assert verdict.graphs["forward"]["new_state"]["calls"] == 2
    assert verdict.graphs["forward"]["new_state"]["max_difference"] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("_polygraphy")
def test_a_wrong_graph_is_named(bundle: Path, clip: Path, tmp_path: Path) -> None:
    """The command shows all figures and fails with the graph and its output."""
    other = wrong(tmp_path / "wrong.plan", bundle)
    done = CliRunner().invoke(
        compare, [str(bundle), str(other), "--clip", str(clip), "--frames", "4", "--referee"]
    )
    assert done.exit_code == 1
    assert "wrong.plan differs from the graphs of small.plan: 'new_state' of graph 'forward'" in (
        done.output
    )
    assert "'backward'" not in done.output


@pytest.mark.slow
@pytest.mark.usefixtures("_polygraphy")
def test_engines_that_do_not_load_are_reported(bundle: Path, clip: Path, tmp_path: Path) -> None:
    """Engines of others are not loaded unasked; a damaged engine gives one sentence."""
    opened = open_bundle(bundle)
    path = tmp_path / "engines.plan"
    engine_set = EngineSet(
        "tensorrt-rtx", "1.7.1", "8.9", "linux-x86_64", ShapeProfile((1, 1), (8, 8), (64, 64))
    )
    plans = dict.fromkeys(opened.graphs(), b"ftrt damaged")
    write_bundle(path, opened.manifest, opened.graphs(), [(engine_set, plans)])
    with open_source(clip) as source, pytest.raises(EngineError, match="has not compiled"):
        judge(bundle, path, source, frames=2)
    with (
        open_source(clip) as source,
        pytest.raises(EngineError, match=f"Polygraphy did not run {engine_set.name}: .+") as caught,
    ):
        judge(bundle, path, source, frames=2, trust_engines=True)
    assert "\n" not in str(caught.value)


def test_without_polygraphy_the_extra_is_named(
    bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(referee, "find_spec", lambda name: None)
    with open_source(clip) as source, pytest.raises(MissingDependencyError, match=r"\[debug\]"):
        judge(bundle, bundle, source, frames=2)


_BUILD = """
import sys
from pathlib import Path
import tensorrt_rtx
from polygraphy.backend.trt import CreateConfig, NetworkFromOnnxBytes, Profile
from polygraphy.backend.trt import engine_bytes_from_network
from rbvsr_deploy.bundle import open_bundle
from rbvsr_deploy.graphs import GRAPHS, OPTIONAL
from rbvsr_deploy.bundle.engine_sets import EngineSet, ShapeProfile
bundle = open_bundle(Path(sys.argv[1]))
sizes = ShapeProfile((16, 16), (32, 32), (64, 64), batch=2)
for name in ("ingest", "forward"):
    profile = Profile()
    shapes = sizes.shapes(GRAPHS[name], channels=bundle.manifest.channels)
    for item, limits in shapes.items():
        profile.add(item, *limits)
    usual = CreateConfig(profiles=[profile])
    def config(builder, network):
        made = usual(builder, network)
        made.num_compute_capabilities = 1
        made.set_compute_capability(tensorrt_rtx.ComputeCapability.SM89, 0)
        return made
    print(len(bytes(engine_bytes_from_network(NetworkFromOnnxBytes(bundle.graph(name)), config))))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("_polygraphy")
def test_polygraphy_builds_the_default_models_graphs() -> None:
    """TensorRT-RTX compiles through Polygraphy too, which needs no GPU."""
    pytest.importorskip("tensorrt_rtx")
    from rbvsr_deploy.pretrained import DEFAULT_BUNDLE

    done = subprocess.run(
        [sys.executable, "-c", _BUILD, str(DEFAULT_BUNDLE)],
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sizes = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    assert len(sizes) == 2
    assert min(sizes) > 10_000
