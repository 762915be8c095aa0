"""Tests int8 quantisation: the quantised nodes, calibration on real footage, and the PSNR gate."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from rbvsr_deploy.bundle import Manifest, open_bundle
from rbvsr_deploy.bundle.engine_sets import ShapeProfile
from rbvsr_deploy.checkpoint import load_checkpoint
from rbvsr_deploy.commands.export import export as export_command
from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.engines.pytorch import TorchEngine
from rbvsr_deploy.engines.tensorrt.unquantised import unquantised
from rbvsr_deploy.errors import ExportError, MediaError
from rbvsr_deploy.export import to_bundle as export_module
from rbvsr_deploy.export.calibration import (
    FRAMES,
    SAMPLES,
    WINDOW,
    Clip,
    read_clip,
    record_inputs,
    upscale_clip,
)
from rbvsr_deploy.export.checks import check_quantisation
from rbvsr_deploy.export.int8 import quantise_network
from rbvsr_deploy.export.onnx_export import convert_opset
from rbvsr_deploy.export.quantise import (
    QUANTISED_OPSET,
    Calibrator,
    activation_scales,
    quantise,
    residual_blocks,
)
from rbvsr_deploy.export.to_bundle import export_bundle
from rbvsr_deploy.graphs import GRAPHS, GraphSpec
from rbvsr_deploy.model import RealBasicVSR
from tests.conftest import moving_clip

QUANTISED = ("clean", "backward", "forward")


def write_clip(path: Path, images: NDArray[np.uint8]) -> Path:
    """Write frames to a video that is lossless except for the colour conversion."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mkv", moving_clip(12, 48, 64))


@pytest.fixture(scope="module")
def clip(clip_path: Path) -> Clip:
    return read_clip(clip_path)


@pytest.fixture(scope="module")
def float16(tiny_bundle_float16: Path) -> tuple[Manifest, dict[str, bytes]]:
    """Return manifest and graphs of a float16 bundle with the opset for int8."""
    bundle = open_bundle(tiny_bundle_float16)
    graphs = {}
    for name, data in bundle.graphs().items():
        proto = convert_opset(onnx.load_from_string(data), QUANTISED_OPSET)
        graphs[name] = proto.SerializeToString()
    return dataclasses.replace(bundle.manifest, opset=QUANTISED_OPSET), graphs


@pytest.fixture(scope="module")
def export_int8(
    float16: tuple[Manifest, dict[str, bytes]], tiny_checkpoint: Path, clip_path: Path
) -> Iterator[Callable[[Path], Path]]:
    """Return the complete export, which reuses graphs exported earlier."""

    def exported_earlier(module: object, spec: GraphSpec, **options: object) -> onnx.ModelProto:
        return onnx.load_from_string(float16[1][spec.name])

    def export(path: Path) -> Path:
        export_bundle(
            tiny_checkpoint, path, precision="float16", opset=19, calibrate=[clip_path], min_psnr=40
        )
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "export_graph", exported_earlier)
        yield export


@pytest.fixture(scope="module")
def int8_bundle(export_int8: Callable[[Path], Path], clip_path: Path) -> Path:
    return export_int8(clip_path.with_name("int8.plan"))


@pytest.fixture
def model(tiny_checkpoint: Path) -> RealBasicVSR:
    return load_checkpoint(tiny_checkpoint).model


