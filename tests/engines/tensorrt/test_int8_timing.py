"""Tests that int8 is timed against float16 and dropped where it is slower, on the doubles."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import onnx.version_converter
import pytest
from onnx import helper

from rbvsr_deploy.bundle import Bundle, bundle_in_memory, open_bundle, write_bundle
from rbvsr_deploy.bundle.engine_sets import EngineSet, ShapeProfile
from rbvsr_deploy.engines.base import Network
from rbvsr_deploy.engines.tensorrt import compile as compile_module
from rbvsr_deploy.engines.tensorrt import int8_timing, values
from rbvsr_deploy.engines.tensorrt import plans as plans_module
from rbvsr_deploy.engines.tensorrt.build import BuildOptions, this_platform
from rbvsr_deploy.engines.tensorrt.compile import Target, compile_into_bundle
from rbvsr_deploy.engines.tensorrt.engine import TensorRTEngine
from rbvsr_deploy.engines.tensorrt.flavours import TensorRT
from rbvsr_deploy.engines.tensorrt.int8_timing import keep_faster, time_graphs
from rbvsr_deploy.engines.tensorrt.plans import MachinePlans
from rbvsr_deploy.engines.tensorrt.unquantised import as_compiled, is_quantised, unquantised
from rbvsr_deploy.errors import EngineError
from rbvsr_deploy.graphs import GRAPHS
from tests.support.cuda_double import DriverDouble
from tests.support.tensorrt_bindings import bindings
from tests.support.tensorrt_double import (
    PlansDouble,
    RuntimeDouble,
    candidate,
    open_double,
    small_bundle,
)

QUANTISED = ("backward", "clean", "forward")
PROFILE = ShapeProfile((1, 1), (24, 40), (64, 64), batch=3)
SLOW, FAST = 0.4, 0.2
"""Seconds of a run, so many that a round of them is enough."""


def rounded(model: bytes) -> bytes:
    """Return a graph that rounds its first input to int8."""
    proto = onnx.version_converter.convert_version(onnx.load_from_string(model), 19)
    name = proto.graph.input[0].name
    for node in proto.graph.node:
        node.input[:] = ["rounded" if item == name else item for item in node.input]
    made = [
        helper.make_node("QuantizeLinear", [name, "scale", "zero"], ["int8"]),
        helper.make_node("DequantizeLinear", ["int8", "scale", "zero"], ["rounded"]),
    ]
    axes = [node for node in proto.graph.node if node.op_type == "Constant"]
    for node in axes:  # as exported graphs have them
        node.attribute[0].t.name = node.output[0]
        proto.graph.initializer.append(node.attribute[0].t)
    nodes = [*made, *(node for node in proto.graph.node if node.op_type != "Constant")]
    proto.graph.ClearField("node")
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(
        (
            helper.make_tensor("scale", onnx.TensorProto.FLOAT16, [], [1 / 32]),
            helper.make_tensor("zero", onnx.TensorProto.INT8, [], [0]),
        )
    )
    return bytes(proto.SerializeToString())


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Provide a bundle of which three graphs round to int8."""
    made = small_bundle(tmp_path / "small.plan", precision="float16")
    manifest = replace(made.manifest, quantisation={"graphs": {}})
    graphs = {n: rounded(g) if n in QUANTISED else g for n, g in made.graphs().items()}
    return bundle_in_memory("small.plan", manifest, graphs)


