"""Counts the arithmetic and the memory traffic of a graph, from its nodes.

A count depends on the graph and the frame size, not on the machine or its software.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from rbvsr_deploy.bundle import Bundle
from rbvsr_deploy.bundle.graph_sizes import infer_shapes
from rbvsr_deploy.bundle.onnx_reader import ELEMENT_TYPES, Graph, Node, read_graph
from rbvsr_deploy.graphs import GRAPHS

__all__ = ["Cost", "GraphCosts"]

_BYTES = {"float32": 4, "uint8": 1, "int8": 1, "int32": 4, "int64": 8, "bool": 1, "float16": 2}

_PER_OUTPUT = {
    **dict.fromkeys(("Abs", "Add", "Clip", "Div", "Floor", "LeakyRelu", "Max", "Mul"), 1),
    **dict.fromkeys(("Relu", "Round", "Sub", "QuantizeLinear", "DequantizeLinear"), 1),
    # Four products and three sums; the weights are shared by all channels and not counted.
    **dict.fromkeys(("GridSample", "Resize"), 7),
}
"""Floating-point operations per value of the output; operators not listed only move data."""


@dataclass(frozen=True)
class Cost:
    """Sums up what one run of a graph does."""

    flops: int
    """Floating-point operations; a product and its sum are two."""
    bytes: int
    """Bytes read and written if every node reads its inputs and writes its output once. Runtimes
    that fuse nodes move less.
    """
    least_bytes: int
    """Bytes of the graph's inputs, outputs and weights: no implementation can move less."""
    nodes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.least_bytes + other.least_bytes,
            self.nodes + other.nodes,
        )


class GraphCosts:
    """Counts the graphs of a bundle.

    Args:
        bundle: an opened bundle; its graphs were checked when it was opened.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._graph = cache(self._read)
        self._cost = cache(self._count)

    def of(self, graph: str, shapes: Sequence[tuple[int, ...]]) -> Cost:
        """Return the cost of one run.

        Args:
            graph: its name.
            shapes: of its inputs, in the contract's order.
        """
        return self._cost(graph, tuple(shapes))

    def _read(self, name: str) -> Graph:
        return read_graph(self._bundle.graph(name))

    def _count(self, name: str, shapes: tuple[tuple[int, ...], ...]) -> Cost:
        graph, spec = self._graph(name), GRAPHS[name]
        precision = self._bundle.manifest.precision
        inputs = {item.name: shape for item, shape in zip(spec.inputs, shapes, strict=True)}
        found = infer_shapes(graph, inputs)
        dtypes = {name: tensor.dtype for name, tensor in graph.initializers.items()}
        dtypes |= {item.name: item.numpy_dtype(precision) for item in spec.inputs}
        flops = moved = 0
        for node in graph.nodes:
            dtypes[node.outputs[0]] = _dtype(node, dtypes)
            flops += _flops(node, found)
            moved += sum(_size(name, found, dtypes) for name in (*node.inputs, *node.outputs))
        ends = [*graph.initializers, *inputs, *(item.name for item in spec.outputs)]
        least = sum(_size(name, found, dtypes) for name in ends)
        return Cost(flops=flops, bytes=moved, least_bytes=least, nodes=len(graph.nodes))


def _flops(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> int:
    outputs = math.prod(shapes[node.outputs[0]])
    match node.operator:
        case "Conv":
            _, per_group, *kernel = shapes[node.inputs[1]]
            bias = 1 if len(node.inputs) > 2 else 0
            return outputs * (2 * per_group * math.prod(kernel) + bias)
        case "MatMul":
            return outputs * 2 * shapes[node.inputs[0]][-1]
        case "AveragePool":
            return outputs * int(math.prod(node.attributes["kernel_shape"]))
        case "ReduceMean":
            return math.prod(shapes[node.inputs[0]])
        case operator:
            return outputs * _PER_OUTPUT.get(operator, 0)


def _dtype(node: Node, dtypes: Mapping[str, str]) -> str:
    """Return the dtype of a node's output: with few exceptions that of its first input."""
    match node.operator:
        case "Cast":
            to: Any = node.attributes["to"]
            return ELEMENT_TYPES[to]
        case "Shape":
            return "int64"
        case "QuantizeLinear":
            return dtypes[node.inputs[2]] if len(node.inputs) > 2 else "uint8"
        case "DequantizeLinear":
            return dtypes[node.inputs[1]]
        case _:
            return dtypes[node.inputs[0]]


def _size(name: str, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> int:
    return math.prod(shapes[name]) * _BYTES[dtypes[name]] if name else 0
