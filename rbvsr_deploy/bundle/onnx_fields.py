"""Reads the allowed fields of an ONNX file without the ``onnx`` package, and refuses all others.

External data, model-local functions, subgraphs, sparse tensors and text are not in the tables, nor
are fields that a later version of ONNX may add.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["GraphFormatError", "count_varints", "read_fields", "read_varints"]

_LONGEST_TEXT = 1024  # bytes of a name; the exporter's longest name has 70
_MOST_FIELDS = 2**16  # of all messages; the largest graph of the published network has 7,000


class GraphFormatError(ValueError):
    """The bytes are not an ONNX graph, or the graph has features that this project never uses."""


def read_fields(data: bytes | memoryview) -> dict[str, Any]:
    """Read a serialised ``ModelProto`` as nested dictionaries by field name. Repeated fields are
    always present as lists; other fields are present if the file has them.

    Raises:
        GraphFormatError: the bytes are cut off or malformed, or have a field that is not in the
            tables; the message is a clause that gives the reason.
    """
    return _Reader(_MOST_FIELDS).read(memoryview(data), _MODEL, "the model")


def read_varints(data: memoryview) -> list[int]:
    """Read consecutive signed numbers.

    Raises:
        GraphFormatError: the last one is cut off, or one has more than 64 bits.
    """
    numbers, position = [], 0
    while position < len(data):
        number, position = _varint(data, position)
        numbers.append(_signed(number))
    return numbers


def count_varints(data: memoryview) -> int:
    """Count consecutive numbers without decoding them, for int8 weights."""
    return len(bytes(data).translate(None, delete=_CONTINUED))


# --------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class _Field:
    """Describes a field that a message may have."""

    name: str
    kind: str
    """``int``, ``float``, ``text``, ``bytes``, ``listed`` (numbers left unread), ``message``,
    ``skip`` or ``refused``.
    """
    repeated: bool = False
    table: Mapping[int, _Field] | None = None
    """Fields of a nested message."""


_Table = Mapping[int, _Field]


def _message(name: str, table: _Table, *, repeated: bool = False) -> _Field:
    return _Field(name, "message", repeated, table)


# The numbers are those of onnx.proto3. All other fields are refused; the kind "refused" gives some
# of them a name for the error message.
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

# -------------------------------------------------------------------------------- the wire format

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CONTINUED = bytes(range(0x80, 0x100))  # bytes of a varint that are not its last


class _Reader:
    """Reads messages up to a total number of fields."""

    def __init__(self, most: int) -> None:
        self._left = most

    def read(self, data: memoryview, table: _Table, where: str) -> dict[str, Any]:
        """Read a message as a dictionary; repeated fields are always present as lists. The tables
        limit the nesting depth.
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
            elif field.name in found:  # parsers differ: the last one wins, or they merge
                raise GraphFormatError(f"has the {field.name} of {where} twice")
            else:
                found[field.name] = decoded
        return found

    def _count(self, fields: int) -> None:
        self._left -= fields
        if self._left < 0:
            raise GraphFormatError("has more fields than any network of this kind")


def _fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Yield number, wire type and undecoded value of every field."""
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
    """Decode an unsigned number of up to 64 bits; return it and the position after it."""
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
    raise GraphFormatError(f"has a field '{field.name}' that is not valid ONNX")


def _packed(data: memoryview, kind: str) -> list[float] | list[int]:
    """Decode the numbers of a packed field."""
    if kind == "int":
        return read_varints(data)
    if len(data) % 4:
        raise GraphFormatError("is cut off")
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
