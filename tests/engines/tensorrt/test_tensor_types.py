"""Tests that the types of a network that hides them are those of the graph.

TensorRT-RTX parses the same graphs into networks that report their types.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rbvsr_deploy.bundle import open_bundle
from rbvsr_deploy.engines.tensorrt.flavours import TensorRT, load_flavour
from rbvsr_deploy.engines.tensorrt.tensor_types import layers_of, outputs_of, reported_types
from rbvsr_deploy.errors import MissingDependencyError
from tests.support.published_graphs import published_graph
from tests.support.tensorrt_bindings import bindings


def parsed(tensorrt: TensorRT, model: bytes) -> Any:
    builder = tensorrt.module.Builder(tensorrt.logger)
    network = tensorrt.create_network(builder)
    assert tensorrt.module.OnnxParser(network, tensorrt.logger).parse(model)
    return network


def check(model: bytes) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Compare all floating-point types with TensorRT-RTX's; return them, and the hidden ones."""
    rtx, old = load_flavour("tensorrt-rtx"), TensorRT("tensorrt", bindings("8.6.1"))
    true = rtx.tensor_types(parsed(rtx, model), model)
    network = parsed(old, model)
    found = old.tensor_types(network, model)
    assert found.keys() == true.keys()
    # What the parser adds for constants of its own has no type in the graph, and is not computed.
    known = {
        tensor.name
        for layer in layers_of(network)
        for tensor in outputs_of(layer)
        if layer.type.name != "CONSTANT"
    }
    floats = {name: dtype for name, dtype in true.items() if dtype.startswith("float")}
    assert {n: found[n] for n in floats if n in known} == {
        n: dtype for n, dtype in floats.items() if n in known
    }
    return found, reported_types(network)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_types_of_exported_graphs(
    precision: str, tiny_bundle: Path, tiny_bundle_float16: Path
) -> None:
    """They equal TensorRT-RTX's own in every graph, where 8.6 reports float32 for all layers."""
    path = tiny_bundle if precision == "float32" else tiny_bundle_float16
    for name, graph in open_bundle(path).graphs().items():
        found, hidden = check(graph)
        assert "int64" not in hidden.values()
        if precision == "float16" and name in ("clean", "flow", "backward", "forward"):
            assert found != hidden


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clean", "backward", "reconstruct"])
def test_types_of_published_graphs(name: str) -> None:
    """They equal TensorRT-RTX's own in the published network, in float16."""
    check(published_graph(name).SerializeToString())


def test_8_6_hides_types_as_it_was_seen_to(tiny_bundle_float16: Path) -> None:
    """The double reports types as a listing of a network parsed by 8.6.0 does.

    Inputs, outputs, casts and integers have their types, and all else is float32.
    """
    model = open_bundle(tiny_bundle_float16).graph("clean")
    network = parsed(TensorRT("tensorrt", bindings("8.6.1")), model)
    seen = [
        (
            layer.type.name,
            *(tensor.dtype.name for tensor in (layer.get_input(0), *outputs_of(layer))),
        )
        for layer in network.layers
    ]
    assert seen[:4] == [
        ("CONVOLUTION", "HALF", "FLOAT"),
        ("ACTIVATION", "FLOAT", "FLOAT"),
        ("CONVOLUTION", "FLOAT", "FLOAT"),
        ("ACTIVATION", "FLOAT", "FLOAT"),
    ]
    (last,) = (layer for layer in network.layers if layer.get_output(0).name == "cleaned")
    assert (last.type.name, last.get_output(0).dtype.name) == ("ELEMENTWISE", "HALF")


def test_what_the_parser_adds_has_the_type_of_its_inputs() -> None:
    """A constant that the parser gives another shape is float16 with float16 only."""
    nodes = [
        helper.make_node("Mul", ["frame", "half"], ["features"], name="mul"),
        helper.make_node("Add", ["flow", "one"], ["moved"], name="add"),
    ]
    inputs = {"frame": TensorProto.FLOAT16, "flow": TensorProto.FLOAT}
    outputs = {"features": TensorProto.FLOAT16, "moved": TensorProto.FLOAT}
    read, made = (
        [helper.make_tensor_value_info(name, kind, [1, 2, 8, 8]) for name, kind in side.items()]
        for side in (inputs, outputs)
    )
    constants = [
        numpy_helper.from_array(np.array(0.5, np.float16), "half"),
        numpy_helper.from_array(np.array(1, np.float32), "one"),
    ]
    graph = helper.make_graph(nodes, "made_up", read, made, constants)
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    found, _ = check(model.SerializeToString())
    added = {n: dtype for n, dtype in found.items() if n not in (*inputs, *outputs)}
    assert sorted(added.values()) == ["float16", "float16", "float32", "float32"]


def test_onnx_is_needed_before_10(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle_float16: Path
) -> None:
    """The message names the extra; later versions report their types."""
    model = open_bundle(tiny_bundle_float16).graph("clean")
    old, new = (TensorRT("tensorrt", bindings(version)) for version in ("8.6.1", "10.3.0"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"rbvsr-deploy\[engines\]"):
        old.tensor_types(parsed(old, model), model)
    assert "float16" in new.tensor_types(parsed(new, model), model).values()
