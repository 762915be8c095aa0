"""Tests that parsed networks are checked before building and wrong ones are rejected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rbvsr_deploy.bundle import Bundle, open_bundle
from rbvsr_deploy.engines.tensorrt.flavours import TensorRT, load_flavour
from rbvsr_deploy.engines.tensorrt.network import check_network
from rbvsr_deploy.errors import EngineError
from rbvsr_deploy.graphs import Precision
from tests.support.tensorrt_bindings import bindings

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


Table = Callable[..., dict[str, int]]


@pytest.fixture(params=["tensorrt-rtx", "8.6.1"])
def table(request: pytest.FixtureRequest) -> Table:
    """Return a function that parses a model and checks the network.

    Networks are strongly typed, or those of 8.6, which hide their types. ``misread`` is the graph
    that a faulty parser would make of the model.
    """
    rtx = load_flavour("tensorrt-rtx")  # needs no GPU to parse
    version = request.param
    tensorrt = rtx if version == "tensorrt-rtx" else TensorRT("tensorrt", bindings(version))

    def run(
        model: bytes,
        *,
        graph: str = "made up",
        precision: Precision,
        misread: bytes | None = None,
    ) -> dict[str, int]:
        builder = tensorrt.module.Builder(tensorrt.logger)
        network = tensorrt.create_network(builder)
        parser = tensorrt.module.OnnxParser(network, tensorrt.logger)
        assert parser.parse(misread or model), tensorrt.logger.errors
        types = tensorrt.tensor_types(network, model)
        return check_network(tensorrt, network, model, types, graph=graph, precision=precision)

    return run


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, int],
    outputs: dict[str, int],
    weights: dict[str, Any],
    *,
    opset: int = 17,
) -> bytes:
    """Build a model whose inputs and outputs have shape (1, 2, 8, 8) and the given types."""
    shapes = {"grid": [1, 8, 8, 2]}
    taken, made = (
        [
            helper.make_tensor_value_info(name, dtype, shapes.get(name, [1, 2, 8, 8]))
            for name, dtype in side.items()
        ]
        for side in (inputs, outputs)
    )
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "made_up", taken, made, initializers)
    onnx_model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    onnx_model.ir_version = 10
    onnx.checker.check_model(onnx_model)
    return bytes(onnx_model.SerializeToString())


def sampling(
    *, mode: str, aligned: int = 0, padding: str = "zeros", opset: int = 17, dtype: int = FLOAT
) -> bytes:
    """Build a model with one GridSample."""
    node = helper.make_node(
        "GridSample",
        ["image", "grid"],
        ["out"],
        name="warp",
        mode=mode,
        align_corners=aligned,
        padding_mode=padding,
    )
    return model([node], {"image": dtype, "grid": dtype}, {"out": dtype}, {}, opset=opset)


KERNEL = np.ones((2, 2, 3, 3))


def convolution(name: str, source: str, result: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, f"{name}.w"], [result], name=name, pads=[1, 1, 1, 1])


def cast(source: str, result: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"cast_{result}", to=to)


@pytest.fixture(scope="module")
def bundles(tiny_bundle: Path, tiny_bundle_float16: Path) -> dict[Precision, Bundle]:
    return {"float32": open_bundle(tiny_bundle), "float16": open_bundle(tiny_bundle_float16)}


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_exported_graphs_pass(
    bundles: dict[Precision, Bundle], precision: Precision, table: Table
) -> None:
    """Every graph is read correctly, as the table of layers shows.

    All convolutions have the bundle's type, all sampling is float32, and float16 bundles have no
    features in float32.
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


def test_bilinear_sampling_passes(table: Table) -> None:
    """Bilinear sampling passes, also under its name in opset 20."""
    assert table(sampling(mode="bilinear"), precision="float32") == {"GRID_SAMPLE float32": 1}
    assert table(sampling(mode="linear", opset=20), precision="float32")


