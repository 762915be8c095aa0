"""Checks that exported graphs satisfy their contract, the guarantees that engines rely on."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import onnx.numpy_helper
import onnx.shape_inference

from rbvsr_deploy.errors import ExportError
from rbvsr_deploy.graphs import GraphSpec, Precision

__all__ = ["check_graph", "check_quantisation"]

_FLOAT32 = onnx.TensorProto.FLOAT

_SAMPLING = {"mode": b"bilinear", "padding_mode": b"zeros", "align_corners": 0}
"""The defaults of GridSample, and the only kind that ONNX Runtime samples fast on a CPU."""


def check_graph(
    model: onnx.ModelProto, spec: GraphSpec, *, precision: Precision, opset: int
) -> None:
    """Check a graph against its contract.

    The ONNX checker must accept it; opset, inputs and outputs must match the contract; convolutions
    must run in the bundle's float type; every GridSample must be bilinear, with zeros outside and
    corners not aligned, and take a float32 image and grid in every precision. No Shape may have
    bounds and no Squeeze may lack its axes: TensorRT's parsers before version 10 misread both.

    Raises:
        ExportError: the graph breaks its contract; describes the first violation.
    """
    where = f"graph '{spec.name}'"
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{where} is rejected by the ONNX checker: {error}") from None
    written = {item.domain: item.version for item in model.opset_import}
    if written.get("") != opset:
        raise ExportError(
            f"{where} was exported with opset {written.get('')}, but opset {opset} was requested"
        )

    graph = inferred.graph
    dtypes = {
        v.name: v.type.tensor_type.elem_type
        for v in [*graph.value_info, *graph.input, *graph.output]
    }
    dtypes |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    features = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(precision))
    for value, item in zip(
        [*graph.input, *graph.output], [*spec.inputs, *spec.outputs], strict=True
    ):
        expected = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(item.numpy_dtype(precision)))
        if value.name != item.name or dtypes[value.name] != expected:
            raise ExportError(
                f"{where} has '{value.name}' of ONNX type {dtypes[value.name]} in the place of "
                f"'{item.name}' of type {expected}"
            )
    for node in graph.node:
        if node.op_type == "Conv" and dtypes.get(node.input[0]) != features:
            raise ExportError(f"{where}: convolution '{node.name}' does not run in {precision}")
        if (node.op_type == "Shape" and node.attribute) or (
            node.op_type == "Squeeze" and len(node.input) < 2
        ):
            raise ExportError(f"{where}: TensorRT 8.6 would misread the sizes from '{node.name}'")
        if node.op_type == "GridSample":
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if {**_SAMPLING, **attributes} != _SAMPLING:
                raise ExportError(
                    f"{where}: '{node.name}' samples with {attributes}, not bilinear with zeros "
                    "outside and corners not aligned"
                )
            if any(dtypes.get(name) != _FLOAT32 for name in node.input):
                raise ExportError(
                    f"{where}: '{node.name}' samples at coordinates or values that are not float32"
                )


def check_quantisation(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Check TensorRT's requirements for int8: zero-points are 0 and scales positive; a convolution
    with quantised weights takes a dequantised input and an unquantised bias.

    Raises:
        ExportError: the graph violates one; describes the first violation.
    """
    where = f"graph '{spec.name}'"
    producers = {name: node for node in model.graph.node for name in node.output}
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}

    def dequantised(name: str) -> bool:
        return name in producers and producers[name].op_type == "DequantizeLinear"

    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero_point = (constants[name] for name in node.input[1:])
            if zero_point.dtype != np.int8 or zero_point.any():
                raise ExportError(f"{where}: '{node.name}' has a zero-point other than int8 0")
            if not (np.isfinite(scale).all() and (scale > 0).all()):
                raise ExportError(f"{where}: '{node.name}' has a scale that is not positive")
        if node.op_type == "Conv":
            image, weight, *bias = node.input
            if dequantised(image) != dequantised(weight) or any(map(dequantised, bias)):
                raise ExportError(
                    f"{where}: convolution '{node.name}' must have both its input and its weights "
                    "quantised, or neither, and an unquantised bias"
                )
