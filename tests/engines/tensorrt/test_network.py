"""What TensorRT makes of a graph is looked at before it is built, and what is wrong is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rbvsr_deploy.bundle import Bundle, open_bundle
from rbvsr_deploy.engines.tensorrt.flavours import load_flavour
from rbvsr_deploy.engines.tensorrt.network import check_network
from rbvsr_deploy.errors import EngineError
from rbvsr_deploy.graphs import Precision

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def table(model: bytes, *, graph: str = "made up", precision: Precision) -> dict[str, int]:
    """Parse with TensorRT-RTX, which needs no GPU for that, and check."""
    rtx = load_flavour("tensorrt-rtx")
    builder = rtx.module.Builder(rtx.logger)
    network = rtx.create_network(builder)
    parser = rtx.module.OnnxParser(network, rtx.logger)
    assert parser.parse(model), rtx.logger.errors
    return check_network(rtx, network, graph=graph, precision=precision)


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, int],
    outputs: dict[str, int],
    weights: dict[str, Any],
    *,
    opset: int = 17,
) -> bytes:
    """A graph whose inputs and outputs are (1, 2, 8, 8) of a type each."""
    shapes = {"grid": [1, 8, 8, 2]}
    values = [
        [
            helper.make_tensor_value_info(name, dtype, shapes.get(name, [1, 2, 8, 8]))
            for name, dtype in side.items()
        ]
        for side in (inputs, outputs)
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "made_up", *values, initializer=initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 10
    onnx.checker.check_model(made)
    return made.SerializeToString()


def sampling(*, mode: str, aligned: int = 1, opset: int = 17, dtype: int = FLOAT) -> bytes:
    """One GridSample."""
    node = helper.make_node(
        "GridSample", ["image", "grid"], ["out"], name="warp", mode=mode, align_corners=aligned
    )
    return model([node], {"image": dtype, "grid": dtype}, {"out": dtype}, {}, opset=opset)


KERNEL = np.ones((2, 2, 3, 3))


def convolution(name: str, given: str, made: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [given, f"{name}.w"], [made], name=name, pads=[1, 1, 1, 1])


def cast(given: str, made: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [given], [made], name=f"cast_{made}", to=to)


@pytest.fixture(scope="module")
def bundles(tiny_bundle: Path, tiny_bundle_float16: Path) -> dict[Precision, Bundle]:
    return {"float32": open_bundle(tiny_bundle), "float16": open_bundle(tiny_bundle_float16)}


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_exported_graphs_pass(bundles: dict[Precision, Bundle], precision: Precision) -> None:
    """Every graph is read as it was meant, and the table says so: all convolutions in the bundle's
    type, all sampling in float32, and in float16 no features left in float32.
    """
    other = {"float32": "float16", "float16": "float32"}[precision]
    tables = {
        name: table(graph, graph=name, precision=precision)
        for name, graph in bundles[precision].graphs().items()
    }
    assert set(tables) == set(bundles[precision].manifest.graphs)
    for name in ("clean", "flow", "backward", "forward", "reconstruct"):
        assert tables[name][f"CONVOLUTION {precision}"] > 0
        assert f"CONVOLUTION {other}" not in tables[name]
    for name in ("flow", "backward", "forward"):
        assert tables[name]["GRID_SAMPLE float32"] > 0
        assert "GRID_SAMPLE float16" not in tables[name]
    assert "CONVOLUTION int8" not in tables["clean"]
    if precision == "float16":
        assert not [kind for kind in tables["reconstruct"] if kind.endswith("float32")]
        assert tables["backward"]["ACTIVATION float16"] == 2
        assert "ACTIVATION float32" not in tables["backward"]


def test_bilinear_sampling_passes() -> None:
    """Also under the name opset 20 gave it, where this TensorRT knows it."""
    assert table(sampling(mode="bilinear"), precision="float32") == {"GRID_SAMPLE float32": 1}
    assert table(sampling(mode="linear", opset=20), precision="float32")


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (sampling(mode="nearest"), "reads the sampling 'warp' as nearest with corners aligned"),
        (sampling(mode="nearest", opset=20), "as nearest with corners aligned"),
        (sampling(mode="bilinear", aligned=0), "as linear with corners not aligned"),
        (sampling(mode="bicubic"), "as cubic with corners aligned"),
        (sampling(mode="bilinear", dtype=HALF), "'warp' reads float16 and float16, where float32"),
    ],
    ids=["nearest", "nearest of opset 20", "corners", "cubic", "float16 coordinates"],
)
def test_other_sampling_is_refused(graph: bytes, words: str) -> None:
    """A parser that reads the mode wrongly is found out, by graph and layer."""
    with pytest.raises(EngineError, match="graph 'made up'") as caught:
        table(graph, precision="float16")
    assert words in str(caught.value)


def test_a_float32_convolution_in_a_float16_bundle_is_refused() -> None:
    """Of two convolutions, the one that has lost its type is named."""
    nodes = [
        convolution("first", "frame", "features"),
        cast("features", "wide", FLOAT),
        convolution("second", "wide", "out"),
    ]
    weights = {"first.w": KERNEL.astype(np.float16), "second.w": KERNEL.astype(np.float32)}
    made = model(nodes, {"frame": HALF}, {"out": FLOAT}, weights)
    with pytest.raises(EngineError, match="the convolution 'second' as float32 in a float16"):
        table(made, precision="float16")


def relu_between(wide: int) -> bytes:
    """Two float16 convolutions and a ReLU of some type between them, beside a float32 flow."""
    nodes = [
        convolution("first", "frame", "features"),
        cast("features", "wide", wide),
        helper.make_node("Relu", ["wide"], ["positive"], name="relu"),
        cast("positive", "narrow", HALF),
        convolution("second", "narrow", "out"),
        helper.make_node("Neg", ["flow"], ["turned"], name="turn"),
    ]
    weights = {name: KERNEL.astype(np.float16) for name in ("first.w", "second.w")}
    return model(nodes, {"frame": HALF, "flow": FLOAT}, {"out": HALF, "turned": FLOAT}, weights)


def test_features_left_in_float32_are_refused() -> None:
    """Float32 layers that have nothing to do with flow, sampling or images are named; flow itself
    may be float32.
    """
    assert table(relu_between(HALF), precision="float16")["UNARY float32"] == 1
    with pytest.raises(EngineError, match=r"the layer '(cast_wide|relu)' is float32 in a float16"):
        table(relu_between(FLOAT), precision="float16")


def test_convolutions_of_dequantised_values_count_as_int8() -> None:
    """A convolution whose image comes from a dequantise layer runs in int8, and is no breach."""
    scale = np.float16(0.1)
    nodes = [
        helper.make_node("QuantizeLinear", ["frame", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"], name="dq"),
        helper.make_node("DequantizeLinear", ["k", "s", "z"], ["first.w"], name="dq_kernel"),
        convolution("first", "dq", "features"),
        convolution("second", "features", "out"),
    ]
    weights = {
        "s": np.array(scale),
        "z": np.array(0, np.int8),
        "k": KERNEL.astype(np.int8),
        "second.w": KERNEL.astype(np.float16),
    }
    made = model(nodes, {"frame": HALF}, {"out": HALF}, weights, opset=19)
    found = table(made, precision="float16")
    assert (found["CONVOLUTION int8"], found["CONVOLUTION float16"]) == (1, 1)
