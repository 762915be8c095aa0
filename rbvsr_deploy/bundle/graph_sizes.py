"""Checks the size of every value in a graph without running it.

A graph of one kilobyte can request any amount of memory: it resizes, repeats and pads by numbers
that it contains or computes from the frame size. So shapes are inferred through the graph for two
frame sizes: outputs must have the shapes of the contract, and no intermediate value may be larger
than this network needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rbvsr_deploy.bundle.onnx_fields import GraphFormatError
from rbvsr_deploy.bundle.onnx_reader import ELEMENT_TYPES, MOST_VALUES, Graph, Node
from rbvsr_deploy.graphs import GraphSpec, named_sizes

__all__ = ["check_sizes", "infer_shapes"]

_FRAMES = ((2, 18, 25), (1, 2160, 3840))
"""N, H and W of the frames: distinct, so that they cannot be confused, and not multiples of 32. The
first frame is small, so that large values that do not depend on the frame size are found, too."""

_MULTIPLE = 64  # the flow network works on frames enlarged to a multiple of 32

_COUNTED: Mapping[str, Callable[[float], float]] = {"int64": int, "float32": float}
"""Types in which sizes are computed. Smaller types would overflow."""

_Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Value:
    """Holds what can be inferred about a value without running the graph."""

    shape: _Shape
    numbers: tuple[float, ...] | None = None
    """Elements in order, if they are few and follow from shapes and constants alone."""

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def check_sizes(graph: Graph, spec: GraphSpec, *, channels: int) -> None:
    """Infer and check the shapes in a graph whose operators and inputs have been checked.

    Args:
        graph: the graph to check.
        spec: its contract.
        channels: state channels of the bundle.

    Raises:
        GraphFormatError: the shape of an output differs from the contract; a value is too large, or
            its size depends on pixels; or a node is invalid.
    """
    sizes = [_of_frame(graph, spec, frame, channels=channels) for frame in _FRAMES]
    # Runtimes fold a shape that is always the same when they open the graph.
    if any(small == large for small, large in zip(*sizes, strict=True)):
        raise GraphFormatError("takes a shape that does not depend on the frame size")


def infer_shapes(graph: Graph, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every value of a graph that has been checked.

    Args:
        graph: the graph.
        inputs: shapes of its inputs, by name.
    """
    values = _constants(graph) | {name: _Value(shape) for name, shape in inputs.items()}
    for node in graph.nodes:
        values[node.outputs[0]] = _infer(node, [values[name] for name in node.inputs])
    return {name: value.shape for name, value in values.items()}


def _constants(graph: Graph) -> dict[str, _Value]:
    return {"": _Value(())} | {
        name: _Value(tensor.shape, tensor.values if tensor.dtype in _COUNTED else None)
        for name, tensor in graph.initializers.items()
    }


def _of_frame(
    graph: Graph, spec: GraphSpec, frame: tuple[int, int, int], *, channels: int
) -> list[tuple[float, ...] | None]:
    """Check one frame size and return the values of the graph's Shape nodes."""
    n, height, width = frame
    names = named_sizes(n, height, width, channels=channels)

    def contract(shape: Sequence[int | str]) -> _Shape:
        return tuple(size if isinstance(size, int) else names[size] for size in shape)

    values = _constants(graph)
    values |= {item.name: _Value(contract(item.shape)) for item in spec.inputs}
    area = n * (height + _MULTIPLE) * (width + _MULTIPLE)
    largest = area * (32 * channels + 2048)
    left = 16 * largest  # for all values together; the published network needs 3 * largest
    found: list[tuple[float, ...] | None] = []
    for node in graph.nodes:
        try:
            value = _infer(node, [values[name] for name in node.inputs])
        except _DependsOnPixelsError:
            raise GraphFormatError(f"has a {node.operator} whose size depends on pixels") from None
        except (LookupError, ValueError, TypeError, ArithmeticError):
            raise GraphFormatError(f"has an invalid {node.operator}") from None
        left -= value.count
        if value.count > largest or left < 0 or min(value.shape, default=0) < 0:
            shape = " x ".join(map(str, value.shape))
            raise GraphFormatError(
                f"has a {node.operator} that makes {shape} values from a frame of "
                f"{width}x{height}, more than this network needs"
            )
        if node.operator == "Shape":
            found.append(value.numbers)
        values[node.outputs[0]] = value
    for item in spec.outputs:
        if values[item.name].shape != contract(item.shape):
            raise GraphFormatError(
                f"computes '{item.name}' with shape {values[item.name].shape} instead of "
                f"{contract(item.shape)}"
            )
    return found


