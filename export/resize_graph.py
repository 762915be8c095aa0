"""Writes the ``resize`` graph, whose shapes follow from its inputs without arithmetic on shapes.

torch's exporter gathers with flat indices only and computes the shapes again, in forty nodes. The
graph is compared with its torch module like all others (:mod:`rbvsr_deploy.export.verify`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from rbvsr_deploy.graphs import GRAPHS, Precision

__all__ = ["resize_graph"]


def resize_graph(precision: Precision, *, opset: int) -> onnx.ModelProto:
    """Return the graph for images of a float type."""
    nodes: list[onnx.NodeProto] = []

    def add(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        name = f"{operator.lower()}_{output}"
        nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def by_blocks(values: str, places: str, weights: str) -> str:
        """Resize the rows of (N, 3, H, W) to (N, 3, R, P, W)."""
        gathered = add("Gather", [values, places], f"{places}_gathered", axis=2)
        return add("MatMul", [weights, gathered], f"{places}_made")

    wide = add("Cast", ["picture"], "wide", to=onnx.TensorProto.FLOAT)
    clamped = add("Clip", [wide, "zero", "one"], "clamped")
    made = by_blocks(clamped, "rows", "row_weights")
    # Columns take the place of rows: (N, 3, W, RP).
    turned = add("Transpose", [made], "rows_turned", perm=[0, 1, 4, 2, 3])
    narrow = add("Reshape", [turned, "join_last"], "rows_resized")
    made = by_blocks(narrow, "columns", "column_weights")  # (N, 3, S, Q, RP)
    features = helper.np_dtype_to_tensor_dtype(np.dtype(precision))
    add("Cast", [made], "blocks", to=features)
    levels = add("Clip", [add("Mul", [made, "white"], "scaled"), "zero", "white"], "levels")
    # In two steps: a transposition that reverses all axes takes ONNX Runtime twenty times as long.
    upright = add("Transpose", [add("Round", [levels], "rounded")], "upright", perm=[0, 1, 4, 2, 3])
    joined = add("Reshape", [upright, "join_last"], "joined")  # (N, 3, RP, SQ)
    pixels = add("Transpose", [joined], "pixels", perm=[0, 2, 3, 1])
    # Last, as casts are TensorRT's only uint8 operation.
    add("Cast", [pixels], "image", to=onnx.TensorProto.UINT8)

    spec = GRAPHS["resize"]
    inputs, outputs = (
        [
            helper.make_tensor_value_info(
                item.name,
                helper.np_dtype_to_tensor_dtype(np.dtype(item.numpy_dtype(precision))),
                item.shape,
            )
            for item in items
        ]
        for items in (spec.inputs, spec.outputs)
    )
    constants = [
        numpy_helper.from_array(np.array(value, dtype), name)
        for name, value, dtype in (
            ("zero", 0.0, np.float32),
            ("one", 1.0, np.float32),
            ("white", 255.0, np.float32),
            ("join_last", [0, 0, 0, -1], np.int64),
        )
    ]
    graph = helper.make_graph(nodes, spec.name, inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