def initializers(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def recorded(
    model: RealBasicVSR, clip: Clip, graph: str, *, no_state: bool = False
) -> list[dict[str, NDArray[Any]]]:
    """Record the inputs of a graph on a clip, in the types of a float16 bundle."""
    with TorchEngine(model, name="", device="cpu") as engine:
        _, recording = record_inputs(engine, clip, [graph], every=1)
    samples = recording[graph]
    return [
        {
            item.name: (sample[item.name] * (not no_state or item.name != "state")).astype(
                item.numpy_dtype("float16")
            )
            for item in GRAPHS[graph].inputs
        }
        for sample in samples
    ]


def scales(proto: onnx.ModelProto, samples: list[dict[str, NDArray[Any]]]) -> dict[str, float]:
    """Return the activation scales of a graph's first block, calibrated on some inputs."""
    with Calibrator(proto) as calibrator:
        calibrator.add(samples)
        ranges = calibrator.ranges()
    (block, *_) = residual_blocks(proto)
    return activation_scales(quantise(proto, [block], ranges), block)


# ---------------------------------------------------------------------------------------- graphs


def test_residual_blocks_are_found_and_nothing_else(
    float16: tuple[Manifest, dict[str, bytes]],
) -> None:
    """The trunks and the cleaner have the network's blocks; the other graphs have none."""
    blocks = {
        name: len(residual_blocks(onnx.load_from_string(data))) for name, data in float16[1].items()
    }
    assert blocks == {name: int(name in QUANTISED) for name in GRAPHS}


def rounded_weights(model: bytes) -> set[str]:
    """Return the names of the stored weights that a graph rounds to int8."""
    proto = onnx.load_from_string(model)
    stored = {n for n, values in initializers(proto).items() if values.ndim == 4}
    return {
        node.input[0]
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in stored
    }


@pytest.mark.slow
def test_only_residual_convolutions_are_quantised(
    int8_bundle: Path, float16: tuple[Manifest, dict[str, bytes]]
) -> None:
    """Weights of the 3x3 convolutions in residual blocks are rounded to int8 with one scale by the
    graph; all other weights, all biases and all graphs without blocks are unchanged.
    """
    bundle = open_bundle(int8_bundle)
    for name, data in float16[1].items():
        if name not in QUANTISED:
            assert bundle.graph(name) == data
            continue
        quantised: set[str] = set()
        before = initializers(onnx.load_from_string(data))
        after = initializers(onnx.load_from_string(bundle.graph(name)))
        for weight, values in before.items():
            if re.search(r"resblocks\.main\.2\.\d+\.conv[12]\.weight$", weight) or re.search(
                r"image_cleaning\.0\.main\.2\.\d+\.conv[12]\.weight$", weight
            ):
                quantised.add(weight)
                scale = after[f"{weight}_scale"]
                assert scale.shape == ()
                assert np.abs(values).max() / scale == pytest.approx(127, rel=0.01)
            np.testing.assert_array_equal(after[weight], values)
        assert rounded_weights(bundle.graph(name)) == quantised


@pytest.mark.slow
def test_scales_are_positive_and_zero_points_zero(int8_bundle: Path) -> None:
    """Scales and zero-points satisfy TensorRT's ONNX parser and the export's own check."""
    bundle = open_bundle(int8_bundle)
    for name in QUANTISED:
        proto = onnx.load_from_string(bundle.graph(name))
        check_quantisation(proto, GRAPHS[name])
        values = initializers(proto)
        assert [n.op_type for n in proto.graph.node].count("QuantizeLinear") == 4
        assert [n.op_type for n in proto.graph.node].count("DequantizeLinear") == 4
        for node in proto.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                assert values[node.input[1]].dtype == np.float16
                assert (values[node.input[1]] > 0).all()
                assert values[node.input[2]].dtype == np.int8
                assert not values[node.input[2]].any()


def test_without_its_roundings_a_graph_is_in_float16(
    int8_bundle: Path, float16: tuple[Manifest, dict[str, bytes]]
) -> None:
    """Builds for GPUs where int8 is slower use exactly the float16 graph."""
    bundle = open_bundle(int8_bundle)
    for name, data in float16[1].items():
        before = onnx.load_from_string(data)
        after = onnx.load_from_string(unquantised(bundle.graph(name)))
        nodes, others = ({n.name: n for n in proto.graph.node} for proto in (before, after))
        assert nodes == others
        values, kept = initializers(before), initializers(after)
        assert values.keys() == kept.keys()
        for weight in values:
            np.testing.assert_array_equal(kept[weight], values[weight], strict=True)


def test_the_sum_takes_what_the_first_convolution_takes(int8_bundle: Path) -> None:
    """One dequantised value feeds both; the second convolution's output stays unquantised."""
    for name in QUANTISED:
        proto = onnx.load_from_string(open_bundle(int8_bundle).graph(name))
        producers = {output: node for node in proto.graph.node for output in node.output}
        convolutions = [
            node
            for node in proto.graph.node
            if node.op_type == "Conv"
            and node.input[0] in producers
            and producers[node.input[0]].op_type == "DequantizeLinear"
        ]
        first, second = convolutions
        sums = [n for n in proto.graph.node if n.op_type == "Add" and second.output[0] in n.input]
        assert [list(node.input) for node in sums] == [[first.input[0], second.output[0]]]


def _other_zero_point(proto: onnx.ModelProto) -> None:
    for tensor in proto.graph.initializer:
        if tensor.name.endswith("zero_point"):
            values = onnx.numpy_helper.to_array(tensor) + np.int8(1)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def _no_scale(proto: onnx.ModelProto) -> None:
    for tensor in proto.graph.initializer:
        if tensor.name.endswith("relu_scale"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(0, np.float16), tensor.name))


