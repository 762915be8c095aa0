"""One torch module -> one ONNX graph with dynamic N, H and W, as the contract has it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import onnx.version_converter
import torch
from torch import Tensor, nn

from rbvsr_deploy.errors import ExportError, first_line
from rbvsr_deploy.graphs import GraphSpec, Precision

__all__ = ["DEFAULT_OPSET", "OPSETS", "convert_opset", "example_inputs", "export_graph"]

OPSETS = (17, 18, 19)
"""16 brought GridSample; TensorRT before 2026 reads the ``linear`` that 20 renamed its mode to as
nearest.
"""

DEFAULT_OPSET = 18
"""What torch's exporter writes natively; 17 and 19 are converted from it."""

# Example sizes: distinct and none of 0 or 1, which the exporter would take for constants.
_EXAMPLE = {"N": 2, "H": 40, "W": 56, "4H": 160, "4W": 224}


def example_inputs(spec: GraphSpec, *, channels: int, precision: Precision) -> tuple[Tensor, ...]:
    """Distinct random tensors of the right shapes and types (one tensor given twice would become
    one input).
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
        module: as made by :func:`rbvsr_deploy.graph_modules.graph_modules`.
        spec: its inputs and outputs.
        channels: mid channels of the network.
        precision: float type of features.
        opset: one of :data:`OPSETS`.

    Returns:
        The model with weights inside and inputs and outputs named and shaped as in ``spec``.

    Raises:
        ExportError: torch or onnx could not write it.
        ValueError: ``opset`` is not one of :data:`OPSETS`.
    """
    if opset not in OPSETS:
        raise ValueError(f"opset must be one of {OPSETS}, got {opset}")
    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(item.shape) if size in _EXAMPLE}
        for item in spec.inputs
    )
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                example_inputs(spec, channels=channels, precision=precision),
                dynamo=True,
                dynamic_shapes=dynamic,
                opset_version=DEFAULT_OPSET,
                input_names=[item.name for item in spec.inputs],
                output_names=[item.name for item in spec.outputs],
            )
        assert program is not None  # dynamo=True always returns one
        model = program.model_proto
        _name_dimensions(model, spec, channels=channels)
        return convert_opset(model, opset)
    except Exception as error:  # the exporter's own errors are many pages: the first line tells
        raise ExportError(
            f"graph '{spec.name}' could not be exported to ONNX opset {opset}: {first_line(error)}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports progress on stdout and warns of packages this network does not use."""
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter_log.setLevel(level)


def _name_dimensions(model: onnx.ModelProto, spec: GraphSpec, *, channels: int) -> None:
    """Give inputs and outputs the contract's dimension names in place of the exporter's numbered
    symbols.
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
    # Shapes of inner values still carry the old symbols; engines infer them anew.
    del graph.value_info[:]
    # What the exporter notes about its source lines is of no use to an engine and names the
    # exporting machine's folders.
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""


def convert_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Bring a graph from :data:`DEFAULT_OPSET` to another of :data:`OPSETS`."""
    if opset == DEFAULT_OPSET:
        return model
    for node in model.graph.node:
        if (
            node.op_type == "ReduceMean"
        ):  # the converter would carry this default into opset 17, which lacks it
            kept = [a for a in node.attribute if a.name != "noop_with_empty_axes"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return onnx.version_converter.convert_version(model, opset)
