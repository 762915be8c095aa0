"""Float graphs -> graphs whose residual blocks run in int8, by explicit QuantizeLinear and
DequantizeLinear that onnxruntime.quantization sets.

What is quantised are the two convolutions of a residual block, ``x + conv2(relu(conv1(x)))``, and
where its sum is fused, the ``x`` of the sum too: it takes the value that ``conv1`` takes. What
``conv2`` gives goes into the sum as it is, so that an engine can fuse convolution, sum and the next
block's quantisation. A fused sum rounds what is carried through all blocks, and from frame to
frame, to 8 bits; an unfused one leaves that in the graph's float type. Activations
are symmetric (zero-point 0) with one scale, weights symmetric with one scale per output channel,
biases stay in the graph's float type: TensorRT takes nothing else.
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
"""QuantizeLinear and DequantizeLinear take float16 from 19 on; 20 brings the GridSample trap (see
:data:`rbvsr_deploy.export.onnx_export.OPSETS`).
"""

Feeds = Mapping[str, NDArray[Any]]
"""Inputs of a graph by name."""


@dataclass(frozen=True)
class ResidualBlock:
    """The names of one block's parts in a graph."""

    number: int
    """In the order the graph runs them, from 0."""
    convolutions: tuple[str, str]
    """Nodes."""
    input: str
    """The tensor that the first convolution and the sum take."""
    hidden: str
    """The tensor between the convolutions, behind the ReLU."""
    sum: str
    """Node."""


def residual_blocks(model: onnx.ModelProto) -> list[ResidualBlock]:
    """The residual blocks of a graph, found by their form; none in most graphs."""
    made_by = {name: node for node in model.graph.node for name in node.output}

    def maker(name: str, op_type: str) -> onnx.NodeProto | None:
        node = made_by.get(name)
        return node if node is not None and node.op_type == op_type else None

    blocks: list[ResidualBlock] = []
    for node in model.graph.node:
        if node.op_type != "Add":
            continue
        skip, change = node.input
        second = maker(change, "Conv")
        relu = maker(second.input[0], "Relu") if second is not None else None
        first = maker(relu.input[0], "Conv") if relu is not None else None
        if first is not None and second is not None and first.input[0] == skip:
            names = (first.name, second.name)
            blocks.append(ResidualBlock(len(blocks), names, skip, second.input[0], node.name))
    return blocks


class Calibrator(Closing):
    """Learns the ranges of a graph's activations from recorded inputs, by their minimum and
    maximum: what a percentile cuts off is white.

    Args:
        model: float32 or float16.
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
        """Run the graph on inputs and widen the ranges by what is seen."""
        self._calibrator.collect_data(_Reader(iter(samples)))

    def ranges(self) -> Any:
        """What :func:`quantise` takes."""
        return self._calibrator.compute_data()

    def close(self) -> None:
        """Delete the temporary copy of the graph."""
        self._calibrator.infer_session = None  # it has the file open
        self._folder.cleanup()


class _Reader:
    """Inputs in the form that onnxruntime's calibrators ask for them."""

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
    """A graph with some of its residual blocks in int8.

    Args:
        model: float16 of opset :data:`QUANTISED_OPSET`, or float32.
        blocks: of :func:`residual_blocks`; the others stay as they are.
        ranges: of a :class:`Calibrator` of the same graph.
        unfused: those of ``blocks`` whose sum takes its ``x`` unquantised.
    """
    if not blocks:  # for the class below, no nodes are all nodes
        return model
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    # The class behind ``quantize_static``, which would calibrate anew at every call. The sums are
    # not among the nodes: with them, what the second convolutions give would be quantised as well.
    quantizer = QDQQuantizer(
        onnx.shape_inference.infer_shapes(model),
        per_channel=True,
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
    """The scales of a quantised block's two activations: 127 of them are the largest value."""
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
