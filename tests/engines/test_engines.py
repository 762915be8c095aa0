"""Tests that the chain of graphs gives the same images as the torch model on the whole clip."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rbvsr_deploy.bundle import graph_io, open_bundle, write_bundle
from rbvsr_deploy.checkpoint import load_checkpoint
from rbvsr_deploy.engines import Engine, open_engine
from rbvsr_deploy.engines.onnx_runtime import OnnxRuntimeEngine
from rbvsr_deploy.errors import BundleError, EngineError, MissingDependencyError
from rbvsr_deploy.graphs import GRAPHS
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE, DEFAULT_CHECKPOINT
from rbvsr_deploy.runtime.stream import SceneRecord, Settings, Stream
from tests.conftest import moving_clip


def chain(
    engine: Engine,
    clip: NDArray[np.uint8],
    *,
    cleanings: int | None = None,
    threshold: float = 255.0,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return the output images of a clip, before and after conversion to uint8."""
    outputs = []
    run = engine.run

    def recording(graph: str, **arrays: Any) -> tuple[Any, ...]:
        if graph == "emit":
            outputs.append(engine.download(arrays["picture"])[0].astype(np.float32))
        return run(graph, **arrays)

    engine.run = recording  # type: ignore[method-assign]
    settings = Settings(cleanings=cleanings, refine_threshold=threshold)
    images = upscaled(engine, clip, settings)[0]
    return np.stack(outputs), images


def upscaled(
    engine: Engine, clip: NDArray[np.uint8], settings: Settings
) -> tuple[NDArray[np.uint8], SceneRecord]:
    scenes: list[SceneRecord] = []
    with Stream(engine, settings, size=clip.shape[1:3], on_scene=scenes.append) as stream:
        frames = [frame for image in clip for frame in stream.push(image)]
        frames += stream.flush()
    (scene,) = scenes
    return np.stack([frame.image for frame in frames]), scene


def reference(
    checkpoint: Path, clip: NDArray[np.uint8], **options: Any
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Run the torch model on the whole clip at once, without graphs."""
    frames = torch.from_numpy(clip).permute(0, 3, 1, 2)[None] / 255.0
    with torch.no_grad():
        outputs = load_checkpoint(checkpoint).model(frames, **options)[0]
    images = (outputs.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return outputs.numpy(), images.numpy()


def levels(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("cleanings", [0, 1, 2, 3])
def test_onnx_runtime_equals_the_model(
    cleanings: int, tiny_bundle: Path, tiny_checkpoint: Path
) -> None:
    """float32 agrees within 1e-4, uint8 within one level, for any number of cleanings."""
    clip = moving_clip(5, 45, 37)
    want, want_images = reference(tiny_checkpoint, clip, cleanings=cleanings)
    with open_engine(tiny_bundle, device="cpu") as engine:
        got, got_images = chain(engine, clip, cleanings=cleanings)
    assert np.abs(got - want).max() < 1e-4
    assert levels(got_images, want_images) <= 1


def test_the_decision_to_clean_again_is_the_models(
    tiny_bundle: Path, tiny_checkpoint: Path
) -> None:
    """A threshold between two passes' changes gives two passes, as in the model."""
    clip = moving_clip(4, 40, 40)
    with open_engine(tiny_bundle, device="cpu") as engine:
        _, free = upscaled(engine, clip, Settings(refine_threshold=0.0))
        assert free.cleanings == 3
        assert free.residues[0] > free.residues[1] > 0
        threshold = (free.residues[0] + free.residues[1]) / 2
        _, decided = upscaled(engine, clip, Settings(refine_threshold=threshold))
        assert decided.cleanings == 2
        got, _ = chain(engine, clip, threshold=threshold)
    want, _ = reference(tiny_checkpoint, clip, refine_threshold=threshold)
    assert np.abs(got - want).max() < 1e-4


def test_float16_bundle_is_close(tiny_bundle_float16: Path, tiny_checkpoint: Path) -> None:
    """The PSNR against the float32 model is above 50 dB."""
    clip = moving_clip(5, 45, 37)
    want, _ = reference(tiny_checkpoint, clip)
    with open_engine(tiny_bundle_float16, device="cpu") as engine:
        got, _ = chain(engine, clip)
    psnr = 10 * math.log10(1.0 / float(((got - want) ** 2).mean()))
    assert psnr > 50


def test_shipped_bundle_equals_shipped_checkpoint() -> None:
    """The bundle in the package was exported from the checkpoint in the package."""
    clip = moving_clip(3, 50, 70)
    want, want_images = reference(DEFAULT_CHECKPOINT, clip)
    with open_engine(DEFAULT_BUNDLE, device="cpu") as engine:
        got, got_images = chain(engine, clip)
    assert np.abs(got - want).max() < 1e-4
    assert levels(got_images, want_images) <= 1


def test_torch_engine_is_the_model(tiny_checkpoint: Path) -> None:
    """A checkpoint given as the engine runs in torch with the same result."""
    clip = moving_clip(3, 20, 33)
    want, _ = reference(tiny_checkpoint, clip)
    with open_engine(tiny_checkpoint, device="cpu") as engine:
        assert engine.describe().engine == "torch"
        assert engine.network.refine_threshold == 5.0
        got, _ = chain(engine, clip)
    assert np.abs(got - want).max() < 1e-5


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (33, 64)])
def test_one_frame_and_small_sizes(
    size: tuple[int, int], tiny_bundle: Path, tiny_checkpoint: Path
) -> None:
    """A single frame and sizes far below 64 work."""
    clip = moving_clip(1, *size)
    want, _ = reference(tiny_checkpoint, clip)
    with open_engine(tiny_bundle, device="cpu") as engine:
        got, _ = chain(engine, clip)
    assert got.shape == (1, 3, 4 * size[0], 4 * size[1])
    assert np.abs(got - want).max() < 1e-4


