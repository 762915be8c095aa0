"""Quantises the residual blocks of float graphs to int8, with explicit QuantizeLinear and
DequantizeLinear nodes inserted by onnxruntime.quantization.

Both convolutions of a residual block, ``x + conv2(relu(conv1(x)))``, are quantised. If its sum is
fused, the sum takes the same dequantised ``x`` as ``conv1``. The output of ``conv2`` enters the sum
unquantised, so that an engine can fuse convolution, sum and the next block's quantisation. A fused
sum rounds the features carried through all blocks, and from frame to frame, to 8 bits; an unfused
sum keeps them in the graph's float type. As TensorRT requires, activations are symmetric
(zero-point 0) with one scale, weights symmetric with one scale, and biases stay in the graph's
float type. So do the stored weights, which the graph rounds itself: without its roundings it is the
float graph again, for engines that are slower in int8. TensorRT-RTX fuses bias, ReLU and sum into
such a convolution; with a scale per output channel it would write float32 for a second kernel to
round.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.shape_inference
from numpy.typing import NDArray

from rbvsr_deploy.closing import Closing

__all__ = [
    "QUANTISED_OPSET",
    "Calibrator",
    "Feeds",
    "ResidualBlock",
    "activation_scales",
    "quantise",
    "residual_blocks",
]

QUANTISED_OPSET = 19
"""QuantizeLinear and DequantizeLinear support float16 from opset 19 on; opset 20 changes GridSample
(see :data:`rbvsr_deploy.export.onnx_export.OPSETS`).
"""

Feeds = Mapping[str, NDArray[Any]]
"""Inputs of a graph by name."""


@dataclass(frozen=True)
class ResidualBlock:
    """Names the nodes and tensors of a residual block in a graph."""

    number: int
    """Number in execution order, from 0."""
    convolutions: tuple[str, str]
    """Names of the Conv nodes."""
    input: str
    """Input tensor of the first convolution and the sum."""
    hidden: str
    """Tensor between the convolutions, after the ReLU."""
    sum: str
    """Name of the Add node."""


def residual_blocks(model: onnx.ModelProto) -> list[ResidualBlock]:
    """Find the residual blocks of a graph by their structure; most graphs have none."""
    producers = {name: node for node in model.graph.node for name in node.output}

    def producer(name: str, op_type: str) -> onnx.NodeProto | None:
        node = producers.get(name)
        return node if node is not None and node.op_type == op_type else None

    blocks: list[ResidualBlock] = []
    for node in model.graph.node:
        if node.op_type != "Add":
            continue
        skip, change = node.input
        second = producer(change, "Conv")
        relu = producer(second.input[0], "Relu") if second is not None else None
        first = producer(relu.input[0], "Conv") if relu is not None else None
        if first is not None and second is not None and first.input[0] == skip:
            names = (first.name, second.name)
            blocks.append(ResidualBlock(len(blocks), names, skip, second.input[0], node.name))
    return blocks


class Calibrator(Closing):
    """Determines the activation ranges of a graph from recorded inputs.

    Ranges are minimum and maximum, because percentiles would clip white.

    Args:
        model: a float32 or float16 graph.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnxruntime.quantization import CalibrationMethod, create_calibrator

        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "graph.onnx"
        onnx.save(model, path)
        self._calibrator = create_calibrator(
            str(path),
            ["Conv"],
            str(path.with_name("augmented.onnx")),
            CalibrationMethod.MinMax,
        )

    def add(self, samples: Iterable[Feeds]) -> None:
        """Run the graph on recorded inputs and extend the ranges accordingly."""
        self._calibrator.collect_data(_Reader(iter(samples)))

    def ranges(self) -> Any:
        """Return the ranges for :func:`quantise`."""
        return self._calibrator.compute_data()

    def close(self) -> None:
        """Delete the temporary copy of the graph."""
        self._calibrator.infer_session = None  # it keeps the file open
        self._folder.cleanup()


class _Reader:
    """Provides inputs through the interface of onnxruntime's calibrators."""

    def __init__(self, samples: Iterator[Feeds]) -> None:
        self._samples = samples

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        feeds = next(self._samples, None)
        return None if feeds is None else dict(feeds)


def quantise(
    model: onnx.ModelProto,
    blocks: Sequence[ResidualBlock],
    ranges: Any,
    *,
    unfused: Sequence[ResidualBlock] = (),
) -> onnx.ModelProto:
    """Return a graph with some of its residual blocks in int8.

    Args:
        model: a float16 graph of opset :data:`QUANTISED_OPSET`, or a float32 graph.
        blocks: the blocks to quantise, from :func:`residual_blocks`.
        ranges: from a :class:`Calibrator` of the same graph.
        unfused: the blocks among ``blocks`` whose sum takes ``x`` unquantised.
    """
    if not blocks:  # QDQQuantizer takes an empty list as all nodes
        return model
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    # This class implements ``quantize_static``, which would calibrate at every call. The sums are
    # not listed, because that would also quantise the outputs of the second convolutions.
    quantizer = QDQQuantizer(
        onnx.shape_inference.infer_shapes(model),
        per_channel=False,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=ranges,
        nodes_to_quantize=[name for block in blocks for name in block.convolutions],
        nodes_to_exclude=[],
        op_types_to_quantize=["Conv"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": True,
            "OpTypesToExcludeOutputQuantization": ["Conv"],
        },
    )
    quantizer.quantize_model()
    inputs = {block.sum: block.input for block in unfused}
    for node in quantizer.model.model.graph.node:
        if node.name in inputs:
            node.input[0] = inputs[node.name]
    quantizer.model.topological_sort()
    quantised: onnx.ModelProto = quantizer.model.model
    del quantised.graph.value_info[:]
    del quantised.metadata_props[:]
    return quantised


def activation_scales(model: onnx.ModelProto, block: ResidualBlock) -> dict[str, float]:
    """Return the scales (largest value / 127) of a quantised block's two activations."""
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    quantised_by = {
        node.input[0]: node.input[1]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    return {
        name: float(onnx.numpy_helper.to_array(values[quantised_by[tensor]]).astype(np.float32))
        for name, tensor in (("input", block.input), ("hidden", block.hidden))
    }
