"""Exports torch modules as ONNX graphs with dynamic N, H and W, as the graph contract requires."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import onnx.version_converter
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch._decomp import decomposition_table

from rbvsr_deploy.errors import ExportError, first_line
from rbvsr_deploy.export.resize_graph import resize_graph
from rbvsr_deploy.graphs import GraphSpec, Precision, TensorSpec

__all__ = [
    "DEFAULT_OPSET",
    "OPSETS",
    "convert_opset",
    "example_inputs",
    "export_graph",
    "export_module",
]

OPSETS = (17, 18, 19)
"""Opset 16 introduced GridSample. Opset 20 renamed its mode to ``linear``, which TensorRT before
2026 reads as nearest.
"""

DEFAULT_OPSET = 18
"""Opset that torch's exporter writes natively; 17 and 19 are converted from it."""

# Example sizes: all distinct, and not 0 or 1, which the exporter would treat as constants.
_EXAMPLE = {"N": 2, "H": 40, "W": 56, "4H": 160, "4W": 224}


def example_inputs(spec: GraphSpec, *, channels: int, precision: Precision) -> tuple[Tensor, ...]:
    """Return random example inputs of a graph, one tensor each (a tensor passed twice would become
    a single input).
    """
    sizes = {**_EXAMPLE, "C": channels}
    tensors = []
    for item in spec.inputs:
        shape = [sizes[s] if isinstance(s, str) else s for s in item.shape]
        values = torch.rand(shape)
        dtype = getattr(torch, item.numpy_dtype(precision))
        tensors.append((values * 255).to(dtype) if dtype == torch.uint8 else values.to(dtype))
    return tuple(tensors)


