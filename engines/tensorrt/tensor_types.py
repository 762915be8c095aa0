"""Determines the element types of all tensors of a parsed network.

A strongly typed network reports them. A weakly typed one (TensorRT before 10) reports float32 for
the output of every layer until it is built, unless that is an integer, an output of the network or
the result of a cast; there the types are those of the ONNX graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rbvsr_deploy.bundle.onnx_reader import ELEMENT_TYPES
from rbvsr_deploy.errors import MissingDependencyError

__all__ = [
    "dequantised",
    "inputs_of",
    "layers_of",
    "outputs_of",
    "reported_types",
    "types_from_graph",
]


def layers_of(network: Any) -> list[Any]:
    """Return the layers of a parsed network, in its order."""
    return [network.get_layer(i) for i in range(network.num_layers)]


def inputs_of(owner: Any) -> Iterator[Any]:
    """Yield the inputs of a network or layer."""
    # A missing optional input is None.
    tensors = (owner.get_input(i) for i in range(owner.num_inputs))
    return (tensor for tensor in tensors if tensor is not None)


def outputs_of(owner: Any) -> Iterator[Any]:
    """Yield the outputs of a network or layer."""
    return (owner.get_output(i) for i in range(owner.num_outputs))


def dequantised(network: Any) -> set[str]:
    """Return the names of the tensors that were rounded to int8."""
    layers = (layer for layer in layers_of(network) if layer.type.name == "DEQUANTIZE")
    return {tensor.name for layer in layers for tensor in outputs_of(layer)}


def reported_types(network: Any) -> dict[str, str]:
    """Return NumPy's name of the type that each tensor reports, by the tensor's name."""
    produced = (tensor for layer in layers_of(network) for tensor in outputs_of(layer))
    return {tensor.name: _reported(tensor) for tensor in (*inputs_of(network), *produced)}


def types_from_graph(network: Any, model: bytes) -> dict[str, str]:
    """Return the types that tensors of a weakly typed network have in the ONNX graph.

    Tensors are named as the values of the graph. Those that the parser adds, such as constants in
    another shape, have other names: they are float16 if they are computed from float16.

    Args:
        network: its ``INetworkDefinition``.
        model: the serialised graph that was parsed.

    Returns:
        NumPy's names of types by the name of the tensor.

    Raises:
        MissingDependencyError: ``onnx`` is not installed.
    """
    written = _written_types(model)
    types = {tensor.name: _reported(tensor) for tensor in inputs_of(network)}
    for layer in layers_of(network):
        read = {types.get(tensor.name) for tensor in inputs_of(layer)}
        computed = "float16" if "float16" in read else "float32"
        if layer.type.name == "CONSTANT":  # the layer has the value's name, its output another
            computed = written.get(layer.name, computed)
        for tensor in outputs_of(layer):
            reported = _reported(tensor)
            if reported == "float32":
                reported = written.get(tensor.name, computed)
            types[tensor.name] = reported
    return types


def _written_types(model: bytes) -> dict[str, str]:
    """Return the type of every value of a serialised graph, by name."""
    try:
        import onnx
        import onnx.shape_inference
    except ImportError as error:
        purpose = "compiling with TensorRT before 10"
        raise MissingDependencyError("onnx", extra="engines", purpose=purpose) from error
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: ELEMENT_TYPES[kind] for name, kind in types.items() if kind in ELEMENT_TYPES}


def _reported(tensor: Any) -> str:
    name: str = tensor.dtype.name
    return {"FLOAT": "float32", "HALF": "float16"}.get(name, name.lower())
