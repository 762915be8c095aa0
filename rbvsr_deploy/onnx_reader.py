"""Reads the structure of an ONNX graph from its bytes, without the ``onnx`` package, and refuses
what the graphs of this project never hold.

A bundle may come from anybody, and running it needs only ONNX Runtime, which follows whatever a
graph says: files to read weights from, functions that call functions, loops. So the bytes are read
here first, by tables of the fields that may occur. Whatever is not in a table is refused: external
data, model-local functions, subgraphs, sparse and string tensors, and fields that a later version
of ONNX may bring.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

__all__ = [
    "ELEMENT_TYPES",
    "MOST_VALUES",
    "Graph",
    "GraphFormatError",
    "Node",
    "Tensor",
    "Value",
    "read_graph",
]

ELEMENT_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool"} | {
    10: "float16"
}
"""NumPy's names of the types of ``TensorProto.DataType`` that a graph may use."""

MOST_VALUES = 16
"""How many values of a tensor are read: sizes, axes and scales have no more."""

_FORMATS = dict(zip(ELEMENT_TYPES.values(), "fBbiq?e", strict=True))  # of the struct module
_MOST_DIMENSIONS = 8
_LONGEST_TEXT = 4096  # bytes of a name; the exporter's longest has 70
_MOST_FIELDS = 2**18  # of all messages; the largest graph of the published network has 7,000


class GraphFormatError(ValueError):
    """The bytes are no ONNX graph, or hold what no graph of this project holds."""


@dataclass(frozen=True)
class Tensor:
    """An initializer, its values in the file itself."""

    dtype: str
    shape: tuple[int, ...]
    values: tuple[float, ...] | None
    """In order; ``None`` where there are more than :data:`MOST_VALUES`: those are weights."""


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
    """Empty names are optional inputs that are left out."""
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    """Integers, floats, text, tuples of numbers."""


@dataclass(frozen=True)
class Graph:
    """What :func:`read_graph` gives."""

    opset: int
    nodes: tuple[Node, ...]
    initializers: Mapping[str, Tensor]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def read_graph(data: bytes) -> Graph:
    """Read a serialised ``ModelProto``.

    Raises:
        GraphFormatError: the bytes are cut off or malformed, or have a field that is not in the
            tables below; the message is a clause that says which.
    """
    model = _Reader(_MOST_FIELDS).read(memoryview(data), _MODEL, "the model")
    graph = model.get("graph")
    if graph is None:
        raise GraphFormatError("is no ONNX graph")
    opsets = [(item.get("domain", ""), item.get("version")) for item in model["opset_import"]]
    if len(opsets) != 1 or opsets[0][0] not in ("", "ai.onnx") or opsets[0][1] is None:
        raise GraphFormatError(f"uses the operator sets {opsets}, not ONNX's own alone")
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
        raise GraphFormatError(f"gives the values of '{name}' twice")
    layout = _FORMATS[dtype]
    if floats:
        count = sum(len(part) for part in floats) / 4
    elif listed := integers or longs:
        count = sum(map(_count_varints, listed))
    else:
        count = len(raw) / struct.calcsize(layout)
    if count != prod(shape):
        raise GraphFormatError(
            f"has {count:g} values of '{name}', whose shape {_shown(shape)} takes {prod(shape)}"
        )
    if count > MOST_VALUES:
        return Tensor(dtype, shape, None)
    if listed := integers or longs:
        numbers = [number for part in listed for number in _varints(part)]
        if dtype == "float16":  # its bits
            numbers = [struct.unpack("<e", struct.pack("<H", n & 0xFFFF))[0] for n in numbers]
        return Tensor(dtype, shape, tuple(numbers))
    if floats:
        raw, layout = b"".join(floats), "f"
    return Tensor(dtype, shape, struct.unpack(f"<{int(count)}{layout}", raw))


def _node(item: Mapping[str, Any]) -> Node:
    operator = item.get("op_type", "")
    if item.get("domain", "") not in ("", "ai.onnx"):
        raise GraphFormatError(f"has an operator of the foreign domain '{item['domain']}'")
    attributes: dict[str, Any] = {}
    for attribute in item["attribute"]:
        name = attribute.get("name", "")
        key = _ATTRIBUTE_TYPES.get(attribute.get("type"))
        if key is None or not name or name in attributes:
            raise GraphFormatError(
                f"has the attribute '{name}' of a {operator} twice, or of another type than "
                "numbers and text"
            )
        value = attribute.get(key, _ATTRIBUTE_DEFAULTS[key])
        attributes[name] = tuple(value) if isinstance(value, list) else value
    return Node(operator, tuple(item["input"]), tuple(item["output"]), attributes)


