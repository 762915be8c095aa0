"""Tests that new engines are run once and compared with ONNX Runtime, on the double of TensorRT."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from rbvsr_deploy.bundle import Bundle, open_bundle
from rbvsr_deploy.bundle.engine_sets import EngineSet, ShapeProfile
from rbvsr_deploy.engines.cuda.driver import Gpu
from rbvsr_deploy.engines.tensorrt import plans as plans_module
from rbvsr_deploy.engines.tensorrt.base import Candidate
from rbvsr_deploy.engines.tensorrt.build import this_platform
from rbvsr_deploy.engines.tensorrt.flavours import TensorRT
from rbvsr_deploy.engines.tensorrt.plans import MachinePlans
from rbvsr_deploy.engines.tensorrt.values import compare_values
from rbvsr_deploy.errors import EngineError
from rbvsr_deploy.graphs import GRAPHS
from tests.support.cuda_double import DriverDouble
from tests.support.tensorrt_bindings import bindings
from tests.support.tensorrt_double import (
    ENGINE_SET,
    PlansDouble,
    candidate,
    open_double,
    small_bundle,
)

PROFILE = ShapeProfile((1, 1), (24, 40), (64, 64), batch=3)
COMPILED = replace(ENGINE_SET, profile=PROFILE)


@pytest.fixture(params=["float32", "float16"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    return small_bundle(tmp_path / "small.plan", precision=request.param)


def altered(model: bytes, *, by: float) -> bytes:
    """Return a graph whose first output is multiplied by a factor."""
    proto = onnx.load_from_string(model)
    output = proto.graph.output[0]
    kind = output.type.tensor_type.elem_type
    for node in proto.graph.node:
        node.output[:] = ["right" if name == output.name else name for name in node.output]
        node.input[:] = ["right" if name == output.name else name for name in node.input]
    make = onnx.helper.make_node
    proto.graph.initializer.append(onnx.helper.make_tensor("by", onnx.TensorProto.FLOAT, [], [by]))
    proto.graph.node.extend(
        (
            make("Cast", ["right"], ["altered_wide"], to=onnx.TensorProto.FLOAT),
            make("Mul", ["altered_wide", "by"], ["product"]),
            make("Cast", ["product"], [output.name], to=kind),
        )
    )
    return bytes(proto.SerializeToString())


def opened(bundle: Bundle, plans: dict[str, bytes]) -> Any:
    offered = PlansDouble(
        lambda height, width, batch: [candidate(bundle, profile=PROFILE, plans=plans)]
    )
    return open_double(bundle, DriverDouble(), size=(24, 40), plans=offered)


def test_right_engines_pass(bundle: Bundle) -> None:
    """There is a figure for every graph."""
    with opened(bundle, {}) as engine:
        figures = compare_values(engine, bundle, COMPILED)
    assert set(figures) == set(GRAPHS)
    assert min(figures.values()) > 60


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_wrong_engine_is_named(bundle: Bundle, graph: str) -> None:
    """Whichever graph it is."""
    with (
        opened(bundle, {graph: altered(bundle.graph(graph), by=0.2)}) as engine,
        pytest.raises(EngineError, match=f"the engine of graph '{graph}' computes wrong values: "),
    ):
        compare_values(engine, bundle, COMPILED)


@pytest.mark.parametrize("graph", ["flow", "backward", "forward"])
def test_sampling_the_nearest_pixel_is_found(graph: str, tiny_bundle_float16: Path) -> None:
    """The inputs move by fractions of a pixel, where a wrong sampler shows."""
    bundle = open_bundle(tiny_bundle_float16)
    nearest = onnx.load_from_string(bundle.graph(graph))
    for node in nearest.graph.node:
        if node.op_type == "GridSample":
            kept = [item for item in node.attribute if item.name != "mode"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("mode", "nearest")])
    with opened(bundle, {}) as engine:
        compare_values(engine, bundle, COMPILED)
    with (
        opened(bundle, {graph: nearest.SerializeToString()}) as engine,
        pytest.raises(EngineError, match=f"'{graph}' computes wrong values"),
    ):
        compare_values(engine, bundle, COMPILED)


class OneGpu:
    """The part of a driver that is used here."""

    current = contextlib.nullcontext

    def gpu(self) -> Gpu:
        return Gpu("Ada of a test", "8.9", "12.6", 2**34)


@pytest.fixture
def machine(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[MachinePlans, dict[str, bytes]]:
    """Provide plans whose compiler returns the graphs, some of them replaced."""
    compiled: dict[str, bytes] = {}

    def build(tensorrt: TensorRT, manifest: Any, graphs: Any, **asked: Any) -> Any:
        made = EngineSet("tensorrt", "10.3.0", "8.9", this_platform(), asked["profile"])
        return made, {**bundle.graphs(), **compiled}

    monkeypatch.setenv("RBVSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plans_module, "build_engine_set", build)
    plans = MachinePlans(
        bundle,
        TensorRT("tensorrt", bindings("10.3.0")),
        OneGpu(),  # type: ignore[arg-type]
    )
    return plans, compiled


def candidates(plans: MachinePlans) -> list[Candidate]:
    return list(plans.candidates(24, 40, batch=4))


def test_compiled_engines_are_compared_once(
    bundle: Bundle, machine: tuple[MachinePlans, dict[str, bytes]]
) -> None:
    """The figures are kept with the engines, which are not compared again."""
    plans, _ = machine
    with open_double(bundle, DriverDouble(), size=(24, 40), plans=plans):  # type: ignore[arg-type]
        pass
    found = next(plans.candidates(24, 40, batch=4))
    assert found.reason == "compiled earlier, from the cache"
    assert set(found.engine_set.psnr) == set(GRAPHS)
    assert found.check is None


def test_wrong_engines_are_refused(
    bundle: Bundle,
    machine: tuple[MachinePlans, dict[str, bytes]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Opening fails with the graph's name, and the next run compiles again."""
    plans, compiled = machine
    compiled["forward"] = altered(bundle.graph("forward"), by=0.9)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(EngineError, match="the engine of graph 'forward' computes wrong values"),
    ):
        open_double(bundle, DriverDouble(), size=(24, 40), plans=plans)  # type: ignore[arg-type]
    assert [c.reason for c in candidates(plans)] == ["compiled now"]


def test_figures_survive_a_manifest() -> None:
    made = EngineSet("tensorrt", "10.3.0", "8.9", "linux-x86_64", PROFILE)
    kept = replace(made, psnr={"flow": 71.3})
    assert EngineSet.from_dict(kept.as_dict()) == kept
    old = {k: v for k, v in kept.as_dict().items() if k not in ("psnr", "interface")}
    assert EngineSet.from_dict(old).interface == 1
