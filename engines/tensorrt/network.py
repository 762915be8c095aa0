"""Checks that TensorRT's parser has read a network correctly, before it is built.

The graphs were checked when they were exported; this finds errors of the parser. Parsers of 2025
read the bilinear sampling of opset 20 as nearest, and a network that has lost its types is built in
float32 without a warning.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rbvsr_deploy.bundle.onnx_reader import read_graph
from rbvsr_deploy.engines.tensorrt.flavours import TensorRT
from rbvsr_deploy.engines.tensorrt.tensor_types import (
    dequantised,
    inputs_of,
    layers_of,
    outputs_of,
)
from rbvsr_deploy.errors import EngineError
from rbvsr_deploy.graphs import Precision

__all__ = ["check_network"]

_CONVOLUTIONS = ("CONVOLUTION", "DECONVOLUTION")


def check_network(
    tensorrt: TensorRT,
    network: Any,
    model: bytes,
    types: Mapping[str, str],
    *,
    graph: str,
    precision: Precision,
) -> dict[str, int]:
    """Check a parsed network.

    Every sampling layer is bilinear, pads and aligns the corners as a node of the graph does, and
    has a float32 input and coordinates.
    There is a layer for every convolution of the graph. It runs in the bundle's float type, or in
    int8 if its input comes from a dequantise layer. In a float16 network no layer is float32
    without a reason: connected float32 layers form a region, and each region must contain a
    sampling layer or an input or output that is float32 or uint8 (flow, residue, images).

    Args:
        tensorrt: the flavour that parsed it.
        network: its ``INetworkDefinition``.
        model: the serialised graph that was parsed.
        types: returned by :meth:`TensorRT.tensor_types`.
        graph: its name.
        precision: of the bundle.

    Returns:
        The number of layers of each kind and type, such as ``{"CONVOLUTION float16": 41}``.

    Raises:
        EngineError: a layer violates this; the message names the first one.
    """
    layers = layers_of(network)
    rounded = dequantised(network)
    table: Counter[str] = Counter()
    for layer in layers:
        kind, dtype = layer.type.name, types[layer.get_output(0).name]
        if kind == "GRID_SAMPLE":
            _check_sampling(tensorrt, layer, _sampling_of(model), types, graph=graph)
        if kind in _CONVOLUTIONS:
            if dtype != precision:
                raise EngineError(
                    f"graph '{graph}': TensorRT reads the convolution '{layer.name}' as {dtype} in "
                    f"a {precision} bundle: export the checkpoint again"
                )
            if layer.get_input(0).name in rounded:
                dtype = "int8"
        table[f"{kind} {dtype}"] += 1
    read, written = sum(layer.type.name in _CONVOLUTIONS for layer in layers), _convolutions(model)
    if read != written:
        raise EngineError(
            f"graph '{graph}': TensorRT {tensorrt.version} reads {read} of its {written} "
            "convolutions as such: use another version of TensorRT"
        )
    if precision == "float16":
        _check_float32(network, layers, types, graph=graph)
    return dict(sorted(table.items()))


def _convolutions(model: bytes) -> int:
    """Count the convolutions of a serialised graph."""
    return sum(node.operator in ("Conv", "ConvTranspose") for node in read_graph(model).nodes)


@functools.lru_cache(maxsize=2)
def _sampling_of(model: bytes) -> frozenset[str]:
    """Describe the sampling of all GridSample nodes of a serialised graph."""
    nodes = read_graph(model).nodes
    return frozenset(_described(n.attributes) for n in nodes if n.operator == "GridSample")


def _described(attributes: Mapping[str, Any]) -> str:
    """Describe the sampling of a GridSample node."""
    aligned = "aligned" if attributes.get("align_corners", 0) else "not aligned"
    return f"{attributes.get('padding_mode', 'zeros')} outside and corners {aligned}"


def _check_sampling(
    tensorrt: TensorRT,
    layer: Any,
    written: frozenset[str],
    types: Mapping[str, str],
    *,
    graph: str,
) -> None:
    module = tensorrt.module
    name = layer.name
    dtypes = [types[tensor.name] for tensor in inputs_of(layer)]
    layer.__class__ = module.IGridSampleLayer  # the bindings return only the base class
    mode, padding = layer.interpolation_mode, layer.sample_mode.name.lower()
    read = _described(
        {
            "padding_mode": {"fill": "zeros", "clamp": "border"}.get(padding, padding),
            "align_corners": layer.align_corners,
        }
    )
    if mode != module.InterpolationMode.LINEAR or read not in written:
        raise EngineError(
            f"graph '{graph}': TensorRT {tensorrt.version} reads the sampling '{name}' as "
            f"{mode.name.lower()} with {read}, but it must be linear with "
            f"{' or '.join(sorted(written))}: export with opset 17, 18 or 19"
        )
    if dtypes != ["float32", "float32"]:
        raise EngineError(
            f"graph '{graph}': the sampling '{name}' has inputs of type {' and '.join(dtypes)}, "
            "but both must be float32: export the checkpoint again"
        )


def _check_float32(
    network: Any, layers: list[Any], types: Mapping[str, str], *, graph: str
) -> None:
    """Check that float32 layers have a reason: mark regions starting from the allowed tensors."""
    data = {tensor.name for tensor in inputs_of(network)}
    for layer in layers:
        # Values derived only from sizes and constants are arithmetic on shapes, not on pixels.
        if layer.type.name != "SHAPE" and any(tensor.name in data for tensor in inputs_of(layer)):
            data |= {tensor.name for tensor in outputs_of(layer)}

    def wide(tensors: Iterator[Any]) -> set[str]:
        names = {tensor.name for tensor in tensors} & data
        return {name for name in names if types[name] in ("float32", "uint8")}

    touched = {
        layer.name: wide(inputs_of(layer)) | wide(outputs_of(layer))
        for layer in layers
        if wide(outputs_of(layer))
    }
    reached = wide(inputs_of(network)) | wide(outputs_of(network))
    reached |= {
        name for layer in layers if layer.type.name == "GRID_SAMPLE" for name in touched[layer.name]
    }
    growing = True
    while growing:
        found = {name for tensors in touched.values() if tensors & reached for name in tensors}
        growing = not found <= reached
        reached |= found
    for name, tensors in touched.items():
        if not tensors <= reached:
            raise EngineError(
                f"graph '{graph}': the layer '{name}' is float32 in a float16 bundle, but is "
                "not connected to sampling, flow, residue or images: export the checkpoint again"
            )