def _quantised_bias(proto: onnx.ModelProto) -> None:
    at, node = next((i, n) for i, n in enumerate(proto.graph.node) if n.name == "node_conv2d_1")
    zero, levels = np.zeros(8, np.int8), np.ones(8, np.int8)
    for name, values in (("zero", zero), ("scale", levels.astype(np.float16)), ("levels", levels)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    inputs = ["levels", "scale", "zero"]
    bias = onnx.helper.make_node("DequantizeLinear", inputs, ["bias"], axis=0)
    node.input[2] = "bias"
    proto.graph.node.insert(at, bias)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_zero_point, "zero-point other than int8 0"),
        (_no_scale, "scale that is not positive"),
        (_quantised_bias, "and an unquantised bias"),
    ],
)
def test_broken_quantisation_is_detected(
    int8_bundle: Path, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    """Each requirement of TensorRT is checked."""
    proto = onnx.load_from_string(open_bundle(int8_bundle).graph("backward"))
    change(proto)
    with pytest.raises(ExportError, match=message):
        check_quantisation(proto, GRAPHS["backward"])


# ---------------------------------------------------------------------------------------- ranges


@pytest.mark.slow
def test_scales_are_the_largest_values_seen(
    float16: tuple[Manifest, dict[str, bytes]], model: RealBasicVSR, clip: Clip
) -> None:
    """A scale times 127 is the largest absolute value of the activation."""
    proto = onnx.load_from_string(float16[1]["backward"])
    samples = recorded(model, clip, "backward")
    (block,) = residual_blocks(proto)
    probe = copy.deepcopy(proto)
    for name in (block.input, block.hidden):
        probe.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, None)
        )
    session = onnxruntime.InferenceSession(probe.SerializeToString())
    seen = [session.run([block.input, block.hidden], sample) for sample in samples]
    found = scales(proto, samples)
    for name, values in zip(("input", "hidden"), zip(*seen, strict=True), strict=True):
        largest = max(float(np.abs(value).max()) for value in values)
        assert found[name] == pytest.approx(largest / 127, rel=2e-3)


