"""Refuses graphs that the exporter would not have written, before any runtime sees them.

A bundle may come from anyone, and an ONNX graph is a program: it can read files (external data),
loop for ever and request any amount of memory. This module restricts the operators to those the
network needs; :mod:`rbvsr_deploy.bundle.onnx_reader` restricts the file format.
"""

from __future__ import annotations

from collections.abc import Sequence

from rbvsr_deploy.bundle.graph_sizes import check_sizes
from rbvsr_deploy.bundle.onnx_fields import GraphFormatError
from rbvsr_deploy.bundle.onnx_reader import ELEMENT_TYPES, Graph, Value, read_graph
from rbvsr_deploy.graphs import GraphSpec, Precision, TensorSpec

__all__ = ["OPERATORS", "check_graph_bytes"]

OPSETS = (17, 18, 19)

# Collected from the output of export_graph, convert_opset and quantise for the published, the
# compact and a BasicVSR network, in float32, float16 and int8, at opsets 17 to 19;
# tests/security/test_bundles.py repeats the collection. Floor is an addition: hand-written graphs
# round with it, and it is as harmless as Round.
# fmt: off
OPERATORS = frozenset((
    "Abs", "Add", "AveragePool", "Cast", "Clip", "Concat", "Conv", "DepthToSpace",
    "DequantizeLinear", "Div", "Expand", "Floor", "Gather", "GridSample", "LeakyRelu", "MatMul",
    "Max", "Mul", "QuantizeLinear", "Range", "ReduceMean", "Relu", "Reshape", "Resize", "Round",
    "Shape", "Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze",
))
# fmt: on
"""Operators allowed in a graph; none reads files, contains a subgraph or produces text."""

_FROM_CONSTANTS = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Operators that may have only constant inputs, once per constant: they round the weights of int8
convolutions. Runtimes fold such nodes when they open a graph, so with other operators, or with
repeated use of one constant, a few bytes could expand to any size.
"""


def check_graph_bytes(
    data: bytes | memoryview, spec: GraphSpec, *, precision: Precision, channels: int
) -> None:
    """Check a serialised graph of unknown origin.

    Args:
        data: a serialised ``ModelProto``.
        spec: the contract it must fulfil.
        precision, channels: precision and state channels of its bundle.

    Raises:
        GraphFormatError: it is not a graph that the exporter writes for ``spec``; the message is a
            clause that gives the reason.
    """
    if data[4:8] == b"ORTM":
        raise GraphFormatError("is in ONNX Runtime's own format")
    graph = read_graph(data)
    if graph.opset not in OPSETS:
        raise GraphFormatError(
            f"uses ONNX operator set {graph.opset}, not {OPSETS[0]} to {OPSETS[-1]}"
        )
    for side, values, items in (
        ("inputs", graph.inputs, spec.inputs),
        ("outputs", graph.outputs, spec.outputs),
    ):
        _check_signature(side, values, items, precision=precision, channels=channels)
    _check_nodes(graph)
    check_sizes(graph, spec, channels=channels)


def _check_signature(
    side: str,
    values: Sequence[Value],
    items: Sequence[TensorSpec],
    *,
    precision: Precision,
    channels: int,
) -> None:
    want = [
        Value(
            item.name,
            item.numpy_dtype(precision),
            tuple(channels if size == "C" else size for size in item.shape),
        )
        for item in items
    ]
    if list(values) != want:
        raise GraphFormatError(
            f"has the {side} {_listed(values[:8])} instead of {_listed(want)}: it belongs to "
            "another model"
        )


def _listed(values: Sequence[Value]) -> str:
    return ", ".join(
        f"{value.name} {value.dtype} ({', '.join(map(str, value.shape))})" for value in values
    )


def _check_nodes(graph: Graph) -> None:
    """Check the operators, and that every value is computed once, before it is used."""
    constants = {"", *graph.initializers}
    folded: set[str] = set()
    known = constants | {value.name for value in graph.inputs}
    if len(known) != 1 + len(graph.initializers) + len(graph.inputs):
        raise GraphFormatError("has an initializer for one of its inputs")
    for node in graph.nodes:
        if node.operator not in OPERATORS:
            raise GraphFormatError(
                f"has the operator '{node.operator}', which rbvsr-export never writes"
            )
        if node.operator == "Cast" and node.attributes.get("to") not in ELEMENT_TYPES:
            raise GraphFormatError("has a Cast to something other than numbers")
        for name in node.inputs:
            if name not in known:
                raise GraphFormatError(f"uses '{name}' before it is computed")
        if constants.issuperset(node.inputs):
            is_repeated = node.inputs[0] in folded or (
                node.operator == "QuantizeLinear" and node.inputs[0] not in graph.initializers
            )
            if node.operator not in _FROM_CONSTANTS or is_repeated:
                raise GraphFormatError(f"has a {node.operator} with only constant inputs")
            constants.update(node.outputs)
            folded.update(node.inputs[:1])
        for name in node.outputs:
            if not name or name in known:
                raise GraphFormatError(f"computes '{name}' twice, or a value without a name")
            known.add(name)
    for value in graph.outputs:
        if value.name not in known or value.name in constants:
            raise GraphFormatError(f"does not compute its output '{value.name}'")