def _value(item: Mapping[str, Any]) -> Value:
    name = item.get("name", "")
    tensor = item.get("type", {}).get("tensor_type")
    if tensor is None or "shape" not in tensor:
        raise GraphFormatError(f"has '{name}', which is no tensor with a shape")
    shape = tuple(
        size.get("dim_value", size.get("dim_param", "")) for size in tensor["shape"]["dim"]
    )
    return Value(name, _element_type(tensor.get("elem_type"), f"'{name}'"), shape)


def _element_type(number: int | None, what: str) -> str:
    try:
        return ELEMENT_TYPES[number or 0]
    except KeyError:
        raise GraphFormatError(
            f"has {what} of ONNX's element type {number}, not of "
            f"{', '.join(ELEMENT_TYPES.values())}"
        ) from None


def _shown(shape: tuple[int, ...]) -> str:
    return f"({', '.join(str(size) for size in shape[:_MOST_DIMENSIONS])})"


# ------------------------------------------------------------------------------ the wire format


@dataclass(frozen=True)
class _Field:
    """A field of a message that may occur."""

    name: str
    kind: str
    """``int``, ``float``, ``text``, ``bytes``, ``listed`` (numbers left unread), ``message``,
    ``skip`` or ``refused``.
    """
    repeated: bool = False
    table: Mapping[int, _Field] | None = None
    """Of a message."""


_Table = Mapping[int, _Field]


def _message(name: str, table: _Table, *, repeated: bool = False) -> _Field:
    return _Field(name, "message", repeated, table)


# The numbers are those of onnx.proto3. What is not here is refused; the kind "refused" is for a
# sentence that names what it is.
_DIMENSION: _Table = {1: _Field("dim_value", "int"), 2: _Field("dim_param", "text")}
_SHAPE: _Table = {1: _message("dim", _DIMENSION, repeated=True)}
_TENSOR_TYPE: _Table = {1: _Field("elem_type", "int"), 2: _message("shape", _SHAPE)}
_TYPE: _Table = {1: _message("tensor_type", _TENSOR_TYPE)}
_VALUE: _Table = {
    1: _Field("name", "text"),
    2: _message("type", _TYPE),
    3: _Field("doc_string", "skip"),
}
_TENSOR: _Table = {
    1: _Field("dims", "int", repeated=True),
    2: _Field("data_type", "int"),
    4: _Field("float_data", "listed", repeated=True),
    5: _Field("int32_data", "listed", repeated=True),
    7: _Field("int64_data", "listed", repeated=True),
    8: _Field("name", "text"),
    9: _Field("raw_data", "bytes"),
    12: _Field("doc_string", "skip"),
    14: _Field("data_location", "int"),
    6: _Field("text in a tensor", "refused"),
    13: _Field("external data", "refused"),
}
_ATTRIBUTE: _Table = {
    1: _Field("name", "text"),
    2: _Field("f", "float"),
    3: _Field("i", "int"),
    4: _Field("s", "text"),
    7: _Field("floats", "float", repeated=True),
    8: _Field("ints", "int", repeated=True),
    13: _Field("doc_string", "skip"),
    20: _Field("type", "int"),
    5: _Field("a tensor in an attribute", "refused"),
    6: _Field("a graph within a graph", "refused"),
    11: _Field("graphs within a graph", "refused"),
}
_ATTRIBUTE_TYPES = {1: "f", 2: "i", 3: "s", 6: "floats", 7: "ints"}
_ATTRIBUTE_DEFAULTS = {"f": 0.0, "i": 0, "s": "", "floats": (), "ints": ()}
_NODE: _Table = {
    1: _Field("input", "text", repeated=True),
    2: _Field("output", "text", repeated=True),
    3: _Field("name", "skip"),
    4: _Field("op_type", "text"),
    5: _message("attribute", _ATTRIBUTE, repeated=True),
    6: _Field("doc_string", "skip"),
    7: _Field("domain", "text"),
}
_GRAPH: _Table = {
    1: _message("node", _NODE, repeated=True),
    2: _Field("name", "skip"),
    5: _message("initializer", _TENSOR, repeated=True),
    10: _Field("doc_string", "skip"),
    11: _message("input", _VALUE, repeated=True),
    12: _message("output", _VALUE, repeated=True),
    13: _message("value_info", _VALUE, repeated=True),  # notes of onnx's version converter
    15: _Field("sparse tensors", "refused"),
}
_OPSET: _Table = {1: _Field("domain", "text"), 2: _Field("version", "int")}
_MODEL: _Table = {
    1: _Field("ir_version", "int"),
    2: _Field("producer_name", "skip"),
    3: _Field("producer_version", "skip"),
    4: _Field("domain", "skip"),
    5: _Field("model_version", "int"),
    6: _Field("doc_string", "skip"),
    7: _message("graph", _GRAPH),
    8: _message("opset_import", _OPSET, repeated=True),
    20: _Field("training information", "refused"),
    25: _Field("functions of its own", "refused"),
}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CONTINUED = bytes(range(0x80, 0x100))  # bytes of a varint that are not its last


