"""Provides a tiny network, its checkpoint and its bundles, made once for all tests."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from rbvsr_deploy.bundle import open_bundle
from rbvsr_deploy.engines import sessions
from rbvsr_deploy.export import to_bundle
from rbvsr_deploy.export.onnx_export import convert_opset, export_graph
from rbvsr_deploy.export.to_bundle import export_bundle
from rbvsr_deploy.graphs import GraphSpec, Precision
from rbvsr_deploy.model import RealBasicVSR, RealBasicVSRConfig
from tests.support.kept_exports import kept_export, kept_export_unless_made

DATA = Path(__file__).parent / "data"

# One thread for each process, also for those that tests start: the tiny networks do not fill two,
# and OpenMP's threads spin while they wait, twentyfold the time if the processors are busy.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
cv2.setNumThreads(1)

# Bytecode is kept even where the environment does not want it: every process that tests start would
# compile the package again, a fifth of its time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the workers begin with different work: while one exports the tiny network for the first
    tests, another trains, instead of waiting for the bundle.
    """
    training = Path(__file__).parent / "training" / "test_run.py"
    first = items[0].path if items else None
    items.sort(key=lambda item: (item.path != first, item.path != training))


# Nothing is collected before the tests begin: imports leave no garbage.
gc.disable()


def pytest_collection_finish() -> None:
    """Let the garbage collector leave out all that was imported, a million objects that stay: it
    would look through them whenever a test, a worker or a batch collects.
    """
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _without_what_stays() -> Iterator[None]:
    """As above, for what the tests of a module imported."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _key_of_a_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Engines are signed with a key of their own, not with that of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RBVSR_CONFIG", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _without_power_cuts() -> Iterator[None]:
    """Nothing waits for the disk, as no test cuts the power; only the descriptor is checked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread_of_onnx_runtime() -> Iterator[None]:
    """As above, for the tiny networks: waking a second thread takes longer than its work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "usable_cores", lambda: 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_table_of_operators() -> Iterator[None]:
    """The exporter's table of operators, always the same, is made once instead of for every graph:
    a quarter of an export's time.
    """
    with pytest.MonkeyPatch.context() as patch:
        made = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
        patch.setattr(ONNXRegistry, "from_torchlib", made)
        yield


TINY = RealBasicVSRConfig(
    mid_channels=8,
    propagation_blocks=1,
    cleaning_blocks=1,
    flow_channels=(6, 4),
    flow_kernel=3,
    flow_levels=3,
)
"""The published architecture, including its two-step head, small enough to export in seconds."""


def tiny_model(config: RealBasicVSRConfig = TINY) -> RealBasicVSR:
    """Return a model with random weights, flow of about a pixel, and cleaning that converges."""
    torch.manual_seed(7)
    model = RealBasicVSR(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.normal_(std=0.05)  # all-zero biases would be merged into one tensor
    last = f"basic_module.{len(config.flow_channels)}.conv.bias"
    for name, weight in model.named_parameters():
        if "spynet" in name and name.endswith(last):
            weight.normal_(std=0.4)
    if not model.has_cleaning:
        return model
    first, last_conv = model.image_cleaning[0].main[0], model.image_cleaning[1]
    last_conv.weight.mul_(0.1)
    last_conv.bias.fill_(1e-5)
    for channel in range(3):  # subtracts about 0.3 of every pixel, in addition to the random part
        first.weight[channel] = 0.0
        first.weight[channel, channel, 1, 1] = 1.0
        last_conv.weight[channel, channel, 1, 1] = -0.3
    return model


def moving_clip(frames: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return a texture that moves by a fraction of a pixel per frame: (T, H, W, 3) uint8 RGB."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    channels = []
    for t in range(frames):
        phase = 0.37 * t
        pattern = (
            np.sin((x + phase) / 3) + np.cos((y - 2 * phase) / 4) + np.sin((x + y) / 7 + phase)
        )
        channels.append(np.stack([pattern, np.roll(pattern, 5, 0), -pattern], axis=-1))
    clip = 127.5 + 40 * np.stack(channels)
    noise = np.random.default_rng(frames).normal(0, 4, clip.shape)
    clip_u8: NDArray[np.uint8] = np.clip(clip + noise, 0, 255).astype(np.uint8)
    return clip_u8


def short_clip(sample: Path, path: Path, *, frames: int = 6) -> Path:
    """Write the first frames of the sample, small enough for a test, with all of its audio."""
    with av.open(str(sample)) as source, av.open(str(path), "w") as target:
        video_in, audio_in = source.streams.video[0], source.streams.audio[0]
        video = target.add_stream("libx264", rate=video_in.average_rate)
        video.width, video.height, video.pix_fmt = 96, 54, "yuv420p"
        video.time_base = video_in.time_base
        audio = target.add_stream_from_template(audio_in)
        written = 0
        for packet in source.demux(video_in, audio_in):
            if packet.stream is audio_in:
                if packet.dts is not None:
                    packet.stream = audio
                    target.mux(packet)
                continue
            for frame in packet.decode():
                if written < frames:
                    small = frame.reformat(width=96, height=54)
                    small.pict_type = 0
                    target.mux(video.encode(small))
                    written += 1
        target.mux(video.encode(None))
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a RealBasicVSR checkpoint of a few kilobytes."""
    metadata = {"license": "CC0-1.0", "provenance": "random weights", "refine_threshold": "5"}

    def make(path: Path) -> None:
        save_file(tiny_model().state_dict(), path, metadata=metadata)

    # Kept with its bundles, which name its checksum: that changes with the metadata's order.
    kept = kept_export("tiny.safetensors", make)
    return Path(shutil.copy(kept, tmp_path_factory.mktemp("tiny")))


