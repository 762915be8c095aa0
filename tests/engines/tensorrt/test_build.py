"""Tests compiling, with the real TensorRT-RTX, which needs no GPU, and doubles of the others."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rbvsr_deploy.bundle import Bundle, open_bundle
from rbvsr_deploy.bundle.engine_sets import EngineSet, ShapeProfile
from rbvsr_deploy.engines.cuda.driver import Gpu
from rbvsr_deploy.engines.tensorrt.build import BuildOptions, build_engine_set, check_target
from rbvsr_deploy.engines.tensorrt.cache import read_cached
from rbvsr_deploy.engines.tensorrt.flavours import TensorRT, load_flavour
from rbvsr_deploy.engines.tensorrt.network import check_network
from rbvsr_deploy.errors import EngineError
from tests.support.tensorrt_bindings import bindings
from tests.support.tensorrt_double import small_bundle

GPU = Gpu("Ada of a test", "8.9", "12.6", 2**34)
ORIN = Gpu("Orin", "8.7", "12.6", 2**33, is_integrated=True)


class OneGpu:
    """The part of a driver that a build uses."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self.threads.add(threading.get_ident())
        yield

    def gpu(self) -> Gpu:
        return GPU


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBVSR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=["float32", "float16"])
def bundle(request: pytest.FixtureRequest, tiny_bundle: Path, tiny_bundle_float16: Path) -> Bundle:
    return open_bundle(tiny_bundle if request.param == "float32" else tiny_bundle_float16)


@pytest.mark.slow
def test_all_graphs_compile(bundle: Bundle) -> None:
    """TensorRT-RTX compiles all seven graphs and reports its progress.

    The set records the GPUs it is for and the layers of each network.
    """
    rtx = load_flavour("tensorrt-rtx")
    reported: list[tuple[str, str, int, int]] = []
    profile = ShapeProfile((32, 32), (48, 64), (96, 128), batch=2)
    engine_set, plans = build_engine_set(
        rtx,
        bundle.manifest,
        bundle.graphs(),
        profile=profile,
        compute_capability="8.6",
        options=BuildOptions(workspace=2**28, optimization_level=1),
        progress=lambda *step: reported.append(step),
    )
    assert (engine_set.flavour, engine_set.version) == ("tensorrt-rtx", rtx.version)
    assert (engine_set.compute_capability, engine_set.profile) == ("8.6", profile)
    assert set(plans) == set(engine_set.layers) == set(bundle.manifest.graphs)
    assert len(plans) == 10
    assert all(len(plan) > 1000 and plan.startswith(b"vtrt") for plan in plans.values())
    assert engine_set.layers["backward"][f"CONVOLUTION {bundle.manifest.precision}"] == 3
    assert {graph for graph, *_ in reported} == set(plans)
    assert {phase for _, phase, *_ in reported} > {"reading", "Building engine"}
    assert all(0 <= step <= steps for *_, step, steps in reported)
    assert EngineSet.from_dict(engine_set.as_dict()) == engine_set


def test_an_invalid_graph_is_rejected_by_name(bundle: Bundle) -> None:
    """The message has the graph's name and the parser's own message, on one line."""
    with pytest.raises(EngineError) as caught:
        build_engine_set(
            load_flavour("tensorrt-rtx"),
            bundle.manifest,
            {"flow": b"no graph"},
            profile=ShapeProfile(),
            compute_capability="8.9",
        )
    assert "graph 'flow' was rejected by the parser of tensorrt-rtx" in str(caught.value)
    assert "Failed to parse the ONNX model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_impossible_sizes_are_rejected(bundle: Bundle) -> None:
    """If a graph's channels differ from the manifest's, the message names the graph."""
    manifest = replace(bundle.manifest, model={**bundle.manifest.model, "mid_channels": 9})
    with pytest.raises(EngineError, match="graph 'backward' could not be compiled by tensorrt-rtx"):
        build_engine_set(
            load_flavour("tensorrt-rtx"),
            manifest,
            {"backward": bundle.graph("backward")},
            profile=ShapeProfile(),
            compute_capability="8.9",
        )