def test_results_are_not_overwritten_by_later_calls(tiny_bundle: Path) -> None:
    """An array returned by an engine belongs to the caller."""
    first, second = moving_clip(2, 16, 16)
    with open_engine(tiny_bundle, device="cpu") as engine:
        (frame,) = engine.run("ingest", image=engine.upload(first[None]))
        before = engine.download(frame).copy()
        engine.run("ingest", image=engine.upload(second[None]))
        np.testing.assert_array_equal(engine.download(frame), before)


def test_provider_by_name(tiny_bundle: Path) -> None:
    """Any execution provider can be named."""
    with open_engine(tiny_bundle, device="CPUExecutionProvider") as engine:
        assert engine.describe().device == "cpu"


def test_cuda_that_is_not_available(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    """Both engines name an available device."""
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(EngineError, match="use the CPU"):
        open_engine(tiny_bundle, device="cuda")
    with pytest.raises(EngineError, match="use 'cpu'"):
        open_engine(tiny_checkpoint, device="cuda")


def test_bundle_with_a_graph_of_another_model(tiny_bundle: Path, tmp_path: Path) -> None:
    """Checksums are correct, but the ONNX graph is not the one the manifest describes."""
    bundle = open_bundle(tiny_bundle)
    graphs = {name: bundle.graph(name) for name in GRAPHS}
    write_bundle(tmp_path / "m.plan", bundle.manifest, {**graphs, "clean": graphs["ingest"]})
    with pytest.raises(BundleError, match="belongs to another model"):
        open_engine(tmp_path / "m.plan", device="cpu")


def test_graph_that_is_no_onnx(tiny_bundle: Path, tmp_path: Path) -> None:
    """The refusal names the graph; ONNX Runtime does not get to see it."""
    bundle = open_bundle(tiny_bundle)
    graphs = {name: bundle.graph(name) for name in GRAPHS}
    write_bundle(tmp_path / "m.plan", bundle.manifest, {**graphs, "flow": b"not onnx"})
    with pytest.raises(BundleError, match="graph 'flow'"):
        open_engine(tmp_path / "m.plan", device="cpu")


@pytest.mark.slow
def test_out_of_memory_is_distinguished_from_other_failures(
    tiny_bundle: Path, tiny_checkpoint: Path
) -> None:
    """With 100 MiB of addresses left, both engines fail on a big image and then run a small one."""
    program = """
import resource, sys
from pathlib import Path
import numpy as np
from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.errors import DeviceMemoryError

def arrays(engine, size):
    channels = {"frame": 3, "backward_state": 8, "forward_state": 8}
    return {
        name: engine.zeros((1, count, size, size), dtype="float32")
        for name, count in channels.items()
    }

with open_engine(Path(sys.argv[1]), device="cpu") as engine:
    small, big = arrays(engine, 8), arrays(engine, 1000)
    engine.run("reconstruct", **small)
    into = [engine.empty((1, 3, 4000, 4000), dtype="float32")]
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + 100 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (room, limits[1]))
    try:
        engine.run("reconstruct", into=into, **big)
    except DeviceMemoryError as error:
        print(error)
    engine.run("reconstruct", **small)
"""
    for model in (tiny_bundle, tiny_checkpoint):
        done = subprocess.run(
            [sys.executable, "-c", program, str(model)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("graph 'reconstruct' failed on ")


def test_closed_engine_runs_nothing(tiny_bundle: Path) -> None:
    """After close() there are no graphs."""
    with open_engine(tiny_bundle, device="cpu") as engine:
        image = engine.upload(moving_clip(1, 8, 8))
    with pytest.raises(EngineError, match="no graph 'ingest'"):
        engine.run("ingest", image=image)


def test_missing_onnxruntime_names_the_extra(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the missing package and the command that installs it."""
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'rbvsr-deploy\[cpu\]'"):
        OnnxRuntimeEngine(open_bundle(tiny_bundle), device="cpu")


def test_manifest_describes_the_contract(tiny_bundle: Path) -> None:
    """Inputs and outputs in the manifest are those of the contract."""
    manifest = open_bundle(tiny_bundle).manifest
    assert manifest.graphs == graph_io(has_cleaning=True, channels=8, precision="float32")


def test_onnx_runtime_reports_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    """Its telemetry would leave a session number in the folder for temporary files."""
    program = "from rbvsr_deploy import Upscaler; import sys; Upscaler(sys.argv[1]).close()"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    subprocess.run(
        [sys.executable, "-c", program, str(tiny_bundle)],
        env={**environment, "TMPDIR": str(tmp_path)},
        check=True,
    )
    assert list(tmp_path.iterdir()) == []