def test_scales_depend_on_the_clip(
    float16: tuple[Manifest, dict[str, bytes]], model: RealBasicVSR, clip: Clip
) -> None:
    """A dim clip has smaller ranges."""
    proto = onnx.load_from_string(float16[1]["clean"])
    dim = Clip(clip.name, "", clip.size, clip.images // 4, clip.cuts)
    bright, dark = (scales(proto, recorded(model, item, "clean")) for item in (clip, dim))
    assert dark["input"] < 0.5 * bright["input"]


def test_propagated_states_have_larger_ranges(
    float16: tuple[Manifest, dict[str, bytes]], model: RealBasicVSR, clip: Clip
) -> None:
    """Calibration on first steps only would give too small ranges."""
    proto = onnx.load_from_string(float16[1]["forward"])
    propagated = scales(proto, recorded(model, clip, "forward"))
    first = scales(proto, recorded(model, clip, "forward", no_state=True))
    assert propagated["input"] > 1.05 * first["input"]


@pytest.mark.slow
def test_samples_are_bounded_and_spread(model: RealBasicVSR, clip: Clip) -> None:
    """Every n-th run is recorded, with its input state."""
    with TorchEngine(model, name="", device="cpu") as engine:
        _, some = record_inputs(engine, clip, ["backward", "clean"], every=5)
        assert {name: len(found) for name, found in some.items()} == {"backward": 2, "clean": 2}
        deep = some["backward"][-1]
        _, everything = record_inputs(engine, clip, ["backward"], every=1)
        all_samples = everything["backward"]
    assert len(all_samples) == 12
    assert not all_samples[0]["state"].any()
    np.testing.assert_array_equal(all_samples[9]["state"], deep["state"])
    assert deep["state"].any()


# ----------------------------------------------------------------------------------------- clips


def test_a_clip_holds_centre_crops_of_its_first_frames(tmp_path: Path) -> None:
    """Long and large clips are cropped; cuts are detected in whole frames."""
    images = np.zeros((FRAMES + 3, WINDOW[0] + 20, WINDOW[1] + 10, 3), np.uint8)
    images[..., 10:-10, 5:-5, :] = 100
    images[30:, ..., 5:-5, :] = 250
    clip = read_clip(write_clip(tmp_path / "long.mkv", images))
    assert clip.images.shape == (FRAMES, *WINDOW, 3)
    assert clip.size == (WINDOW[0] + 20, WINDOW[1] + 10)
    assert clip.images.min() > 90  # the border is cropped
    assert clip.cuts == {30}
    part = clip.excerpt(25, 35, window=(8, 16))
    assert part.images.shape == (10, 8, 16, 3)
    assert part.cuts == {5}
    assert FRAMES // SAMPLES > 1


def test_clips_that_cannot_calibrate_are_refused(tmp_path: Path) -> None:
    """A single frame, a missing file and a file that is not a video are refused."""
    single = write_clip(tmp_path / "single.mkv", moving_clip(1, 48, 64))
    with pytest.raises(ExportError, match=r"single\.mkv' has 1 frame, and at least 8 are needed"):
        read_clip(single)
    with pytest.raises(MediaError, match="does not exist"):
        read_clip(tmp_path / "missing.mkv")
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(MediaError, match=r"text\.mp4"):
        read_clip(text)


def test_a_bad_clip_is_detected_first(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A bad clip is refused before anything is exported, and no file is left."""
    steps: list[str] = []
    with pytest.raises(MediaError):
        export_bundle(
            tiny_checkpoint,
            tmp_path / "model.plan",
            precision="float16",
            opset=19,
            calibrate=[tmp_path / "missing.mkv"],
            report=steps.append,
        )
    assert steps == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--int8"], "--int8 needs --calibrate"),
        (["--calibrate", "clip.mp4"], "--calibrate is only for --int8"),
        (["--int8", "--calibrate", "clip.mp4", "--opset", "18"], "--int8 needs --opset 19"),
    ],
)
def test_incompatible_options_are_refused(arguments: list[str], message: str) -> None:
    """The command reports which options must be combined."""
    result = CliRunner().invoke(export_command, arguments)
    assert result.exit_code == 2
    assert message in result.output


# ------------------------------------------------------------------------------------------ gate


PARTS = {
    "clean": "image_cleaning.0",
    "backward": "basicvsr.backward_resblocks",
    "forward": "basicvsr.forward_resblocks",
}


def with_weights_of(model: RealBasicVSR, graphs: dict[str, bytes]) -> dict[str, bytes]:
    """Return the graphs with the weights of a modified model."""
    weights = {f"model.{name}": value.numpy() for name, value in model.state_dict().items()}
    changed = {}
    for graph, data in graphs.items():
        proto = onnx.load_from_string(data)
        for tensor in proto.graph.initializer:
            if tensor.name in weights:
                values = weights[tensor.name].astype(np.float16)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        changed[graph] = proto.SerializeToString()
    return changed


def make_hidden_sensitive(model: RealBasicVSR, graph: str) -> None:
    """Amplify the change that a block adds, and give it a hidden channel of huge values that the
    second convolution ignores: harmless in float, but with one int8 scale for all channels, the
    others vanish.
    """
    block = model.get_submodule(f"{PARTS[graph]}.main.2.0")
    block.conv1.bias[0] = 30000.0
    block.conv2.weight *= 10.0
    block.conv2.weight[:, 0] = 0.0


def make_sum_sensitive(model: RealBasicVSR) -> None:
    """Give the cleaner's trunk a channel of large values that all convolutions ignore: an int8 sum
    loses the other channels, a float16 sum only the block's addition to them.
    """
    model.image_cleaning[0].main[0].bias[5] = 300.0
    model.image_cleaning[0].main[2][0].conv1.weight[:, 5] = 0.0
    model.image_cleaning[1].weight[:, 5] = 0.0


def test_the_record_matches_a_real_run(
    int8_bundle: Path, tiny_checkpoint: Path, clip: Clip
) -> None:
    """The PSNR in the manifest compares the bundle under ONNX Runtime on a CPU with the checkpoint
    in torch; clip, scales and blocks are recorded.
    """
    manifest = open_bundle(int8_bundle).manifest
    record = manifest.quantisation
    assert record is not None
    results = []
    for path in (int8_bundle, tiny_checkpoint):
        with open_engine(path, device="cpu") as engine:
            results.append(upscale_clip(engine, clip).astype(np.float64))
    errors = ((results[0] - results[1]) ** 2).mean(axis=(1, 2, 3))
    score = record["psnr"]["int8"]
    assert score["psnr"] == pytest.approx(10 * np.log10(255**2 / errors.mean()), abs=0.01)
    assert score["worst_frame"] == errors.argmax()
    assert score["worst_psnr"] == pytest.approx(10 * np.log10(255**2 / errors.max()), abs=0.01)
    assert record["psnr"]["float16"]["psnr"] > score["psnr"] >= record["min_psnr"] == 40
    assert record["clips"][0]["sha256"] == clip.sha256
    assert record["clips"][0]["frames"] == 12
    assert set(record["graphs"]) == set(QUANTISED)
    for name, blocks in record["graphs"].items():
        proto = onnx.load_from_string(open_bundle(int8_bundle).graph(name))
        assert [block["form"] for block in blocks] == ["int8"]
        recorded_scales = set(blocks[0]["scales"].values())
        assert recorded_scales <= {float(v) for v in initializers(proto).values() if v.ndim == 0}
    # The verification of the float16 graphs does not apply to quantised ones.
    assert set(manifest.verification["outputs"]) == set(GRAPHS) - set(QUANTISED)


@pytest.mark.slow
def test_a_sensitive_sum_goes_back_to_float16(
    float16: tuple[Manifest, dict[str, bytes]], model: RealBasicVSR, clip: Clip
) -> None:
    """Only this sum returns to float16: its convolutions and all other blocks stay in int8."""
    manifest, graphs = float16
    make_sum_sensitive(model)
    graphs = with_weights_of(model, graphs)
    quantised, record = quantise_network(model, manifest, graphs, [clip], min_psnr=45)
    forms = {name: blocks[0]["form"] for name, blocks in record["graphs"].items()}
    assert forms == {"clean": "int8, float16 sum", "backward": "int8", "forward": "int8"}
    psnr = {name: score["psnr"] for name, score in record["psnr"].items()}
    assert psnr["all int8"] < 45 <= psnr["int8"] <= psnr["float16"]
    proto = onnx.load_from_string(quantised["clean"])
    check_quantisation(proto, GRAPHS["clean"])
    (block,) = residual_blocks(onnx.load_from_string(graphs["clean"]))
    taken = {node.name: node.input[0] for node in proto.graph.node}
    assert taken[block.sum] == block.input
    assert [taken[name] for name in block.convolutions] == [
        f"{name}_DequantizeLinear_Output" for name in (block.input, block.hidden)
    ]


@pytest.mark.slow
def test_a_sensitive_block_goes_back_to_float16(
    float16: tuple[Manifest, dict[str, bytes]], model: RealBasicVSR, clip: Clip
) -> None:
    """If a float16 sum is not enough, the whole block returns; sensitivities are recorded."""
    manifest, graphs = float16
    make_hidden_sensitive(model, "forward")
    graphs = with_weights_of(model, graphs)
    lines: list[str] = []
    quantised, record = quantise_network(
        model, manifest, graphs, [clip], min_psnr=50, report=lines.append
    )
    in_int8 = {name: blocks[0]["form"] != "float16" for name, blocks in record["graphs"].items()}
    assert in_int8 == {"clean": True, "backward": True, "forward": False}
    assert quantised["forward"] == graphs["forward"]
    psnr = {name: score["psnr"] for name, score in record["psnr"].items()}
    assert psnr["all int8"] < 50 <= psnr["int8"] <= psnr["float16"]
    alone = {name: blocks[0]["psnr_alone"] for name, blocks in record["graphs"].items()}
    assert min(alone, key=alone.__getitem__) == "forward"
    assert any(line.startswith("forward: 0 of 1 residual blocks in int8") for line in lines)


@pytest.mark.slow
def test_a_gate_that_cannot_be_passed(
    float16: tuple[Manifest, dict[str, bytes]], model: RealBasicVSR, clip: Clip
) -> None:
    """The export fails if even float16 is below the gate, or if only float16 passes it."""
    manifest, graphs = float16
    with pytest.raises(ExportError, match="less than the required 90 dB"):
        quantise_network(model, manifest, graphs, [clip], min_psnr=90)
    for graph in QUANTISED:
        make_hidden_sensitive(model, graph)
    graphs = with_weights_of(model, graphs)
    with pytest.raises(ExportError, match="only with every residual block in float16"):
        quantise_network(model, manifest, graphs, [clip], min_psnr=60)


@pytest.mark.slow
def test_same_clip_same_bytes(
    int8_bundle: Path, export_int8: Callable[[Path], Path], tmp_path: Path
) -> None:
    """The export is deterministic."""
    assert export_int8(tmp_path / "again.plan").read_bytes() == int8_bundle.read_bytes()


# -------------------------------------------------------------------------------------- TensorRT


@pytest.mark.slow
def test_tensorrt_rtx_reads_and_builds_int8(int8_bundle: Path) -> None:
    """In the parsed networks, quantised convolutions take dequantised inputs and weights, and their
    sums a dequantised skip; all seven graphs are built without a GPU.
    """
    pytest.importorskip("tensorrt_rtx")
    from rbvsr_deploy.engines.tensorrt.build import build_engine_set
    from rbvsr_deploy.engines.tensorrt.flavours import load_flavour
    from rbvsr_deploy.engines.tensorrt.tensor_types import layers_of

    bundle = open_bundle(int8_bundle)
    rtx = load_flavour("tensorrt-rtx")  # TensorRT keeps the first logger of a process
    for name in QUANTISED:
        network = rtx.create_network(rtx.module.Builder(rtx.logger))
        parser = rtx.module.OnnxParser(network, rtx.logger)
        assert parser.parse(bundle.graph(name))
        layers = layers_of(network)
        producers = {layer.get_output(0).name: layer.type.name for layer in layers}
        kinds = [
            (layer.type.name, [producers.get(layer.get_input(i).name) for i in range(2)])
            for layer in layers
            if layer.type.name in ("CONVOLUTION", "ELEMENTWISE") and layer.num_inputs > 1
        ]
        assert kinds.count(("CONVOLUTION", ["DEQUANTIZE", "DEQUANTIZE"])) == 2
        assert kinds.count(("ELEMENTWISE", ["DEQUANTIZE", "CONVOLUTION"])) == 1

    engine_set, plans = build_engine_set(
        rtx,
        bundle.manifest,
        bundle.graphs(),
        profile=ShapeProfile(),
        compute_capability="8.6",
    )
    assert set(plans) == set(GRAPHS)
    for name in QUANTISED:
        assert engine_set.layers[name]["CONVOLUTION int8"] == 2