@dataclass
class Machine:
    """A machine with a GPU on which int8 takes longer for some graphs."""

    slower: tuple[str, ...] = ()
    driver: DriverDouble = field(default_factory=DriverDouble)
    built: list[tuple[str, ...]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    tensorrt: TensorRT = field(default_factory=lambda: TensorRT("tensorrt", bindings("10.3.0")))

    def build(self, tensorrt: Any, manifest: Any, graphs: Any, **asked: Any) -> Any:
        """Return the graphs as engines, as :func:`build_engine_set` would."""
        self.built.append(tuple(graphs))
        types = {n: {"int8" if is_quantised(g) else "float16": 1} for n, g in graphs.items()}
        kept = asked["profile"]
        return EngineSet("tensorrt", "10.0.0", "8.9", this_platform(), kept, layers=types), graphs

    def seconds_of(self, graph: str, plan: bytes) -> float:
        slow = (graph in self.slower) == is_quantised(plan)
        return SLOW if slow else FAST

    def keep_faster(self, bundle: Bundle, **options: Any) -> tuple[EngineSet, Any]:
        engine_set, plans = self.build(None, None, bundle.graphs(), profile=PROFILE)
        asked: dict[str, Any] = {"driver": self.driver, "report": self.lines.append, **options}
        driver = asked.pop("driver")
        return keep_faster(self.tensorrt, driver, bundle, engine_set, plans, **asked)


@pytest.fixture
def machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> Callable[..., Machine]:
    """Provide machines whose GPU and TensorRT are simulated."""

    def make(*slower: str) -> Machine:
        made = Machine(slower)

        def runtime(tensorrt: Any, gpu: Any) -> RuntimeDouble:
            network = Network.of(bundle.manifest)
            return RuntimeDouble(made.driver, network, seconds_of=made.seconds_of)

        for module in (int8_timing, compile_module, plans_module):
            monkeypatch.setattr(module, "build_engine_set", made.build)
        monkeypatch.setattr(values, "TensorRTRuntime", runtime)
        monkeypatch.setattr(int8_timing, "clock", lambda: made.driver.seconds)
        return made

    monkeypatch.setenv("RBVSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RBVSR_CONFIG", str(tmp_path / "config"))
    return make


@pytest.mark.parametrize("slower", [(), ("backward",), ("clean", "forward"), QUANTISED])
def test_the_faster_engine_is_kept(
    bundle: Bundle, machine: Callable[..., Machine], slower: tuple[str, ...]
) -> None:
    """It is chosen for each graph, by times of the GPU, and a line gives both times."""
    gpu = machine(*slower)
    engine_set, plans = gpu.keep_faster(bundle)
    assert gpu.built == [tuple(bundle.graphs()), QUANTISED]
    assert set(engine_set.in_float16) == set(slower)
    for name, graph in bundle.graphs().items():
        assert plans[name] == (unquantised(graph) if name in slower else graph)
        kind = "int8" if name in QUANTISED and name not in slower else "float16"
        assert engine_set.layers[name] == {kind: 1}
    for name in QUANTISED:
        int8, float16 = (SLOW, FAST) if name in slower else (FAST, SLOW)
        took = {"int8": 1000 * int8, "float16": 1000 * float16}
        assert engine_set.milliseconds[name] == pytest.approx(took)
    assert len(gpu.lines) == len(QUANTISED)
    for name, line in zip(QUANTISED, gpu.lines, strict=True):
        if name in slower:
            assert line == f"{name}: 400 ms in int8, 200 ms in float16; float16 is used"
        else:
            assert line == f"{name}: 200 ms in int8, 400 ms in float16; int8 is used"
    assert gpu.driver.leaks() == []


def test_equally_fast_is_not_slower(bundle: Bundle, machine: Callable[..., Machine]) -> None:
    gpu = machine()
    gpu.seconds_of = lambda graph, plan: FAST  # type: ignore[method-assign]
    assert gpu.keep_faster(bundle)[0].in_float16 == ()


def test_the_least_of_several_rounds_counts(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy moment does not decide."""
    moments = itertools.count()

    def clock() -> float:
        return driver.seconds + busy[next(moments)]

    driver = DriverDouble()
    network = Network.of(bundle.manifest)
    runtime = RuntimeDouble(driver, network, seconds_of=lambda graph, plan: 0.001)
    # Begin of all, then begin and end of each round, each with a look whether time is up.
    busy = [0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.6]
    monkeypatch.setattr(int8_timing, "clock", clock)
    monkeypatch.setattr(int8_timing, "_ROUNDS", 3)
    engine = TensorRTEngine(
        network,
        PlansDouble(lambda height, width, batch: [candidate(bundle, profile=PROFILE)]),
        runtime,
        driver,
        model="small.plan",
        weights="",
        reason="a test",
        size=(24, 40),
    )
    with engine:
        engine_set = replace(candidate(bundle).engine_set, profile=PROFILE)
        assert time_graphs(engine, engine_set, ["backward"]) == {"backward": pytest.approx(1.0)}


def test_a_graph_is_timed_at_the_usual_size(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets as many frames as when a scene is upscaled, and is captured like there."""
    driver = DriverDouble()
    monkeypatch.setattr(int8_timing, "_ROUNDS", 2)
    with open_double(bundle, driver, size=(24, 40)) as engine:
        engine_set = replace(candidate(bundle).engine_set, profile=PROFILE)
        driver.log.clear()
        time_graphs(engine, engine_set, QUANTISED)
    runs = {name: [o for o in driver.log if o.name == name] for name in QUANTISED}
    assert {len(found) for found in runs.values()} == {1 + 2 * 10}
    sizes = {n: {stop - start for start, stop in o[0].reads} for n, o in runs.items()}
    assert sizes["clean"] == {3 * 3 * 24 * 40 * 2}
    assert sizes["backward"] == {3 * 24 * 40 * 2, 2 * 24 * 40 * 2, 2 * 24 * 40 * 4}
    assert driver.calls.count("launch") > 30  # of both steps


def test_a_float_bundle_is_not_timed(machine: Callable[..., Machine], tmp_path: Path) -> None:
    gpu = machine()
    plain = small_bundle(tmp_path / "plain.plan", precision="float16")
    engine_set, plans = gpu.keep_faster(plain)
    assert (engine_set.milliseconds, plans, gpu.lines) == ({}, plain.graphs(), [])
    assert len(gpu.built) == 1


def without_onnx(patch: pytest.MonkeyPatch, gpu: Machine) -> None:
    patch.setitem(__import__("sys").modules, "onnx", None)


def without_compiler(patch: pytest.MonkeyPatch, gpu: Machine) -> None:
    def build(*arguments: Any, **options: Any) -> Any:
        raise EngineError("graph 'clean' could not be compiled")

    patch.setattr(int8_timing, "build_engine_set", build)


def without_launches(patch: pytest.MonkeyPatch, gpu: Machine) -> None:
    gpu.driver.refuse = ("backward",)


REASONS: list[tuple[Any, str]] = [
    (without_onnx, "needs the package 'onnx', which is not installed: pip install"),
    (without_compiler, "graph 'clean' could not be compiled"),
    (without_launches, "graph 'backward' failed on cuda:0"),
]


@pytest.mark.parametrize(("break_it", "words"), REASONS)
def test_int8_stays_where_it_cannot_be_timed(
    bundle: Bundle,
    machine: Callable[..., Machine],
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[pytest.MonkeyPatch, Machine], None],
    words: str,
) -> None:
    """One line says why, and nothing is left on the GPU."""
    gpu = machine(*QUANTISED)
    break_it(monkeypatch, gpu)
    engine_set, plans = gpu.keep_faster(bundle)
    assert (engine_set.milliseconds, plans) == ({}, bundle.graphs())
    (line,) = gpu.lines
    assert line.startswith("int8 is not timed against float16: ")
    assert words in line
    assert gpu.driver.leaks() == []


def test_weights_in_int8_only_cannot_be_restored() -> None:
    """Bundles of earlier versions hold no others."""
    weights = helper.make_tensor("w", onnx.TensorProto.INT8, [1, 1, 1, 1], [3])
    zero = helper.make_tensor("zero", onnx.TensorProto.INT8, [], [0])
    scale = helper.make_tensor("scale", onnx.TensorProto.FLOAT16, [], [0.1])
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["weights"]),
        helper.make_node("Conv", ["x", "weights"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT16, [1, 1, 2, 2]) for n in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [weights, zero, scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    with pytest.raises(EngineError, match="weights in int8 only: export it again"):
        unquantised(model.SerializeToString())


@pytest.mark.parametrize("has_gpu", [True, False])
def test_rbvsr_build_times_where_it_can(
    bundle: Bundle, machine: Callable[..., Machine], tmp_path: Path, has_gpu: bool
) -> None:
    """The bundle keeps the times and the faster engines; without the GPU a line says so."""
    gpu = machine("forward")
    path = tmp_path / "int8.plan"
    write_bundle(path, replace(bundle.manifest, quantisation=None), bundle.graphs())
    target = Target(gpu.tensorrt, "8.9", gpu.driver if has_gpu else None)
    (made,) = compile_into_bundle(
        path, [target], profile=PROFILE, options=BuildOptions(), report=gpu.lines.append
    )
    written = open_bundle(path)
    assert written.manifest.engine_sets == (made,)
    plans = written.plans(made)
    if has_gpu:
        assert made.in_float16 == ("forward",)
        assert not is_quantised(plans["forward"])
        assert is_quantised(plans["backward"])
        assert gpu.lines[2] == "forward: 400 ms in int8, 200 ms in float16; float16 is used"
        assert min(made.psnr.values()) > 60
    else:
        assert made.milliseconds == {}
        assert is_quantised(plans["forward"])
        assert gpu.lines[0] == (
            "int8 is not timed against float16: no GPU of this machine runs these engines"
        )


def test_engines_compiled_while_running_are_timed(
    bundle: Bundle, machine: Callable[..., Machine]
) -> None:
    """The cache keeps the faster ones, which are compared with the graphs they were made from, and
    the engine's description names them.
    """
    gpu = machine("backward", "clean")
    plans = MachinePlans(
        bundle,
        gpu.tensorrt,
        gpu.driver,
        report=gpu.lines.append,
    )
    with open_double(bundle, DriverDouble(), size=(24, 40), plans=plans) as engine:  # type: ignore[arg-type]
        assert engine.describe().precision == "int8 and float16 (backward, clean in float16)"
    assert len(gpu.lines) == 1 + len(QUANTISED)
    found = next(plans.candidates(24, 40, batch=4))
    assert found.reason == "compiled earlier, from the cache"
    assert found.engine_set.in_float16 == ("backward", "clean")
    assert not is_quantised(found.plans["clean"])
    assert is_quantised(found.plans["forward"])
    assert set(found.engine_set.psnr) == set(GRAPHS)
    assert min(found.engine_set.psnr.values()) > 60


def test_engines_are_compared_with_what_they_were_compiled_from(bundle: Bundle) -> None:
    """Only the graphs in float16 differ from the bundle's."""
    made = candidate(bundle).engine_set
    assert as_compiled(bundle, made) is bundle
    took = {"int8": 2.0, "float16": 1.0}
    compiled = as_compiled(bundle, replace(made, milliseconds={"forward": took}))
    different = {n for n, g in compiled.graphs().items() if g != bundle.graph(n)}
    assert different == {"forward"}
    assert not is_quantised(compiled.graph("forward"))
