"""Reads the structure of an ONNX graph from its bytes, without the ``onnx`` package.

A bundle may come from anyone, and ONNX Runtime does whatever a graph asks for: it reads weights
from files, calls nested functions and runs loops. So the bytes are first read here, through
:mod:`rbvsr_deploy.bundle.onnx_fields`, which refuses all of these.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from rbvsr_deploy.bundle.onnx_fields import (
    GraphFormatError,
    count_varints,
    read_fields,
    read_varints,
)

__all__ = [
    "ELEMENT_TYPES",
    "MOST_VALUES",
    "Graph",
    "Node",
    "Tensor",
    "Value",
    "read_graph",
]

ELEMENT_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
}
"""NumPy names of the ``TensorProto.DataType`` types that a graph may use."""

MOST_VALUES = 16
"""Most elements of a tensor that are read; sizes, axes and scales have no more."""

_FORMATS = dict(zip(ELEMENT_TYPES.values(), "fBbiq?e", strict=True))  # codes of the struct module
_ATTRIBUTE_TYPES = {1: "f", 2: "i", 3: "s", 6: "floats", 7: "ints"}
_ATTRIBUTE_DEFAULTS = {"f": 0.0, "i": 0, "s": "", "floats": (), "ints": ()}
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Tensor:
    """An initializer stored in the file itself."""

    dtype: str
    shape: tuple[int, ...]
    values: tuple[float, ...] | None
    """Elements in order; ``None`` if there are more than :data:`MOST_VALUES`, as in weights."""


@dataclass(frozen=True)
class Value:
    """An input or output of a graph."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Node:
    """One operation."""

    operator: str
    inputs: tuple[str, ...]
    """Names of the inputs; an omitted optional input has an empty name."""
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    """Integers, floats, texts and tuples of numbers by name."""


@dataclass(frozen=True)
class Graph:
    """Holds the structure of a graph, without its weights."""

    opset: int
    nodes: tuple[Node, ...]
    initializers: Mapping[str, Tensor]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def read_graph(data: bytes | memoryview) -> Graph:
    """Read a serialised ``ModelProto``.

    Raises:
        GraphFormatError: it is malformed, or has features that this project never uses; the message
            is a clause that names them.
    """
    model = read_fields(data)
    graph = model.get("graph")
    if graph is None:
        raise GraphFormatError("is not an ONNX graph")
    opsets = [(item.get("domain", ""), item.get("version")) for item in model["opset_import"]]
    if len(opsets) != 1 or opsets[0][0] not in ("", "ai.onnx") or opsets[0][1] is None:
        raise GraphFormatError(f"uses the operator sets {opsets[:3]}, not only that of ONNX")
    initializers: dict[str, Tensor] = {}
    for item in graph["initializer"]:
        name = item.get("name", "")
        if not name or name in initializers:
            raise GraphFormatError(f"has the tensor '{name}' twice, or one without a name")
        initializers[name] = _tensor(name, item)
    return Graph(
        opset=opsets[0][1],
        nodes=tuple(_node(item) for item in graph["node"]),
        initializers=initializers,
        inputs=tuple(_value(item) for item in graph["input"]),
        outputs=tuple(_value(item) for item in graph["output"]),
    )


# ------------------------------------------------------------------------- from fields to meaning


def _tensor(name: str, item: Mapping[str, Any]) -> Tensor:
    if item.get("data_location", 0) != 0:
        raise GraphFormatError(f"has '{name}' in external data, which is not allowed")
    dtype = _element_type(item.get("data_type"), f"the tensor '{name}'")
    shape = tuple(item["dims"])
    if len(shape) > _MOST_DIMENSIONS or min(shape, default=0) < 0:
        raise GraphFormatError(f"has the tensor '{name}' of shape {_shown(shape)}")
    raw = item.get("raw_data", memoryview(b""))
    floats, integers, longs = (item[key] for key in ("float_data", "int32_data", "int64_data"))
    if bool(len(raw)) + bool(floats) + bool(integers) + bool(longs) > 1:
        raise GraphFormatError(f"has the values of '{name}' twice")
    layout = _FORMATS[dtype]
    if floats:
        count = sum(len(part) for part in floats) / 4
    elif listed := integers or longs:
        count = sum(map(count_varints, listed))
    else:
        count = len(raw) / struct.calcsize(layout)
    if count != prod(shape):
        raise GraphFormatError(
            f"has {count:g} values for '{name}', but its shape {_shown(shape)} takes {prod(shape)}"
        )
    if count > MOST_VALUES:
        return Tensor(dtype, shape, None)
    if listed := integers or longs:
        numbers = [number for part in listed for number in read_varints(part)]
        if dtype == "float16":  # stored as bit patterns
            numbers = [struct.unpack("<e", struct.pack("<H", n & 0xFFFF))[0] for n in numbers]
        return Tensor(dtype, shape, tuple(numbers))
    if floats:
        raw, layout = b"".join(floats), "f"
    return Tensor(dtype, shape, struct.unpack(f"<{int(count)}{layout}", raw))


def _node(item: Mapping[str, Any]) -> Node:
    operator = item.get("op_type", "")
    if item.get("domain", "") not in ("", "ai.onnx"):
        raise GraphFormatError(f"has an operator of the unknown domain '{item['domain']}'")
    attributes: dict[str, Any] = {}
    for attribute in item["attribute"]:
        name = attribute.get("name", "")
        key = _ATTRIBUTE_TYPES.get(attribute.get("type"))
        if key is None or not name or name in attributes:
            raise GraphFormatError(
                f"has the attribute '{name}' of a {operator} twice, or with a type other than "
                "numbers and text"
            )
        value = attribute.get(key, _ATTRIBUTE_DEFAULTS[key])
        attributes[name] = tuple(value) if isinstance(value, list) else value
    return Node(operator, tuple(item["input"]), tuple(item["output"]), attributes)


def _value(item: Mapping[str, Any]) -> Value:
    name = item.get("name", "")
    tensor = item.get("type", {}).get("tensor_type")
    if tensor is None or "shape" not in tensor:
        raise GraphFormatError(f"has '{name}', which is not a tensor with a shape")
    sizes = tensor["shape"]["dim"]
    if any(len(size) != 1 for size in sizes):
        raise GraphFormatError(f"has '{name}', one of whose sizes is missing or given twice")
    shape = tuple(next(iter(size.values())) for size in sizes)
    return Value(name, _element_type(tensor.get("elem_type"), f"'{name}'"), shape)


def _element_type(number: int | None, what: str) -> str:
    try:
        return ELEMENT_TYPES[number or 0]
    except KeyError:
        raise GraphFormatError(
            f"has {what} with ONNX element type {number}, not one of "
            f"{', '.join(ELEMENT_TYPES.values())}"
        ) from None


def _shown(shape: tuple[int, ...]) -> str:
    return f"({', '.join(str(size) for size in shape[:_MOST_DIMENSIONS])})"