# ------------------------------------------------------------------------------------ operators


def _infer(node: Node, inputs: list[_Value]) -> _Value:
    """Infer the output of a node. Built-in Python exceptions mean that the node is invalid."""
    if len(node.outputs) != 1:
        raise ValueError(node.outputs)
    value = _RULES[node.operator](node.attributes, *inputs)
    if len(value.shape) > 8:
        raise ValueError(value.shape)
    if value.numbers is not None:
        if len(value.numbers) != value.count or not all(abs(x) < 2**53 for x in value.numbers):
            raise ValueError(value.numbers)
        if value.count > MOST_VALUES:
            return _Value(value.shape)
    return value


class _DependsOnPixelsError(Exception):
    """The size of a value does not follow from shapes and constants alone."""


def _numbers(value: _Value) -> tuple[float, ...]:
    if value.numbers is None:
        raise _DependsOnPixelsError
    return value.numbers


def _integers(value: _Value) -> tuple[int, ...]:
    return tuple(int(number) for number in _numbers(value))


def _same(attributes: Mapping[str, Any], x: _Value, *others: _Value) -> _Value:
    return _Value(x.shape)


def _each(function: Callable[[float], float]) -> Callable[..., _Value]:
    def rule(attributes: Mapping[str, Any], x: _Value) -> _Value:
        return _Value(x.shape, x.numbers and tuple(map(function, x.numbers)))

    return rule


def _cast(attributes: Mapping[str, Any], x: _Value) -> _Value:
    to = _COUNTED.get(ELEMENT_TYPES[attributes["to"]])
    return _Value(x.shape, to and x.numbers and tuple(map(to, x.numbers)))


def _broadcast(*shapes: _Shape) -> _Shape:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    result = []
    for sizes in zip(*padded, strict=True):
        (size,) = {size for size in sizes if size != 1} or {1}
        result.append(size)
    return tuple(result)


