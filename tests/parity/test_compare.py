"""Tests comparing engines: verifiable figures, errors found in the graph that causes them, and one
sentence when two engines differ too much.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from rbvsr_deploy.bundle import Bundle, Manifest, open_bundle, write_bundle
from rbvsr_deploy.commands.compare import compare
from rbvsr_deploy.commands.export import export
from rbvsr_deploy.commands.info import info
from rbvsr_deploy.engines import Network, open_engine
from rbvsr_deploy.engines.onnx_runtime import OnnxRuntimeEngine
from rbvsr_deploy.errors import DeviceMemoryError
from rbvsr_deploy.graphs import OPTIONAL, GraphSpec
from rbvsr_deploy.parity.compare import Comparison, Tolerance, compare_engines, parse_model
from rbvsr_deploy.parity.comparison import default_tolerance
from rbvsr_deploy.runtime.stream import Settings, Stream
from rbvsr_deploy.video import open_source
from rbvsr_deploy.video.images import read_image, write_image
from tests.conftest import moving_clip

FRAMES, HEIGHT, WIDTH = 9, 24, 40


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of small images."""
    folder = tmp_path_factory.mktemp("clip")
    for number, image in enumerate(moving_clip(FRAMES, HEIGHT, WIDTH)):
        write_image(folder / f"{number:02}.png", image=image)
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(compare, [str(a) for a in arguments])


def compared(a: Path, b: Path, clip: Path, **options: object) -> Comparison:
    with (
        open_source(clip) as source,
        open_engine(a, device="cpu") as reference,
        open_engine(b, device="cpu") as other,
    ):
        return compare_engines(reference, other, source, **options)  # type: ignore[arg-type]


Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def changed(bundle: Path, path: Path, graph: str, change: Change, **manifest: object) -> Path:
    """Write a copy of a bundle in which the last bias of a graph is changed."""
    opened = open_bundle(bundle)
    graphs = opened.graphs()
    model = onnx.load_from_string(graphs[graph])
    biases = [tensor for tensor in model.graph.initializer if tensor.name.endswith("bias")]
    for tensor in biases[-1:]:
        values = onnx.numpy_helper.to_array(tensor)
        new = change(values.astype(np.float32)).astype(values.dtype)
        tensor.CopyFrom(onnx.numpy_helper.from_array(new, tensor.name))
    graphs[graph] = model.SerializeToString()
    write_bundle(path, dataclasses.replace(opened.manifest, **manifest), graphs)  # type: ignore[arg-type]
    return path


@pytest.mark.slow
def test_float32_bundle_agrees_with_its_checkpoint(
    tiny_checkpoint: Path, tiny_bundle: Path, clip: Path
) -> None:
    """It is far within the tolerance, every graph is compared, all frames count, exit code 0."""
    result = compared(tiny_checkpoint, tiny_bundle, clip)
    assert result.failures == []
    assert result.tolerance == Tolerance(max_difference=1e-3)
    assert result.pictures.max_difference < 1e-4
    assert result.images.max_levels <= 1
    assert (result.frames, result.width, result.height) == (FRAMES, WIDTH, HEIGHT)
    assert [frame.number for frame in result.per_frame] == list(range(FRAMES))
    assert sum(result.images.histogram.values()) == FRAMES * 16 * HEIGHT * WIDTH * 3
    assert result.images.pixels == FRAMES * 16 * HEIGHT * WIDTH
    names = ["ingest", "clean", "flow", "backward", "forward", "reconstruct", "emit"]
    assert list(result.graphs) == names
    assert all(graph.calls >= 4 for graph in result.graphs.values())
    done = invoke(f"{tiny_checkpoint}@cpu", f"{tiny_bundle}@cpu", "--clip", clip)
    assert done.exit_code == 0, done.output
    for name in (*names, "all frames", "worst frame"):
        assert name in done.stdout


def test_figures_are_those_of_the_output(
    tiny_bundle: Path, tiny_bundle_float16: Path, clip: Path
) -> None:
    """Histogram, pixels and levels match those computed from the output of the two streams."""
    sides = []
    for path in (tiny_bundle, tiny_bundle_float16):
        with (
            open_engine(path, device="cpu") as engine,
            Stream(engine, Settings(), size=(HEIGHT, WIDTH)) as stream,
        ):
            frames = [f for image in moving_clip(FRAMES, HEIGHT, WIDTH) for f in stream.push(image)]
            sides.append(np.stack([f.image for f in (*frames, *stream.flush())]).astype(int))
    levels = np.abs(sides[0] - sides[1])
    images = compared(tiny_bundle, tiny_bundle_float16, clip).images
    assert images.max_levels == levels.max() > 0
    assert images.histogram["0"] == (levels == 0).sum()
    assert images.histogram["1"] == (levels == 1).sum()
    assert images.differing_pixels == levels.any(axis=-1).sum()