def test_a_build_aborts_when_its_caller_is_interrupted(bundle: Bundle) -> None:
    """Ctrl-C reaches the waiting thread, and the builder stops at its next step.

    No other graph is started.
    """
    started: list[str] = []

    def progress(graph: str, phase: str, step: int, steps: int) -> None:
        started.append(graph)
        if graph == "clean" and phase == "reading":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine_set(
            load_flavour("tensorrt-rtx"),
            bundle.manifest,
            {name: bundle.graph(name) for name in ("ingest", "clean", "emit")},
            profile=ShapeProfile(),
            compute_capability="8.9",
            progress=progress,
        )
    assert set(started) == {"ingest", "clean"}


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.4.0.106"])
def test_plain_tensorrt_builds_on_its_gpu(version: str, bundle: Bundle) -> None:
    """Options, profile and timing cache reach the builder of every version by existing names.

    The thread that builds has the right GPU as its current one.
    """
    tensorrt, driver = TensorRT("tensorrt", bindings(version)), OneGpu()
    precision = bundle.manifest.precision
    phases: list[str] = []
    engine_set, plans = build_engine_set(
        tensorrt,
        bundle.manifest,
        {name: bundle.graph(name) for name in ("forward", "backward")},
        profile=ShapeProfile((8, 8), (16, 16), (32, 64), batch=3),
        compute_capability="8.9",
        driver=driver,  # type: ignore[arg-type]
        options=BuildOptions(2**30, 4, version_compatible=True, hardware_compatible=True),
        progress=lambda graph, phase, step, steps: phases.append(phase),
    )
    layers = engine_set.layers["forward"]
    assert (layers[f"CONVOLUTION {precision}"], layers["GRID_SAMPLE float32"]) == (3, 1)
    assert floats(layers) == floats(rtx_layers(bundle, "forward"))
    assert engine_set.version_compatible
    assert engine_set.hardware_compatible
    config = tensorrt.module.builds[-1].config
    assert config.workspace == ("WORKSPACE", 2**30)
    assert config.builder_optimization_level == 4
    assert config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert "VERSION_COMPATIBLE" in config.flags
    assert config.profiles[0].shapes["state"] == ((1, 8, 8, 8), (1, 8, 16, 16), (1, 8, 32, 64))
    assert ("Timing" in phases) == (not version.startswith("8"))
    assert set(plans) == {"forward", "backward"}
    # The second graph's build used the timings of the first, and so will the next process.
    (path,) = (Path(str(p)) for p in cache_files())
    assert read_cached(path) == b"timedtimed"
    assert driver.threads - {threading.get_ident()}


def floats(layers: Mapping[str, int]) -> dict[str, int]:
    return {kind: count for kind, count in layers.items() if "float" in kind}


def rtx_layers(bundle: Bundle, graph: str) -> dict[str, int]:
    """Return the table of a strongly typed network, whose types are not hidden."""
    rtx, model = load_flavour("tensorrt-rtx"), bundle.graph(graph)
    network = rtx.create_network(rtx.module.Builder(rtx.logger))
    assert rtx.module.OnnxParser(network, rtx.logger).parse(model)
    types = rtx.tensor_types(network, model)
    precision = bundle.manifest.precision
    return check_network(rtx, network, model, types, graph=graph, precision=precision)


def cache_files() -> list[Path]:
    from rbvsr_deploy.engines.tensorrt.cache import cache_folder

    return list((cache_folder() / "timing").iterdir())


@pytest.mark.parametrize(
    ("flavour", "capability", "gpu", "hardware", "words"),
    [
        ("tensorrt-rtx", "9.0", GPU, False, "compiles for the compute capabilities 7.5, "),
        ("tensorrt-rtx", "8.9", None, True, "has no hardware-compatible engines: "),
        ("tensorrt", "8.9", None, False, "compiles on the GPU that will run the engines"),
        ("tensorrt", "8.7", replace(GPU, compute_capability="8.7"), True, "engines on Jetson"),
        ("tensorrt", "8.6", GPU, False, "which is Ada of a test of compute capability 8.9, not"),
    ],
)
def test_impossible_targets_are_rejected(
    flavour: str, capability: str, gpu: Gpu | None, hardware: bool, words: str
) -> None:
    """They are rejected before building, with advice."""
    if flavour == "tensorrt-rtx":
        tensorrt = load_flavour("tensorrt-rtx")
    else:
        tensorrt = TensorRT("tensorrt", bindings("10.3.0"))
    with pytest.raises(EngineError) as caught:
        check_target(
            tensorrt, capability, gpu=gpu, options=BuildOptions(hardware_compatible=hardware)
        )
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("gpu", "wanted", "limit"),
    [(GPU, None, None), (ORIN, None, 2**30), (ORIN, 2**29, 2**29), (GPU, 2**31, 2**31)],
)
def test_the_compiler_leaves_memory_to_the_host(
    gpu: Gpu, wanted: int | None, limit: int | None, tmp_path: Path
) -> None:
    """By itself TensorRT would take all of what an integrated GPU shares with the host."""

    class Driver(OneGpu):
        def gpu(self) -> Gpu:
            return gpu

        def free_memory(self) -> int:
            return 2**32

    bundle = small_bundle(tmp_path / "small.plan")
    tensorrt = TensorRT("tensorrt", bindings("10.3.0"))
    build_engine_set(
        tensorrt,
        replace(bundle.manifest, precision="float16"),
        {"forward": bundle.graph("forward")},
        profile=ShapeProfile((8, 8), (16, 16), (32, 32)),
        compute_capability=gpu.compute_capability,
        driver=Driver(),  # type: ignore[arg-type]
        options=BuildOptions(workspace=wanted),
    )
    config = tensorrt.module.builds[-1].config
    assert getattr(config, "workspace", None) == (limit and ("WORKSPACE", limit))


def test_rtx_engines_may_be_captured(tmp_path: Path) -> None:
    """The flag exists in the installed TensorRT-RTX and is set; plain TensorRT needs none."""
    flags: list[object] = []
    config = SimpleNamespace(set_flag=flags.append)
    rtx = load_flavour("tensorrt-rtx")
    rtx.allow_capture(config)
    assert flags == [rtx.module.BuilderFlag.REQUIRE_USER_ALLOCATION]
    TensorRT("tensorrt", bindings("10.3.0")).allow_capture(config)
    assert len(flags) == 1