def export_graph(
    module: nn.Module,
    spec: GraphSpec,
    *,
    channels: int,
    precision: Precision,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Export one graph.

    Args:
        module: one of :func:`rbvsr_deploy.graph_modules.graph_modules`.
        spec: contract of the graph.
        channels: mid channels of the network.
        precision: float type of the features.
        opset: one of :data:`OPSETS`.

    Returns:
        The model with embedded weights, its inputs and outputs named and shaped as in ``spec``.

    Raises:
        ExportError: torch or onnx could not export it.
        ValueError: ``opset`` is not one of :data:`OPSETS`.
    """
    if spec.name == "resize":
        _check_opset(opset)
        return resize_graph(precision, opset=opset)
    example = example_inputs(spec, channels=channels, precision=precision)
    return _exported(module, spec, example, channels=channels, opset=opset)


def _check_opset(opset: int) -> None:
    if opset not in OPSETS:
        raise ValueError(f"opset must be one of {OPSETS}, got {opset}")


def _exported(
    module: nn.Module, spec: GraphSpec, example: tuple[Tensor, ...], *, channels: int, opset: int
) -> onnx.ModelProto:
    _check_opset(opset)
    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(item.shape) if size in _EXAMPLE}
        for item in spec.inputs
    )
    try:
        with _quiet(), _sampled_shapes():
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                dynamic_shapes=dynamic,
                opset_version=DEFAULT_OPSET,
                input_names=[item.name for item in spec.inputs],
                output_names=[item.name for item in spec.outputs],
            )
        assert program is not None  # dynamo=True always returns one
        model = program.model_proto
        _name_dimensions(model, spec, channels=channels)
        _read_whole_shapes(model.graph)
        return convert_opset(model, opset)
    except Exception as error:  # the exporter's messages are pages long
        raise ExportError(
            f"graph '{spec.name}' could not be exported to ONNX opset {opset}: {first_line(error)}"
        ) from error


def export_module(
    module: nn.Module,
    example: Tensor,
    *,
    names: tuple[str, str],
    shapes: tuple[tuple[int | str, ...], tuple[int | str, ...]],
    opset: int,
) -> onnx.ModelProto:
    """Export a module of one input and one output that is no graph of the contract.

    Args:
        module: the module.
        example: an input.
        names: names of input and output in the file.
        shapes: their shapes; names stand for dynamic sizes.
        opset: one of :data:`OPSETS`.

    Raises:
        ExportError: torch or onnx could not export it.
        ValueError: ``opset`` is not one of :data:`OPSETS`.
    """
    spec = GraphSpec(
        names[1],
        (TensorSpec(names[0], "features", shapes[0]),),
        (TensorSpec(names[1], "features", shapes[1]),),
    )
    return _exported(module, spec, (example,), channels=0, opset=opset)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress on stdout and its warnings about unused packages."""
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter_log.setLevel(level)


@contextlib.contextmanager
def _sampled_shapes() -> Iterator[None]:
    """Infer the shapes of sampled tensors from their inputs' alone. The exporter would trace all of
    the sampling's arithmetic on symbolic sizes, three times: half of the time of such a graph.
    """
    sampler = torch.ops.aten.grid_sampler_2d.default
    traced = decomposition_table.get(sampler)
    if traced is None:  # another version of torch knows the shape
        yield
        return

    def shape_only(image: Tensor, grid: Tensor, *options: object) -> Tensor:
        return image.new_empty((*image.shape[:2], *grid.shape[1:3]))

    decomposition_table[sampler] = shape_only
    try:
        yield
    finally:
        decomposition_table[sampler] = traced


def _name_dimensions(model: onnx.ModelProto, spec: GraphSpec, *, channels: int) -> None:
    """Replace the exporter's numbered dimension symbols of inputs and outputs by the contract's
    names.
    """
    graph = model.graph
    for value, item in zip(
        [*graph.input, *graph.output], [*spec.inputs, *spec.outputs], strict=True
    ):
        for dimension, size in zip(value.type.tensor_type.shape.dim, item.shape, strict=True):
            if isinstance(size, int) or size == "C":
                dimension.dim_value = size if isinstance(size, int) else channels
            else:
                dimension.dim_param = size
    # Shapes of intermediate values still use the old symbols; engines infer them again.
    del graph.value_info[:]
    # The exporter's source locations are useless to engines and contain paths of the exporting
    # machine.
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""


def _read_whole_shapes(graph: onnx.GraphProto) -> None:
    """Replace the attributes of Shape by Gather, and give every Squeeze its axes.

    TensorRT's parsers before version 10 ignore ``start`` and ``end``, which are new in opset 15, so
    that all sizes of a tensor would arrive where one belongs.
    """
    constants: dict[str, onnx.TensorProto] = {}

    def constant(numbers: list[int]) -> str:
        name = "_".join(map(str, ("sizes", *numbers)))
        constants[name] = numpy_helper.from_array(np.array(numbers), name)
        return name

    nodes = []
    for node in graph.node:
        nodes.append(node)
        bounds = {item.name: item.i for item in node.attribute}
        if node.op_type == "Shape" and bounds:
            numbers = list(range(4))[bounds.get("start", 0) : bounds.get("end")]
            (sizes,) = node.output
            del node.attribute[:]
            node.output[0] = f"{sizes}_whole"
            inputs = [node.output[0], constant(numbers)]
            name = f"{node.name}_part"
            nodes.append(onnx.helper.make_node("Gather", inputs, [sizes], name=name, axis=0))
        elif node.op_type == "Squeeze" and len(node.input) == 1:
            node.input.append(constant([0]))  # the exporter squeezes only single sizes
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(constants.values())


def convert_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Convert a graph from :data:`DEFAULT_OPSET` to another of :data:`OPSETS`."""
    if opset == DEFAULT_OPSET:
        return model
    for node in model.graph.node:
        if node.op_type == "ReduceMean":
            # The converter would copy this attribute to opset 17, which does not have it.
            kept = [a for a in node.attribute if a.name != "noop_with_empty_axes"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return onnx.version_converter.convert_version(model, opset)