def _of_two(function: Callable[[float, float], float]) -> Callable[..., _Value]:
    def rule(attributes: Mapping[str, Any], *values: _Value) -> _Value:
        shape = _broadcast(*(value.shape for value in values))
        count = math.prod(shape)
        if len(values) > 2 or not values:
            raise ValueError(values)
        listed = [v.numbers for v in values if v.numbers is not None and v.count in (1, count)]
        if len(listed) < len(values) or count > MOST_VALUES:
            return _Value(shape)
        full = [numbers * (count // len(numbers)) for numbers in listed]
        return _Value(shape, tuple(function(*pair) for pair in zip(*full, strict=True)))

    return rule


def _divide(a: float, b: float) -> float:
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return a / b


def _axis(number: int, rank: int) -> int:
    if not -rank <= number < rank:
        raise IndexError(number)
    return number % rank


def _concat(attributes: Mapping[str, Any], *parts: _Value) -> _Value:
    axis = _axis(attributes["axis"], len(parts[0].shape))
    rest = {part.shape[:axis] + part.shape[axis + 1 :] for part in parts}
    if len(rest) != 1 or len({len(part.shape) for part in parts}) != 1:
        raise ValueError(rest)
    total = sum(part.shape[axis] for part in parts)
    shape = (*parts[0].shape[:axis], total, *parts[0].shape[axis + 1 :])
    if len(shape) == 1 and all(part.numbers is not None for part in parts):
        return _Value(shape, tuple(x for part in parts for x in part.numbers or ()))
    return _Value(shape)


def _window(attributes: Mapping[str, Any], x: _Value, kernel: _Shape) -> _Shape:
    """Return the output height and width of a sliding window."""
    if attributes.get("auto_pad", "NOTSET") != "NOTSET" or len(kernel) != 2 or max(kernel) > 101:
        raise ValueError(attributes)
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    strides, dilations = (attributes.get(name, (1, 1)) for name in ("strides", "dilations"))
    sizes = []
    for axis, pad in enumerate((top + bottom, left + right)):
        if min(top, left, bottom, right) < 0 or strides[axis] < 1 or dilations[axis] < 1:
            raise ValueError(attributes)
        room = x.shape[2 + axis] + pad - dilations[axis] * (kernel[axis] - 1) - 1
        sizes.append(room // strides[axis] + 1)
    return tuple(sizes)


def _conv(attributes: Mapping[str, Any], x: _Value, w: _Value, *bias: _Value) -> _Value:
    n, channels, _, _ = x.shape
    made, taken, *kernel = w.shape
    if tuple(attributes.get("kernel_shape", kernel)) != tuple(kernel):
        raise ValueError(attributes)
    if taken * attributes.get("group", 1) != channels:
        raise ValueError(channels)
    return _Value((n, made, *_window(attributes, x, tuple(kernel))))


def _average_pool(attributes: Mapping[str, Any], x: _Value) -> _Value:
    n, channels, _, _ = x.shape
    if attributes.get("ceil_mode", 0) != 0:
        raise ValueError(attributes)
    return _Value((n, channels, *_window(attributes, x, attributes["kernel_shape"])))


def _grid_sample(attributes: Mapping[str, Any], x: _Value, grid: _Value) -> _Value:
    n, channels, _, _ = x.shape
    count, height, width, two = grid.shape
    if (count, two) != (n, 2):
        raise ValueError(grid.shape)
    return _Value((n, channels, height, width))


def _resize(attributes: Mapping[str, Any], x: _Value, *operands: _Value) -> _Value:
    _, scales, sizes, *_ = (*operands, *(_Value(()),) * 3)
    if attributes.get("axes") or attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise ValueError(attributes)
    if sizes.shape not in ((), (0,)):
        shape = _integers(sizes)
    else:
        pairs = zip(x.shape, _numbers(scales), strict=True)
        shape = tuple(math.floor(size * scale) for size, scale in pairs)
    if len(shape) != len(x.shape):
        raise ValueError(shape)
    return _Value(shape)


def _reshape(attributes: Mapping[str, Any], x: _Value, to: _Value) -> _Value:
    wanted = list(_integers(to))
    if not attributes.get("allowzero", 0):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    if wanted.count(-1) == 1:
        wanted[wanted.index(-1)] = x.count // -math.prod(wanted)
    if math.prod(wanted) != x.count:
        raise ValueError(wanted)
    return _Value(tuple(wanted), x.numbers)


def _shape(attributes: Mapping[str, Any], x: _Value) -> _Value:
    sizes = x.shape[attributes.get("start", 0) : attributes.get("end")]
    return _Value((len(sizes),), sizes)


def _gather(attributes: Mapping[str, Any], x: _Value, indices: _Value) -> _Value:
    axis = _axis(attributes.get("axis", 0), len(x.shape))
    shape = x.shape[:axis] + indices.shape + x.shape[axis + 1 :]
    if x.numbers is not None and indices.numbers is not None and len(x.shape) == 1:
        return _Value(shape, tuple(x.numbers[i] for i in _integers(indices)))
    return _Value(shape)


def _unsqueeze(attributes: Mapping[str, Any], x: _Value, axes: _Value) -> _Value:
    rank = len(x.shape) + axes.count
    new = {_axis(axis, rank) for axis in _integers(axes)}
    rest = iter(x.shape)
    return _Value(tuple(1 if i in new else next(rest) for i in range(rank)), x.numbers)


def _squeeze(attributes: Mapping[str, Any], x: _Value, *axes: _Value) -> _Value:
    numbers = _integers(axes[0]) if axes else [i for i, size in enumerate(x.shape) if size == 1]
    gone = {_axis(axis, len(x.shape)) for axis in numbers}
    if any(x.shape[i] != 1 for i in gone):
        raise ValueError(x.shape)
    return _Value(tuple(size for i, size in enumerate(x.shape) if i not in gone), x.numbers)


def _slice(attributes: Mapping[str, Any], x: _Value, *operands: _Value) -> _Value:
    starts, ends, *more = map(_integers, operands)
    axes = more[0] if more else tuple(range(len(starts)))
    steps = more[1] if len(more) > 1 else (1,) * len(starts)
    shape = list(x.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        i = _axis(axis, len(shape))
        shape[i] = len(range(*slice(start, end, step).indices(x.shape[i])))
    return _Value(tuple(shape))


def _matmul(attributes: Mapping[str, Any], a: _Value, b: _Value) -> _Value:
    (*lead, rows, inner), (*other_lead, other_inner, columns) = a.shape, b.shape
    if inner != other_inner:
        raise ValueError(a.shape, b.shape)
    return _Value((*_broadcast(tuple(lead), tuple(other_lead)), rows, columns))


def _transpose(attributes: Mapping[str, Any], x: _Value) -> _Value:
    order = attributes["perm"]
    if sorted(order) != list(range(len(x.shape))):
        raise ValueError(order)
    return _Value(tuple(x.shape[i] for i in order))


def _reduce_mean(attributes: Mapping[str, Any], x: _Value, *axes: _Value) -> _Value:
    numbers = _integers(axes[0]) if axes else attributes["axes"]
    gone = {_axis(axis, len(x.shape)) for axis in numbers}
    if not gone:
        raise ValueError(axes)
    if attributes.get("keepdims", 1):
        return _Value(tuple(1 if i in gone else size for i, size in enumerate(x.shape)))
    return _Value(tuple(size for i, size in enumerate(x.shape) if i not in gone))


def _range(attributes: Mapping[str, Any], *operands: _Value) -> _Value:
    (start,), (limit,), (step,) = map(_numbers, operands)
    return _Value((max(0, math.ceil((limit - start) / step)),))


def _expand(attributes: Mapping[str, Any], x: _Value, to: _Value) -> _Value:
    return _Value(_broadcast(x.shape, _integers(to)))


def _depth_to_space(attributes: Mapping[str, Any], x: _Value) -> _Value:
    n, channels, height, width = x.shape
    block = attributes["blocksize"]
    if block < 1 or channels % block**2:
        raise ValueError(block)
    return _Value((n, channels // block**2, height * block, width * block))


_RULES: Mapping[str, Callable[..., _Value]] = {
    "Abs": _each(abs),
    "Add": _of_two(lambda a, b: a + b),
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Clip": _same,
    "Concat": _concat,
    "Conv": _conv,
    "DepthToSpace": _depth_to_space,
    "DequantizeLinear": _same,
    "Div": _of_two(_divide),
    "Expand": _expand,
    "Floor": _each(math.floor),
    "Gather": _gather,
    "GridSample": _grid_sample,
    "LeakyRelu": _same,
    "MatMul": _matmul,
    "Max": _of_two(max),
    "Mul": _of_two(lambda a, b: a * b),
    "QuantizeLinear": _same,
    "Range": _range,
    "ReduceMean": _reduce_mean,
    "Relu": _same,
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": _same,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _of_two(lambda a, b: a - b),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
