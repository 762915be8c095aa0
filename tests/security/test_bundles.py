"""Tests that every command and call refuses hostile bundles in one sentence before any runtime
opens them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import ModelProto, TensorProto, helper, numpy_helper

from rbvsr_deploy import Upscaler
from rbvsr_deploy.bundle import open_bundle, write_bundle
from rbvsr_deploy.bundle.graph_check import check_graph_bytes
from rbvsr_deploy.bundle.onnx_fields import GraphFormatError
from rbvsr_deploy.commands.build import build
from rbvsr_deploy.commands.compare import compare
from rbvsr_deploy.commands.info import info
from rbvsr_deploy.commands.run import run
from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.errors import BundleError
from rbvsr_deploy.export.onnx_export import OPSETS, convert_opset, example_inputs
from rbvsr_deploy.export.quantise import Calibrator, quantise, residual_blocks
from rbvsr_deploy.graphs import GRAPHS
from rbvsr_deploy.model import COMPACT
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE

Edit = Callable[[ModelProto], object]


def loaded(data: bytes) -> ModelProto:
    return onnx.load_from_string(data)


def with_graph(bundle: Path, path: Path, name: str, data: bytes) -> Path:
    """Write the bundle with one graph replaced and valid checksums."""
    opened = open_bundle(bundle)
    write_bundle(path, opened.manifest, {**opened.graphs(), name: data})
    return path


def edited(bundle: Path, path: Path, name: str, edit: Edit) -> Path:
    """Write the bundle with one of its graphs changed."""
    model = loaded(open_bundle(bundle).graph(name))
    edit(model)
    return with_graph(bundle, path, name, model.SerializeToString())


def refused(done: Result, *expected: str) -> None:
    """Check that the command failed with one sentence and without a traceback."""
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit), done.exception
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    for text in expected:
        assert text in line


# -------------------------------------------------------------------------------- what is refused


def constant(model: ModelProto, values: object, dtype: str = "int64") -> str:
    """Add an initializer and return its name."""
    name = f"hostile{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
    return name


def first(model: ModelProto, *nodes: onnx.NodeProto) -> None:
    """Insert nodes before the others."""
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])


def external_file(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def external_memory(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.external_data.add(key="location", value="*/_ORT_MEM_ADDR_/*")
    tensor.external_data.add(key="offset", value=str(0x4141414141))


def location_only(model: ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def external_in_attribute(model: ModelProto) -> None:
    tensor = TensorProto(name="x", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret")
    first(model, helper.make_node("Constant", [], ["stolen"], value=tensor))


def sparse(model: ModelProto) -> None:
    model.graph.sparse_initializer.add().dims.extend([4])


def function(model: ModelProto) -> None:
    opset = helper.make_opsetid("", 18)
    body = helper.make_node("Relu", ["a"], ["b"])
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], [body], [opset]))


def foreign_domain(model: ModelProto) -> None:
    first(model, helper.make_node("FusedConv", ["picture"], ["x"], domain="com.microsoft"))


def foreign_opset(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def endless_loop(model: ModelProto) -> None:
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    body = helper.make_graph(
        [helper.make_node("Constant", [], ["again"], value=true)],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("again", TensorProto.BOOL, [])],
    )
    first(model, helper.make_node("Loop", ["", constant(model, True, "bool")], [], body=body))


def branch(model: ModelProto) -> None:
    body = helper.make_graph([], "empty", [], [])
    on = constant(model, True, "bool")
    first(model, helper.make_node("If", [on], [], then_branch=body, else_branch=body))


def text(model: ModelProto) -> None:
    values: Any = [b"text"]  # onnx declares numbers only
    model.graph.initializer.append(helper.make_tensor("t", TensorProto.STRING, [1], values))


def cast_to_text(model: ModelProto) -> None:
    first(model, helper.make_node("Cast", ["picture"], ["t"], to=TensorProto.STRING))


def text_output(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING


def constant_of_shape(model: ModelProto) -> None:
    first(model, helper.make_node("ConstantOfShape", [constant(model, [1536 * 2**20])], ["x"]))


def expanded_constant(model: ModelProto) -> None:
    inputs = [constant(model, [1.0], "float32"), constant(model, [2**31])]
    first(model, helper.make_node("Expand", inputs, ["x"]))


def range_of_constants(model: ModelProto) -> None:
    inputs = [constant(model, value) for value in (0, 2**40, 1)]
    first(model, helper.make_node("Range", inputs, ["x"]))


def outer_product(model: ModelProto) -> None:
    side = np.ones(100_000, np.float32)
    inputs = [constant(model, values, "float32") for values in (side[None], side[:, None])]
    first(model, helper.make_node("Mul", inputs, ["x"]))


def enlarged(model: ModelProto) -> None:
    scales = constant(model, [1, 1, 1000, 1000], "float32")
    first(model, helper.make_node("Resize", ["picture", "", scales], ["x"]))


def resized(model: ModelProto) -> None:
    sizes = constant(model, [1, 3, 10**5, 10**5])
    first(model, helper.make_node("Resize", ["picture", "", "", sizes], ["x"]))


def expanded(model: ModelProto) -> None:
    shape = constant(model, [10**9, 1, 1, 1, 1])
    first(model, helper.make_node("Expand", ["picture", shape], ["x"]))


def rounded_twice(model: ModelProto) -> None:
    """Graphs round their weights, but folding a chain of roundings could take any time."""
    scale, zero = constant(model, 0.1, "float32"), constant(model, 0, "int8")
    names = [constant(model, np.ones(100), "float32"), "a", "b", "c"]
    kinds = ("QuantizeLinear", "DequantizeLinear", "QuantizeLinear")
    pairs = zip(kinds, itertools.pairwise(names), strict=True)
    first(model, *(helper.make_node(kind, [x, scale, zero], [y]) for kind, (x, y) in pairs))


def padded_convolution(model: ModelProto) -> None:
    weight = constant(model, np.ones((3, 3, 1, 1)), "float32")
    pads = [10**5] * 4
    first(model, helper.make_node("Conv", ["picture", weight], ["x"], pads=pads))


def wide_pool(model: ModelProto) -> None:
    sizes: dict[str, Any] = {"kernel_shape": [1000, 1000], "pads": [999] * 4}
    first(model, helper.make_node("AveragePool", ["picture"], ["x"], **sizes))


def height(model: ModelProto) -> list[onnx.NodeProto]:
    """Return nodes that compute the frame height as ``h``."""
    return [
        helper.make_node("Shape", ["picture"], ["shape"], start=2, end=3),
        helper.make_node("Squeeze", ["shape"], ["h"]),
    ]


def long_range(model: ModelProto) -> None:
    zero, one, many = (constant(model, value) for value in (0, 1, 10**9))
    first(
        model,
        *height(model),
        helper.make_node("Mul", ["h", many], ["end"]),
        helper.make_node("Range", [zero, "end", one], ["x"]),
    )


def tower_of_squares(model: ModelProto) -> None:
    """Square a number repeatedly: the result has about 2^60 digits."""
    names = ["h", *(f"h{i}" for i in range(60))]
    pairs = itertools.pairwise(names)
    squares = [helper.make_node("Mul", [x, x], [square]) for x, square in pairs]
    first(model, *height(model), *squares)


def doubled_often(model: ModelProto) -> None:
    names = ["picture", *(f"x{i}" for i in range(40))]
    pairs = itertools.pairwise(names)
    first(model, *(helper.make_node("Concat", [x, x], [two], axis=0) for x, two in pairs))


def many_at_once(model: ModelProto) -> None:
    """Each value is small enough, but not all of them together."""
    scales = constant(model, [1, 1, 8, 8], "float32")
    names = [f"x{i}" for i in range(10_000)]
    nodes = [helper.make_node("Resize", ["picture", "", scales], [name]) for name in names]
    first(model, *nodes)


def product_of_all_pixels(model: ModelProto) -> None:
    column, row = constant(model, [-1, 1]), constant(model, [1, -1])
    first(
        model,
        helper.make_node("Reshape", ["picture", column], ["a"]),
        helper.make_node("Reshape", ["picture", row], ["b"]),
        helper.make_node("Add", ["a", "b"], ["x"]),
    )


def repeated_rows(model: ModelProto) -> None:
    indices = constant(model, np.zeros(10**6))
    first(model, helper.make_node("Gather", ["picture", indices], ["x"], axis=2))


def wrapped_around(model: ModelProto) -> None:
    """The end overflows in int32: a runtime gets a large positive number."""
    zero, one = (constant(model, value, "int32") for value in (0, 1))
    least = constant(model, -(2**31), "int32")
    nodes = [
        helper.make_node("Cast", ["h"], ["small"], to=TensorProto.INT32),
        helper.make_node("Sub", [least, "small"], ["end"]),
        helper.make_node("Range", [zero, "end", one], ["x"]),
    ]
    first(model, *height(model), *nodes)


def as_large_as_a_pixel_says(model: ModelProto) -> None:
    zero, one = (constant(model, value, "float32") for value in (0, 1))
    nodes = [
        helper.make_node("ReduceMean", ["picture"], ["mean"], axes=[0, 1, 2, 3], keepdims=0),
        helper.make_node("Range", [zero, "mean", one], ["x"]),
    ]
    model.opset_import[0].version = 17
    first(model, *nodes)


def shape_of_a_constant_size(model: ModelProto) -> None:
    """A runtime folds a constant shape when it opens the graph."""
    numbers = [constant(model, [value] * 4) for value in (0, 1)]
    axes = constant(model, [0, 1, 2, 3])
    first(
        model,
        helper.make_node("Slice", ["picture", *numbers, axes], ["one"]),
        helper.make_node("Shape", ["one"], ["x"]),
    )


def turned_image(model: ModelProto) -> None:
    """The declared output shape is correct, the computed one is not."""
    for node in model.graph.node:
        if node.op_type == "Transpose":
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("perm", [0, 3, 2, 1]))


def renamed_output(model: ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[-1].output[0] = "other"


def other_shape(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[3].dim_value = 4


def another_output(model: ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]))


def constant_output(model: ModelProto) -> None:
    model.graph.node[-1].output[0] = "elsewhere"
    image = numpy_helper.from_array(np.zeros((1, 4, 4, 3), np.uint8), "image")
    model.graph.initializer.append(image)


def shape_without_data(model: ModelProto) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([2**20, 2**20])


def negative_shape(model: ModelProto) -> None:
    model.graph.initializer[0].dims.extend([-1])


def random_numbers(model: ModelProto) -> None:
    first(model, helper.make_node("RandomNormal", [], ["x"], shape=[4]))


def opset_20(model: ModelProto) -> None:
    model.opset_import[0].version = 20


def cycle(model: ModelProto) -> None:
    first(model, helper.make_node("Relu", ["b"], ["a"]), helper.make_node("Relu", ["a"], ["b"]))


def computed_twice(model: ModelProto) -> None:
    first(model, *(helper.make_node("Relu", ["picture"], ["x"]) for _ in range(2)))


def input_computed(model: ModelProto) -> None:
    first(model, helper.make_node("Relu", ["picture"], ["picture"]))


def wide_convolutions(model: ModelProto) -> None:
    """Small values, but minutes of computation for one frame."""
    weights = [constant(model, np.zeros((16, n, 101, 101)), "float32") for n in (3, 16)]
    names = ["picture", *(f"x{i}" for i in range(20))]
    sizes: dict[str, Any] = {"pads": [50] * 4}
    for number, (x, y) in enumerate(itertools.pairwise(names)):
        model.graph.node.insert(
            number, helper.make_node("Conv", [x, weights[number > 0]], [y], **sizes)
        )


def many_pools(model: ModelProto) -> None:
    sizes: dict[str, Any] = {"kernel_shape": [101, 101], "pads": [50] * 4}
    names = ["picture", *(f"x{i}" for i in range(60))]
    pairs = itertools.pairwise(names)
    first(model, *(helper.make_node("AveragePool", [x], [y], **sizes) for x, y in pairs))


def many_nodes(model: ModelProto) -> None:
    """A runtime takes long to open a graph of many nodes, however little they compute."""
    names = ["h", *(f"x{i}" for i in range(20_000))]
    pairs = itertools.pairwise(names)
    first(model, *height(model), *(helper.make_node("Abs", [x], [y]) for x, y in pairs))


def many_constants(model: ModelProto) -> None:
    for number in range(20_000):
        tensor = numpy_helper.from_array(np.zeros(1, np.float32), f"x{number}")
        model.graph.initializer.append(tensor)


def overflowing_sizes(model: ModelProto) -> None:
    """In 64 bits, the number of values is 0."""
    first(
        model,
        helper.make_node("Expand", ["picture", constant(model, [2**62, 4, 1, 1, 1, 1])], ["x"]),
    )


def overflowing_constant(model: ModelProto) -> None:
    tensor = model.graph.initializer.add(name="x", data_type=TensorProto.FLOAT)
    tensor.dims.extend([2**62, 4])


def overflowing_pads(model: ModelProto) -> None:
    weight = constant(model, np.ones((3, 3, 1, 1)), "float32")
    sizes: dict[str, Any] = {"pads": [2**62] * 4}
    first(model, helper.make_node("Conv", ["picture", weight], ["x"], **sizes))


def no_group(model: ModelProto) -> None:
    weight = constant(model, np.ones((3, 3, 1, 1)), "float32")
    first(model, helper.make_node("Conv", ["picture", weight], ["x"], group=0))


def axis_twice(model: ModelProto) -> None:
    first(model, helper.make_node("Unsqueeze", ["picture", constant(model, [0, 0])], ["x"]))


def no_blocks(model: ModelProto) -> None:
    first(model, helper.make_node("DepthToSpace", ["picture"], ["x"], blocksize=0))


def step_of_zero(model: ModelProto) -> None:
    zero = constant(model, 0)
    first(model, *height(model), helper.make_node("Range", [zero, "h", zero], ["x"]))


def slice_without_step(model: ModelProto) -> None:
    numbers = [constant(model, [value]) for value in (0, 1, 0, 0)]
    first(model, helper.make_node("Slice", ["picture", *numbers], ["x"]))


def scale_of_infinity(model: ModelProto) -> None:
    scales = constant(model, [1, 1, np.inf, np.nan], "float32")
    first(model, helper.make_node("Resize", ["picture", "", scales], ["x"]))


def bfloat16(model: ModelProto) -> None:
    first(model, helper.make_node("Cast", ["picture"], ["x"], to=TensorProto.BFLOAT16))


def int4(model: ModelProto) -> None:
    model.graph.initializer.add(name="x", data_type=22, dims=[2], raw_data=b"a")


def sequence_output(model: ModelProto) -> None:
    model.graph.output[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT


def attribute_of_a_function(model: ModelProto) -> None:
    model.graph.node[0].attribute.add(name="a", ref_attr_name="b", type=1)


def metadata(model: ModelProto) -> None:
    model.metadata_props.add(key="a", value="b")


def long_text(model: ModelProto) -> None:
    model.doc_string = "x" * 10**6


HOSTILE: dict[Edit, str] = {
    cycle: "uses 'b' before it is computed",
    computed_twice: "computes 'x' twice",
    input_computed: "computes 'picture' twice",
    wide_convolutions: "takes more computation up to a Conv",
    many_pools: "takes more computation up to a AveragePool",
    many_nodes: "more fields than any network",
    many_constants: "more fields than any network",
    overflowing_sizes: "a Expand that makes",
    overflowing_constant: "0 values for 'x'",
    overflowing_pads: "a Conv that makes",
    no_group: "an invalid Conv",
    axis_twice: "an invalid Unsqueeze",
    no_blocks: "an invalid DepthToSpace",
    step_of_zero: "an invalid Range",
    slice_without_step: "an invalid Slice",
    scale_of_infinity: "an invalid Resize",
    bfloat16: "a Cast to something other than numbers",
    int4: "ONNX element type 22",
    sequence_output: "the field 4 of its type",
    attribute_of_a_function: "the field 21 of its attribute",
    metadata: "the field 14 of the model",
    long_text: "a field 'doc_string' that is not valid",
    external_file: "external data",
    external_memory: "external data",
    location_only: "external data",
    external_in_attribute: "a tensor in an attribute",
    sparse: "sparse tensors",
    function: "functions of its own",
    foreign_domain: "unknown domain 'com.microsoft'",
    foreign_opset: "com.microsoft",
    endless_loop: "a graph within a graph",
    branch: "a graph within a graph",
    text: "text in a tensor",
    cast_to_text: "a Cast to something other than numbers",
    text_output: "element type 8",
    constant_of_shape: "'ConstantOfShape'",
    expanded_constant: "a Expand with only constant inputs",
    range_of_constants: "a Range with only constant inputs",
    outer_product: "a Mul with only constant inputs",
    rounded_twice: "a QuantizeLinear with only constant inputs",
    enlarged: "a Resize that makes",
    resized: "a Resize that makes",
    expanded: "a Expand that makes",
    padded_convolution: "a Conv that makes",
    wide_pool: "an invalid AveragePool",
    long_range: "a Range that makes",
    tower_of_squares: "an invalid Mul",
    doubled_often: "a Concat that makes",
    many_at_once: "a Resize that makes",
    product_of_all_pixels: "a Add that makes",
    repeated_rows: "a Gather that makes",
    wrapped_around: "a Range whose size depends on pixels",
    as_large_as_a_pixel_says: "a Range whose size depends on pixels",
    shape_of_a_constant_size: "a shape that does not depend on the frame size",
    turned_image: "computes 'image' with shape",
    renamed_output: "has the outputs other uint8",
    other_shape: "has the outputs",
    another_output: "has the outputs",
    constant_output: "does not compute its output 'image'",
    shape_without_data: "values",
    negative_shape: "shape",
    random_numbers: "'RandomNormal'",
    opset_20: "operator set 20",
}


@pytest.mark.slow
@pytest.mark.parametrize("edit", HOSTILE, ids=lambda edit: edit.__name__)
def test_a_hostile_graph_is_refused(edit: Edit, tiny_bundle: Path, tmp_path: Path) -> None:
    """Even ``rbvsr-info``, with which a user inspects an unknown file, refuses it."""
    path = edited(tiny_bundle, tmp_path / "evil.plan", "emit", edit)
    done = CliRunner().invoke(info, [str(path)])
    refused(done, f"'{path}' is refused: its graph 'emit' ", HOSTILE[edit])
    assert done.stdout == ""


def test_every_command_and_call_checks(tiny_bundle: Path, sample: Path, tmp_path: Path) -> None:
    """No command or call opens a bundle whose constant is the content of a file."""
    path = edited(tiny_bundle, tmp_path / "evil.plan", "emit", external_file)
    output = tmp_path / "out.mp4"
    for command, arguments in (
        (run, [str(sample), "--engine", str(path), "-o", str(output)]),
        (run, [str(sample), "--engine", str(path), "--device", "cpu", "--preview", "2"]),
        (build, [str(path), "--remove", "any"]),
        (compare, [str(path), str(tiny_bundle), "--clip", str(sample)]),
        (compare, [str(tiny_bundle), str(path), "--clip", str(sample)]),
        (info, [str(path), "--json"]),
    ):
        refused(CliRunner().invoke(command, arguments), "external data")
    for call in (Upscaler, open_engine, open_bundle):
        with pytest.raises(BundleError, match="external data"):
            call(path)
    assert not output.exists()


# ------------------------------------------------------------------------------- malformed bytes


def check(data: bytes) -> None:
    check_graph_bytes(data, GRAPHS["emit"], precision="float32", channels=8)


def test_every_truncation_is_noticed(tiny_bundle: Path) -> None:
    """A truncated graph is refused wherever it ends, unless only complete, optional fields are
    missing.
    """
    data = open_bundle(tiny_bundle).graph("emit")
    check(data)
    for length in range(len(data)):
        try:
            check(data[:length])
        except GraphFormatError:
            continue
        assert len(onnx.load_from_string(data[:length]).graph.node) == 5


def test_flipped_bits_do_no_more_than_refuse(tiny_bundle: Path) -> None:
    """No changed byte of a graph makes the reader fail in any other way."""
    data = open_bundle(tiny_bundle).graph("emit")
    refusals = 0
    for position in range(len(data)):
        for bit in (0x01, 0x40, 0x80, 0xFF):
            changed = bytearray(data)
            changed[position] ^= bit
            try:
                check(bytes(changed))
            except GraphFormatError:
                refusals += 1
    assert refusals > len(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not an ONNX graph"),
        (b"not onnx", "wire type 6"),
        (b"\x3a" + b"\xff" * 10, "64 bits"),
        (b"\x3a\xff\xff\xff\xff\x0f", "cut off"),
        (b"\x3a\x00\x3a\x00", "graph of the model twice"),
        (b"\x0b" * 1000, "wire type 3"),
        (b"\x3a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", "not only that of ONNX"),
        (b"\x08" + b"\x80" * 9 + b"\x02", "64 bits"),
        (b"\xc2\x02\x00", "field 40"),
        (b"\x3a\x80\x80\x08" + b"\x0a\x00" * 2**16, "more fields than any network"),
    ],
)
def test_odd_bytes(data: bytes, expected: str) -> None:
    with pytest.raises(GraphFormatError, match=expected):
        check(data)


def test_the_ort_format_is_refused(tiny_bundle: Path) -> None:
    """ONNX Runtime takes valid ONNX for its own format if the bytes have its signature."""
    model = loaded(open_bundle(tiny_bundle).graph("emit"))
    for name in ("ir_version", "producer_name"):
        model.ClearField(name)
    data = field(2, b"xxORTM") + b"\x08\x0a" + model.SerializeToString()
    assert data[4:8] == b"ORTM"
    with pytest.raises(GraphFormatError, match="ONNX Runtime's own format"):
        check(data)
    check(field(2, b"xxORTN") + b"\x08\x0a" + model.SerializeToString())


def test_a_size_that_is_given_twice(tiny_bundle: Path) -> None:
    """Given as a number and as a name, the last one wins in parsers."""
    model = loaded(open_bundle(tiny_bundle).graph("emit"))
    model.graph.ClearField("output")

    def with_last_size(size: bytes) -> bytes:
        sizes = [field(2, name) for name in (b"N", b"4H", b"4W")] + [size]
        shape = b"".join(field(1, size) for size in sizes)
        kind = field(1, b"\x08\x02" + field(2, shape))  # uint8
        output = field(1, b"image") + field(2, kind)
        graph = model.graph.SerializeToString() + field(12, output)
        return field(7, graph) + field(8, model.opset_import[0].SerializeToString())

    check(with_last_size(b"\x08\x03"))
    for size in (b"\x08\x03" + field(2, b"4W"), b""):
        with pytest.raises(GraphFormatError, match="one of whose sizes is missing or given twice"):
            check(with_last_size(size))


def field(number: int, content: bytes) -> bytes:
    """Encode a field that contains bytes, text or a message."""

    def varint(value: int) -> bytes:
        rest = value >> 7
        return bytes([value & 0x7F | 0x80 * bool(rest)]) + (varint(rest) if rest else b"")

    return varint(number << 3 | 2) + varint(len(content)) + content


def test_deep_nesting_is_not_followed() -> None:
    """The reader refuses the first subgraph and does not read those nested in it."""
    graph = b""
    for _ in range(2000):
        graph = field(1, field(5, field(6, graph)))
    with pytest.raises(GraphFormatError, match="a graph within a graph"):
        check(field(7, graph))


# ---------------------------------------------------------------------------- what is let through


@pytest.mark.parametrize("kind", ["float32", "float16", "compact"])
def test_what_the_exporter_writes_passes(
    kind: str, tiny_bundle: Path, tiny_bundle_float16: Path
) -> None:
    """Every graph passes at every opset, and with int8 residual blocks, fused or not."""
    path = {"float32": tiny_bundle, "float16": tiny_bundle_float16}.get(kind, DEFAULT_BUNDLE)
    bundle = open_bundle(path)
    precision, channels = bundle.manifest.precision, bundle.manifest.channels
    passed: Counter[str] = Counter()
    for name, data in bundle.graphs().items():
        forms = {f"opset {opset}": convert_opset(loaded(data), opset) for opset in OPSETS}
        if blocks := residual_blocks(forms["opset 19"]):
            example = example_inputs(GRAPHS[name], channels=channels, precision=precision)
            inputs = zip(GRAPHS[name].inputs, example, strict=True)
            with Calibrator(forms["opset 19"]) as calibrator:
                calibrator.add([{item.name: value.numpy() for item, value in inputs}])
                ranges = calibrator.ranges()
            for form, unfused in (("fused", []), ("unfused", blocks)):
                copy = convert_opset(loaded(data), 19)
                forms[form] = quantise(copy, blocks, ranges, unfused=unfused)
        for form, model in forms.items():
            content = model.SerializeToString()
            check_graph_bytes(content, GRAPHS[name], precision=precision, channels=channels)
            passed[form] += 1
    quantised = 4 if kind == "compact" else 3  # its reconstruction has residual blocks too
    int8 = {"fused": quantised, "unfused": quantised}
    assert passed == {"opset 17": 10, "opset 18": 10, "opset 19": 10, **int8}


def test_the_shipped_bundle_opens() -> None:
    assert open_bundle(DEFAULT_BUNDLE).manifest.channels == COMPACT.mid_channels