def _export(checkpoint: Path, precision: Precision) -> tuple[str, Callable[[Path], object]]:
    """Return the name of a bundle of the tiny network, and what exports it."""
    return f"tiny-{precision}.plan", functools.partial(
        export_bundle, checkpoint, precision=precision
    )


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """Return the path of the tiny network's float32 bundle."""
    kept = kept_export_unless_made(*_export(tiny_checkpoint, "float32"))
    if kept is None:  # exports the other one meanwhile
        kept_export_unless_made(*_export(tiny_checkpoint, "float16"))
        kept = kept_export(*_export(tiny_checkpoint, "float32"))
    return Path(shutil.copy(kept, tiny_checkpoint.parent))


@pytest.fixture(scope="session")
def tiny_bundle_float16(tiny_checkpoint: Path) -> Path:
    """Return the path of the tiny network's float16 bundle."""
    kept = kept_export(*_export(tiny_checkpoint, "float16"))
    return Path(shutil.copy(kept, tiny_checkpoint.parent))


@pytest.fixture
def quick_export(
    tiny_bundle: Path, tiny_bundle_float16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let exports of the tiny network, with any weights, begin from the graphs of the bundles above
    instead of torch. They are checked, verified against the model and written as usual.
    """
    bundles = {"float32": open_bundle(tiny_bundle), "float16": open_bundle(tiny_bundle_float16)}

    def quickly(module: nn.Module, spec: GraphSpec, **options: Any) -> onnx.ModelProto:
        model = onnx.load_from_string(bundles[options["precision"]].graph(spec.name))
        weights = module.state_dict()
        if spec.name == "reconstruct" and "model.basicvsr.upsample.upsample_conv.weight" in weights:
            return export_graph(module, spec, **options)  # another head
        for tensor in model.graph.initializer:
            if tensor.name in weights:
                tensor.CopyFrom(
                    onnx.numpy_helper.from_array(weights[tensor.name].numpy(), tensor.name)
                )
        return convert_opset(model, options["opset"])

    monkeypatch.setattr(to_bundle, "export_graph", quickly)


@pytest.fixture
def sample() -> Path:
    """Return the path of the real low-quality clip that ships with the project."""
    return DATA / "sample.mp4"
