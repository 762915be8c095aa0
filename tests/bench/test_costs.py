"""Tests the count of arithmetic and traffic against figures that follow from the architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbvsr_deploy.bench.costs import GraphCosts
from rbvsr_deploy.bundle import bundle_in_memory, open_bundle
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE
from tests.conftest import TINY

C = TINY.mid_channels
H, W = 24, 32
FRAME, STATE, FLOW = (1, 3, H, W), (1, C, H, W), (1, 2, H, W)
INPUTS = {
    "ingest": [(1, H, W, 3)],
    "clean": [FRAME],
    "flow": [FRAME, FRAME],
    "backward": [FRAME, STATE, FLOW],
    "forward": [FRAME, STATE, FLOW],
    "reconstruct": [FRAME, STATE, STATE],
    "emit": [(1, 3, 4 * H, 4 * W)],
}


def conv(taken: int, made: int, *, kernel: int = 3, pixels: int = H * W) -> int:
    """FLOPs of a convolution with bias."""
    return made * pixels * (2 * taken * kernel**2 + 1)


BLOCK = 2 * conv(C, C)
CONVOLUTIONS = {
    "clean": conv(3, C) + (TINY.cleaning_blocks or 0) * BLOCK + conv(C, 3),
    "backward": conv(3 + C, C) + TINY.propagation_blocks * BLOCK,
    "forward": conv(3 + C, C) + TINY.propagation_blocks * BLOCK,
    "reconstruct": conv(2 * C, C, kernel=1)
    + conv(C, 4 * C)
    + conv(C, 4 * C, pixels=4 * H * W)
    + conv(C, C, pixels=16 * H * W)
    + conv(C, 3, pixels=16 * H * W),
}


@pytest.mark.parametrize("graph", CONVOLUTIONS)
def test_flops_are_those_of_the_architecture(tiny_bundle: Path, graph: str) -> None:
    """The convolutions of the published architecture, and less than a fifth more for the rest."""
    flops = GraphCosts(open_bundle(tiny_bundle)).of(graph, INPUTS[graph]).flops
    assert CONVOLUTIONS[graph] <= flops < 1.2 * CONVOLUTIONS[graph]


def test_work_grows_with_pixels_and_batch(tiny_bundle: Path) -> None:
    """Twice the frames are twice the FLOPs, and as many nodes; so are twice the rows."""
    costs = GraphCosts(open_bundle(tiny_bundle))
    for graph in ("clean", "backward", "reconstruct", "emit"):
        one = costs.of(graph, INPUTS[graph])
        for axis in (0, 2):
            shapes = [
                tuple(2 * size if i == axis else size for i, size in enumerate(shape))
                for shape in INPUTS[graph]
            ]
            two = costs.of(graph, shapes)
            assert two.flops == pytest.approx(2 * one.flops, rel=1e-4)  # sizes cost a few
            assert two.nodes == one.nodes
            assert one.bytes < two.bytes <= 2 * one.bytes


def test_least_bytes_are_inputs_weights_and_outputs(
    tiny_bundle: Path, tiny_bundle_float16: Path
) -> None:
    """Counted by hand for a trunk; float16 halves them, apart from the flow."""
    weights = (3 + C) * C * 9 + C + TINY.propagation_blocks * 2 * (C * C * 9 + C)
    values = (3 + C) * H * W + C * H * W + weights
    flow = 2 * H * W * 4
    for bundle, item in ((tiny_bundle, 4), (tiny_bundle_float16, 2)):
        cost = GraphCosts(open_bundle(bundle)).of("backward", INPUTS["backward"])
        # Shapes and scales of the exporter are a few numbers.
        assert item * values + flow <= cost.least_bytes < item * values + flow + 1000
        assert cost.bytes > cost.least_bytes


def test_a_convolution_by_hand() -> None:
    """A graph of two nodes: 2 x 9 x 3 x 4 products and sums per pixel, a bias, and a Relu."""
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, (3, 3, 3, 3), [0.0] * 81)
    bias = helper.make_tensor("b", TensorProto.FLOAT, (3,), [0.0] * 3)
    nodes = [
        helper.make_node("Conv", ["picture", "w", "b"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["y"], ["image"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, "4H", "4W"])
        for name in ("picture", "image")
    ]
    graph = helper.make_graph(nodes, "emit", ends[:1], ends[1:], [weight, bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    manifest = open_bundle(DEFAULT_BUNDLE).manifest
    costs = GraphCosts(bundle_in_memory("x", manifest, {"emit": model.SerializeToString()}))
    cost = costs.of("emit", [(2, 3, 8, 4)])
    values = 2 * 3 * 8 * 4
    assert cost.flops == values * (2 * 27 + 1) + values
    assert cost.nodes == 2
    assert cost.bytes == 4 * (4 * values + 81 + 3)
    assert cost.least_bytes == 4 * (2 * values + 81 + 3)
