"""Tests that exported graphs have sizes that TensorRT 8.6 reads as they are meant."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from rbvsr_deploy.export.onnx_export import _read_whole_shapes


@pytest.mark.parametrize("bounds", [{"start": 2, "end": 3}, {"start": 3}, {"end": 1}])
@pytest.mark.parametrize("opset", [17, 18])
def test_bounds_and_missing_axes_are_written_out(bounds: dict[str, Any], opset: int) -> None:
    """No Shape keeps its bounds, every Squeeze has its axes, and the numbers are the same."""
    nodes = [
        helper.make_node("Shape", ["x"], ["part"], name="size", **bounds),
        helper.make_node("Squeeze", ["part"], ["number"], name="single"),
        helper.make_node("Shape", ["x"], ["pair"], name="pair", start=2, end=4),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "sizes",
        [value("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [value("number", TensorProto.INT64, []), value("pair", TensorProto.INT64, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    x = {"x": np.zeros((5, 3, 6, 7), np.float32)}
    before = ReferenceEvaluator(model).run(None, x)
    _read_whole_shapes(model.graph)
    onnx.checker.check_model(model, full_check=True)
    for node in model.graph.node:
        assert node.op_type != "Shape" or not node.attribute
        assert node.op_type != "Squeeze" or len(node.input) == 2
    for got, want in zip(ReferenceEvaluator(model).run(None, x), before, strict=True):
        np.testing.assert_array_equal(got, want)