class _Reader:
    """Reads messages, and no more fields in all than it has been allowed."""

    def __init__(self, most: int) -> None:
        self._left = most

    def read(self, data: memoryview, table: _Table, where: str) -> dict[str, Any]:
        """A message as a dictionary; repeated fields are lists and always there. The tables bound
        how deep messages nest.
        """
        found: dict[str, Any] = {field.name: [] for field in table.values() if field.repeated}
        for number, kind, value in _fields(data):
            field = table.get(number)
            if field is None or field.kind == "refused":
                what = f"the field {number} of {where}" if field is None else field.name
                raise GraphFormatError(f"has {what}, which is not allowed")
            if field.repeated and kind == _BYTES and field.kind in ("int", "float"):
                self._count(len(value))
                found[field.name].extend(_packed(value, field.kind))
                continue
            self._count(1)
            if field.kind == "message" and kind == _BYTES and field.table is not None:
                decoded = self.read(value, field.table, f"its {field.name}")
            else:
                decoded = _decoded(field, kind, value)
            if field.repeated:
                found[field.name].append(decoded)
            elif field.name in found:  # of two, parsers take the last or merge them
                raise GraphFormatError(f"has the {field.name} of {where} twice")
            else:
                found[field.name] = decoded
        return found

    def _count(self, fields: int) -> None:
        self._left -= fields
        if self._left < 0:
            raise GraphFormatError("has more parts than any network of this kind")


def _fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Number, wire type and undecoded value of every field."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield number, kind, value
            continue
        if kind == _BYTES:
            size, position = _varint(data, position)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise GraphFormatError(f"has the wire type {kind}, which ONNX does not use")
        if size > end - position:
            raise GraphFormatError("is cut off")
        yield number, kind, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """An unsigned number of up to 64 bits, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise GraphFormatError("is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 2**64:
                break
            return value, position
    raise GraphFormatError("has a number of more than 64 bits")


def _decoded(field: _Field, kind: int, value: Any) -> Any:
    match field.kind, kind:
        case "int", 0:
            return _signed(value)
        case "float", 5:
            return struct.unpack("<f", value)[0]
        case (("bytes" | "listed"), 2):
            return value
        case "text", 2 if len(value) <= _LONGEST_TEXT:
            try:
                return str(value, "utf-8")
            except UnicodeDecodeError:
                pass
        case "skip", 2 if len(value) <= _LONGEST_TEXT:
            return None
    raise GraphFormatError(f"has a field '{field.name}' that is not what ONNX has there")


def _packed(data: memoryview, kind: str) -> list[float] | list[int]:
    """Numbers that follow each other within one field."""
    if kind == "int":
        return _varints(data)
    if len(data) % 4:
        raise GraphFormatError("is cut off")
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def _varints(data: memoryview) -> list[int]:
    numbers, position = [], 0
    while position < len(data):
        number, position = _varint(data, position)
        numbers.append(_signed(number))
    return numbers


def _count_varints(data: memoryview) -> int:
    """How many there are, without reading them: int8 weights are written like that."""
    return len(bytes(data).translate(None, delete=_CONTINUED))


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