def test_sampling_of_earlier_bundles_passes(table: Table) -> None:
    """Bundles of versions before 0.3 align the corners, and flow pads with the border."""
    earlier = sampling(mode="bilinear", aligned=1, padding="border")
    assert table(earlier, precision="float32") == {"GRID_SAMPLE float32": 1}


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (sampling(mode="bilinear", aligned=1), "with zeros outside and corners aligned"),
        (sampling(mode="bilinear", padding="border"), "with border outside and corners not"),
        (sampling(mode="bilinear", padding="reflection"), "with reflect outside and corners not"),
    ],
    ids=["corners", "border", "reflection"],
)
def test_sampling_that_is_misread_is_rejected(read: bytes, words: str, table: Table) -> None:
    """A parser that reads other corners or padding than the graph has is detected."""
    with pytest.raises(EngineError, match="zeros outside and corners not aligned: exp") as caught:
        table(sampling(mode="bilinear"), misread=read, precision="float32")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (sampling(mode="nearest"), "reads the sampling 'warp' as nearest with zeros outside"),
        (sampling(mode="nearest", opset=20), "as nearest with zeros outside"),
        (sampling(mode="bicubic"), "as cubic with zeros outside"),
        (
            sampling(mode="bilinear", dtype=HALF),
            "'warp' has inputs of type float16 and float16, but both",
        ),
    ],
    ids=["nearest", "nearest of opset 20", "cubic", "float16 coordinates"],
)
def test_other_sampling_is_rejected(graph: bytes, words: str, table: Table) -> None:
    """A parser that misreads the mode is detected; the message names graph and layer."""
    with pytest.raises(EngineError, match="graph 'made up'") as caught:
        table(graph, precision="float16")
    assert words in str(caught.value)


def test_a_float32_convolution_in_a_float16_bundle_is_rejected(table: Table) -> None:
    """The message names the convolution that has lost its type."""
    nodes = [
        convolution("first", "frame", "features"),
        cast("features", "wide", FLOAT),
        convolution("second", "wide", "out"),
    ]
    weights = {"first.w": KERNEL.astype(np.float16), "second.w": KERNEL.astype(np.float32)}
    wide = model(nodes, {"frame": HALF}, {"out": FLOAT}, weights)
    with pytest.raises(EngineError, match="the convolution 'second' as float32 in a float16"):
        table(wide, precision="float16")


def test_a_convolution_that_is_not_read_as_one_is_reported(table: Table) -> None:
    """The types of 8.6 are those of the graph, so the network must have its convolutions."""
    weights = {"first.w": KERNEL.astype(np.float16)}
    graph = model([convolution("first", "frame", "out")], {"frame": HALF}, {"out": HALF}, weights)
    other = helper.make_node("Relu", ["frame"], ["out"], name="first")
    misread = model([other], {"frame": HALF}, {"out": HALF}, {})
    assert table(graph, precision="float16") == {"CONVOLUTION float16": 1}
    with pytest.raises(EngineError, match="reads 0 of its 1 convolutions as such"):
        table(graph, misread=misread, precision="float16")


def relu_between(wide: int) -> bytes:
    """Build two float16 convolutions with a ReLU of some type between them, and a float32 flow."""
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


def test_features_in_float32_are_rejected(table: Table) -> None:
    """The message names float32 layers that are not connected to flow, sampling or images.

    Flow itself may be float32.
    """
    assert table(relu_between(HALF), precision="float16")["UNARY float32"] == 1
    with pytest.raises(EngineError, match=r"the layer '(cast_wide|relu)' is float32 in a float16"):
        table(relu_between(FLOAT), precision="float16")


def test_convolutions_of_dequantised_values_count_as_int8(table: Table) -> None:
    """A convolution whose input comes from a dequantise layer runs in int8, which is allowed."""
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
    quantised = model(nodes, {"frame": HALF}, {"out": HALF}, weights, opset=19)
    found = table(quantised, precision="float16")
    assert (found["CONVOLUTION int8"], found["CONVOLUTION float16"]) == (1, 1)