def test_float16_is_within_50_db(
    tiny_checkpoint: Path, tiny_bundle_float16: Path, clip: Path
) -> None:
    """The whole chain and every graph are, with float16's tolerance; they are not equal either."""
    result = compared(tiny_checkpoint, tiny_bundle_float16, clip)
    assert result.tolerance == Tolerance(min_psnr=50.0)
    assert result.failures == []
    assert 50 < result.pictures.psnr < 150
    for graph in result.graphs.values():
        assert all(errors.psnr > 50 for errors in graph.outputs.values())
    assert result.graphs["flow"].outputs["flow"].max_difference > 0


@pytest.mark.slow
def test_reference_may_be_the_less_precise(
    tiny_bundle: Path, tiny_bundle_float16: Path, clip: Path
) -> None:
    """Inputs are converted in either direction, and the errors are the same."""
    forth = compared(tiny_bundle, tiny_bundle_float16, clip)
    back = compared(tiny_bundle_float16, tiny_bundle, clip)
    assert forth.pictures == back.pictures
    assert back.failures == []
    assert back.images == forth.images


@pytest.mark.parametrize("graph", ["backward", "forward", "reconstruct"])
def test_error_shows_in_the_graph_that_makes_it(
    graph: str, tiny_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    """A wrong bias in one graph gives exit code 1 and a sentence that names it; no other graph
    differs, neither before nor after it.
    """
    bad = changed(tiny_bundle, tmp_path / "bad.plan", graph, lambda bias: bias + 0.5)
    done = invoke(f"{tiny_bundle}@cpu", f"{bad}@cpu", "--clip", clip, "--json")
    assert done.exit_code == 1
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "bad.plan differs from tiny-float32.plan" in sentence
    assert "and 0.001 is allowed" in sentence
    assert f"on equal inputs the graph '{graph}' differs most" in sentence
    result = json.loads(done.stdout)
    for name, figures in result["graphs"].items():
        (first,) = list(figures["outputs"].values())[:1]
        assert (first["max_difference"] > 0.01) == (name == graph), name
    assert result["pictures"]["psnr"] < 60


def test_error_in_emit(tiny_bundle: Path, clip: Path, tmp_path: Path) -> None:
    """Errors in the conversion to uint8 are reported, whatever the PSNR before it."""
    opened = open_bundle(tiny_bundle)
    graphs = opened.graphs()
    model = onnx.load_from_string(graphs["emit"])
    changes = 0
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.t.data_type == onnx.TensorProto.FLOAT:
                value = onnx.numpy_helper.to_array(attribute.t)
                if value == 255.0:
                    attribute.t.CopyFrom(onnx.numpy_helper.from_array(value - 9))
                    changes += 1
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.size == 1 and value == 255.0:
            tensor.CopyFrom(onnx.numpy_helper.from_array(value - 9, tensor.name))
            changes += 1
    assert changes
    graphs["emit"] = model.SerializeToString()
    write_bundle(tmp_path / "dark.plan", opened.manifest, graphs)
    result = compared(tiny_bundle, tmp_path / "dark.plan", clip)
    assert result.pictures.max_difference == 0
    assert any("as uint8 the output differs by up to" in failure for failure in result.failures)


@pytest.mark.parametrize("which", ["reference", "other"])
def test_nan_fails(which: str, tiny_bundle: Path, clip: Path, tmp_path: Path) -> None:
    """NaN on either side fails, whatever the tolerance; the JSON stays valid."""
    bad = changed(tiny_bundle, tmp_path / "nan.plan", "forward", lambda bias: bias * np.nan)
    models = [f"{tiny_bundle}@cpu", f"{bad}@cpu"]
    if which == "reference":
        models.reverse()
    worst = tmp_path / "worst.png"
    done = invoke(*models, "--clip", clip, "--min-psnr", 0, "--json", "--worst", worst)
    assert done.exit_code == 1
    assert "are NaN or infinite, first made by the graph 'forward'" in done.stderr
    result = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert result["pictures"]["not_finite"] == FRAMES * 16 * HEIGHT * WIDTH * 3
    assert result["graphs"]["backward"]["outputs"]["new_state"]["not_finite"] == 0
    assert read_image(worst)[:, -4 * WIDTH :].min() == 255


def test_json_is_the_librarys_result(
    tiny_bundle: Path, tiny_bundle_float16: Path, clip: Path
) -> None:
    """--json prints the result that the Python function returns."""
    done = invoke(
        f"{tiny_bundle}@cpu", f"{tiny_bundle_float16}@cpu", "--clip", clip, "--frames", 3, "--json"
    )
    assert done.exit_code == 0, done.output
    result = compared(tiny_bundle, tiny_bundle_float16, clip, frames=3)
    assert result.frames == 3
    assert json.loads(done.stdout) == json.loads(json.dumps(dataclasses.asdict(result)))


def test_worst_image(tiny_bundle: Path, clip: Path, tmp_path: Path) -> None:
    """It shows the worst frame as each engine upscales it, and the difference, white where it is
    largest.
    """
    bad = changed(tiny_bundle, tmp_path / "bad.plan", "forward", lambda bias: bias + 0.1)
    worst = tmp_path / "worst.png"
    result = compared(tiny_bundle, bad, clip, worst=worst)
    psnr = [frame.errors.psnr for frame in result.per_frame]
    assert result.worst_frame == int(np.argmin(psnr))
    assert max(psnr) > min(psnr)
    image = read_image(worst)
    height, width = 4 * HEIGHT, 4 * WIDTH
    assert image.shape == (height, 3 * width + 2 * 16, 3)
    a, b, difference = (image[:, i * (width + 16) :][:, :width].astype(int) for i in range(3))
    assert (image[:, width : width + 16] == 255).all()
    for path, panel in ((tiny_bundle, a), (bad, b)):
        with (
            open_engine(path, device="cpu") as engine,
            Stream(engine, Settings(), size=(HEIGHT, WIDTH)) as stream,
        ):
            for frame in moving_clip(FRAMES, HEIGHT, WIDTH):
                assert not list(stream.push(frame))
            images = [frame.image for frame in stream.flush()]
        np.testing.assert_array_equal(panel, images[result.worst_frame])
    assert difference.max() == 255
    inside = (np.minimum(a, b) > 0) & (np.maximum(a, b) < 255)  # the others were clamped
    largest = result.per_frame[result.worst_frame].errors.max_difference
    assert np.abs(difference * largest - np.abs(a - b))[inside].max() < 1 + largest
    assert np.abs(a - b)[inside].max() > 3


@pytest.mark.slow
def test_different_decisions_are_reported(
    tiny_checkpoint: Path, clip: Path, tmp_path: Path
) -> None:
    """For one network with two thresholds, the report says which side cleaned how often, and how to
    make them equal.
    """
    weights = load_file(tiny_checkpoint)
    seldom, often = tmp_path / "seldom.safetensors", tmp_path / "often.safetensors"
    save_file(weights, seldom, metadata={"refine_threshold": "255"})
    save_file(weights, often, metadata={"refine_threshold": "0"})
    models = (f"{seldom}@cpu", f"{often}@cpu")
    result = compared(seldom, often, clip)
    (scene,) = result.scenes
    assert scene.cleanings == (1, 3)
    assert [len(residues) for residues in scene.residues] == [1, 3]
    assert not scene.agree
    assert result.failures
    done = invoke(*models, "--clip", clip)
    assert "A cleaned 1 times" in done.stdout
    assert "B 3 times" in done.stdout
    assert "use --cleanings N for equal numbers" in done.stdout
    done = invoke(*models, "--clip", clip, "--cleanings", 2)
    assert done.exit_code == 0, done.output
    assert "A cleaned" not in done.stdout


def test_cuts_are_the_same_for_both(tiny_bundle: Path, tmp_path: Path) -> None:
    """They are detected once in the clip: two scenes on both sides."""
    first, second = moving_clip(5, HEIGHT, WIDTH), moving_clip(4, HEIGHT, WIDTH)[:, ::-1] // 4
    for number, image in enumerate((*first, *second)):
        write_image(tmp_path / f"{number}.png", image=np.ascontiguousarray(image))
    result = compared(tiny_bundle, tiny_bundle, tmp_path)
    assert [(scene.first_frame, scene.frames) for scene in result.scenes] == [(0, 5), (5, 4)]
    assert result.pictures.max_difference == 0
    assert result.pictures.psnr == 200


class _SmallDevice(OnnxRuntimeEngine):
    """Has little memory: it upscales in bands, and fails once in the middle of the third frame."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, device="cpu")
        self.heights: list[int] = []
        """Heights of the bands that became uint8, in order."""

    def free_memory(self) -> int:
        return 16_000_000

    def run(self, graph: str, **options: Any) -> tuple[Any, ...]:
        if graph == "emit" and options["picture"].shape[2] < 4 * HEIGHT:  # else it is compared
            self.heights.append(options["picture"].shape[2])
            if len(self.heights) == 6:
                raise DeviceMemoryError("the double has no memory left")
        return super().run(graph, **options)


def test_bands_and_less_memory(
    tiny_bundle: Path, clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Frames that one side upscales in bands, some of them twice because it ran out of memory, are
    assembled and compared with their counterparts.
    """
    with (
        open_source(clip) as source,
        open_engine(tiny_bundle, device="cpu") as reference,
        _SmallDevice(open_bundle(tiny_bundle)) as other,
    ):
        result = compare_engines(reference, other, source)
    assert "no memory left" in caplog.text
    halo = other.network.halo
    bands = 4 * (HEIGHT // 2 + halo)
    assert other.heights[:6] == [bands] * 6
    assert set(other.heights[6:]) == {4 * (HEIGHT // 4 + halo), 4 * (HEIGHT // 4 + 2 * halo)}
    assert len(other.heights[6:]) == 4 * (FRAMES - 1)
    assert result.frames == FRAMES
    assert result.pictures.max_difference < 1e-5
    assert result.failures == []


def network(**values: object) -> Network:
    known = {"channels": 8, "head_channels": 8, "has_cleaning": True, "refine_threshold": 5.0}
    return Network(**{**known, "precision": "float32", **values})  # type: ignore[arg-type]


def test_tolerance_of_the_precisions() -> None:
    """The less precise of the two decides."""
    float32, float16 = network(), network(precision="float16")
    int8 = network(precision="float16", quantised=True)
    assert default_tolerance(float32, float32) == Tolerance(max_difference=1e-3)
    for pair in ((float32, float16), (float16, float32), (float16, float16)):
        assert default_tolerance(*pair) == Tolerance(min_psnr=50.0)
    for other in (float32, float16, int8):
        assert default_tolerance(int8, other) == Tolerance(min_psnr=40.0)
        assert default_tolerance(other, int8) == Tolerance(min_psnr=40.0)


def test_engine_reports_int8(tiny_bundle: Path, tmp_path: Path) -> None:
    """A bundle with a calibration record is a quantised network."""
    same = changed(
        tiny_bundle, tmp_path / "q.plan", "flow", lambda b: b, quantisation={"clips": []}
    )
    for path, quantised in ((tiny_bundle, False), (same, True)):
        with open_engine(path, device="cpu") as engine:
            assert engine.network.quantised is quantised
            assert ("int8 and" in str(engine.describe())) is quantised


@pytest.mark.slow
def test_own_tolerance(tiny_bundle: Path, tiny_bundle_float16: Path, clip: Path) -> None:
    """--min-psnr and --max-difference replace the default, and each can fail."""
    models = (f"{tiny_bundle}@cpu", f"{tiny_bundle_float16}@cpu", "--clip", clip, "--frames", 2)
    done = invoke(*models, "--min-psnr", 190)
    assert done.exit_code == 1
    assert "dB, and 190 dB are required" in done.stderr
    done = invoke(*models, "--max-difference", 1e-9)
    assert done.exit_code == 1
    assert "and 1e-09 is allowed" in done.stderr
    assert invoke(*models, "--max-difference", 0.5, "--min-psnr", 20).exit_code == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.plan", (Path("model.plan"), "auto")),
        ("model.plan@cpu", (Path("model.plan"), "cpu")),
        ("model.pth@cuda:1", (Path("model.pth"), "cuda:1")),
        ("me@home/model.plan", (Path("me@home/model.plan"), "auto")),
        ("me@home/model.plan@tensorrt", (Path("me@home/model.plan"), "tensorrt")),
        ("me@home.plan@auto", (Path("me@home.plan"), "auto")),
    ],
)
def test_model_and_device(text: str, expected: tuple[Path, str]) -> None:
    """Everything after the last @ of the file name is the device."""
    assert parse_model(text) == expected


def test_bad_input(tiny_bundle: Path, tiny_checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    """Each gets one sentence, and no traceback."""
    basic = tmp_path / "basic.safetensors"
    weights = load_file(tiny_checkpoint)
    prefix = "basicvsr."
    own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    save_file(own, basic)
    text = tmp_path / "text.plan"
    text.write_text("no model")
    good = f"{tiny_bundle}@cpu"
    for code, expected, arguments in (
        (1, "missing.mp4 does not exist", (good, good, "--clip", tmp_path / "missing.mp4")),
        (1, "device 'abacus' is not available", (good, f"{tiny_bundle}@abacus", "--clip", clip)),
        (1, "torch has no device 'abacus'", (good, f"{tiny_checkpoint}@abacus", "--clip", clip)),
        (1, "is a RealBasicVSR of 8 channels", (good, f"{basic}@cpu", "--clip", clip)),
        (1, "is not a bundle", (good, text, "--clip", clip)),
        (1, "'worst.abc' must end in", (good, good, "--clip", clip, "--worst", "worst.abc")),
        (2, "lacks the device after its '@'", (f"{tiny_bundle}@", good, "--clip", clip)),
        (2, "lacks the file before its '@'", ("@cpu", good, "--clip", clip)),
        (2, "Missing option '--clip'", (good, good)),
    ):
        done = invoke(*arguments)
        assert done.exit_code == code, done.output
        assert expected in done.stderr
        assert "Traceback" not in done.output


def test_bad_numbers(tiny_bundle: Path, clip: Path) -> None:
    """Python calls refuse the same numbers as the command."""
    with pytest.raises(ValueError, match="frames must be 1 or more, got 0"):
        compared(tiny_bundle, tiny_bundle, clip, frames=0)
    with pytest.raises(ValueError, match="min_psnr must be 0 or more, got -1"):
        Tolerance(min_psnr=-1)


@pytest.fixture
def exported(
    tiny_bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run ``rbvsr-export`` on the tiny checkpoint, with the graphs taken from its bundle: tracing
    them again would take most of the time.
    """
    bundle = open_bundle(tiny_bundle)

    def export_graph(module: object, spec: GraphSpec, **options: object) -> onnx.ModelProto:
        return onnx.load_from_string(bundle.graph(spec.name))

    monkeypatch.setattr("rbvsr_deploy.export.to_bundle.export_graph", export_graph)

    def run(*arguments: object) -> Result:
        everything = ("--checkpoint", tiny_checkpoint, *arguments)
        return CliRunner().invoke(export, [str(a) for a in everything])

    return run


@pytest.mark.slow
def test_export_verifies_on_a_clip(
    exported: Callable[..., Result], clip: Path, tmp_path: Path
) -> None:
    """The figures are in the manifest, ``rbvsr-info`` shows them, and only the bundle is left."""
    output = tmp_path / "m.plan"
    done = exported("-o", output, "--verify", clip)
    assert done.exit_code == 0, done.output
    assert list(tmp_path.iterdir()) == [output]
    manifest: Manifest = open_bundle(output).manifest
    record = manifest.verification["clip"]
    files = sorted(clip.iterdir())
    content = b"".join(file.name.encode() + file.read_bytes() for file in files)
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert (record["clip"], record["frames"]) == (clip.name, FRAMES)
    assert 0 < record["pictures"]["max_difference"] < 1e-4
    assert list(record["graphs"]) == [name for name in manifest.graphs if name not in OPTIONAL]
    assert record["engine"].startswith("m.plan in float32 by ")
    assert record["reference"].startswith("tiny.safetensors in float32 by torch")
    shown = CliRunner().invoke(info, [str(output)]).stdout
    assert f"on a clip  PSNR {record['pictures']['psnr']:.1f} dB" in shown
    assert record["sha256"] in shown


@pytest.mark.slow
def test_export_publishes_nothing_that_fails(
    exported: Callable[..., Result], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle out of tolerance or a missing clip gives one sentence; an existing file stays."""
    output = tmp_path / "m.plan"
    output.write_bytes(b"precious")
    monkeypatch.setattr(
        "rbvsr_deploy.parity.compare.default_tolerance", lambda a, b: Tolerance(max_difference=0.0)
    )
    done = exported("-o", output, "--verify", clip)
    assert done.exit_code == 1
    assert "the bundle differs from the torch model by more than is allowed" in done.stderr
    done = exported("-o", output, "--verify", tmp_path / "no.mp4")
    assert done.exit_code == 1
    assert "no.mp4 does not exist" in done.stderr
    assert "exported" not in done.stderr
    assert list(tmp_path.iterdir()) == [output]
    assert output.read_bytes() == b"precious"
