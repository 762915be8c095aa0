"""Tests on a GPU: engines are compiled for it, run on it, and give the same images."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.bundle import open_bundle, write_bundle
from rbvsr_deploy.engines import Engine, open_engine
from rbvsr_deploy.engines.cuda.driver import CudaDriver
from rbvsr_deploy.engines.tensorrt.signing import sign
from rbvsr_deploy.errors import DeviceMemoryError, EngineError
from rbvsr_deploy.parity.compare import compare_engines
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE, DEFAULT_CHECKPOINT
from rbvsr_deploy.runtime.stream import Settings, Stream
from rbvsr_deploy.video import open_source
from tests.conftest import moving_clip

pytestmark = pytest.mark.gpu

MIB = 2**20


def upscaled(
    engine: Engine, clip: NDArray[np.uint8], settings: Settings | None = None
) -> NDArray[np.uint8]:
    with Stream(engine, settings or Settings(), size=clip.shape[1:3]) as stream:
        frames = [frame for image in clip for frame in stream.push(image)]
        frames += stream.flush()
    return np.stack([frame.image for frame in frames])


def built_here(bundle: Path, path: Path, *options: str) -> Path:
    """Copy a bundle and add engines for this machine."""
    shutil.copy(bundle, path)
    program = "from rbvsr_deploy.commands.build import build; build()"
    subprocess.run(
        [sys.executable, "-c", program, str(path), "--target", "auto", *options], check=True
    )
    return path


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    mse = float(((a.astype(float) - b) ** 2).mean())
    return 99.0 if mse == 0 else 10 * float(np.log10(255**2 / mse))


def test_float32_equals_torch(sample: Path) -> None:
    """30 real frames through the whole chain equal those of torch in float32."""
    with (
        open_engine(DEFAULT_CHECKPOINT) as reference,
        open_engine(DEFAULT_BUNDLE, device="tensorrt") as engine,
        open_source(sample) as source,
    ):
        found = compare_engines(reference, engine, source, frames=30)
    assert found.frames == 30
    assert found.pictures.psnr > 80


def test_float16_is_close_to_torch(sample: Path, compact_float16: Path) -> None:
    """30 real frames through the whole chain reach 50 dB against torch in float32."""
    with (
        open_engine(DEFAULT_CHECKPOINT) as reference,
        open_engine(compact_float16, device="tensorrt") as engine,
        open_source(sample) as source,
    ):
        found = compare_engines(reference, engine, source, frames=30)
    assert found.pictures.psnr >= 50


def test_int8_runs_in_tensorrt(sample: Path, tmp_path: Path) -> None:
    """An int8 bundle gives nearly the same images as in ONNX Runtime."""
    bundle = tmp_path / "int8.plan"
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from rbvsr_deploy.commands.export import export; export()"),
            *("--int8", "--calibrate", str(sample), "-o", str(bundle)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with (
        open_engine(bundle, device="cpu") as reference,
        open_engine(bundle, device="tensorrt") as engine,
        open_source(sample) as source,
    ):
        found = compare_engines(reference, engine, source, frames=10)
    assert found.pictures.psnr >= 40


def test_cuda_of_onnx_runtime(sample: Path) -> None:
    """The CUDA provider of ONNX Runtime gives the same images."""
    with (
        open_engine(DEFAULT_CHECKPOINT) as reference,
        open_engine(DEFAULT_BUNDLE, device="cuda") as engine,
        open_source(sample) as source,
    ):
        found = compare_engines(reference, engine, source, frames=10)
    assert found.pictures.psnr > 60


def test_engines_built_here_are_loaded_from_the_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    """``rbvsr-build --target auto`` adds engines that ``rbvsr-run`` uses without compiling."""
    bundle = built_here(tiny_bundle, tmp_path / "m.plan", "--opt-size", "96x64")
    lines: list[str] = []
    with open_engine(bundle, size=lambda: (64, 96), report=lines.append) as engine:
        assert "from the bundle" in engine.describe().reason
        upscaled(engine, moving_clip(4, 64, 96))
    assert lines == []


def test_other_sizes_are_compiled_and_kept(tiny_bundle: Path) -> None:
    """A size outside every profile is compiled once: small, wide and tall ones."""
    for height, width in ((20, 33), (64, 1500), (1100, 48)):
        clip = moving_clip(3, height, width)
        for expected in (1, 0):
            lines: list[str] = []
            with (
                open_engine(tiny_bundle, device="tensorrt", report=lines.append) as engine,
                open_engine(tiny_bundle, device="cpu") as reference,
            ):
                assert psnr(upscaled(engine, clip), upscaled(reference, clip)) > 55
            assert len(lines) <= expected


def test_a_plan_that_does_not_load_is_compiled_again(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As after an upgrade, the user's command continues, with a warning."""
    built = built_here(tiny_bundle, tmp_path / "m.plan")
    bundle = open_bundle(built)
    (engine_set,) = bundle.manifest.engine_sets
    cut = {graph: plan[: len(plan) // 2] for graph, plan in bundle.plans(engine_set).items()}
    signed = sign(engine_set, bundle.graphs(), cut)
    write_bundle(built, bundle.manifest, bundle.graphs(), [(signed, cut)])
    clip = moving_clip(3, 64, 96)
    with (
        open_engine(built, device="tensorrt", size=lambda: (64, 96)) as engine,
        open_engine(tiny_bundle, device="cpu") as reference,
    ):
        assert "from the bundle" not in engine.describe().reason
        assert psnr(upscaled(engine, clip), upscaled(reference, clip)) > 55
    assert any("from the bundle are not used" in message for message in caplog.messages)


@pytest.mark.parametrize("seed", range(20))
def test_any_schedule_gives_the_same_images(tiny_bundle: Path, seed: int) -> None:
    """Windows, batches, bands and lookahead do not change images.

    So no memory is overwritten while it is in use.
    """
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(24, 90)), int(rng.integers(24, 120))
    clip = moving_clip(int(rng.integers(2, 40)), height, width)
    lookahead = [None, 0, 3][seed % 3]
    settings = Settings(
        lookahead=lookahead,
        max_scene=int(rng.integers(5, 60)),
        memory=int(rng.integers(12, 60)) * MIB,
        refine_threshold=float(rng.choice([0.0, 255.0])),
    )
    unbounded = Settings(
        lookahead=lookahead,
        max_scene=settings.max_scene,
        refine_threshold=settings.refine_threshold,
    )
    with (
        open_engine(tiny_bundle, device="tensorrt") as engine,
        open_engine(tiny_bundle, device="cpu") as reference,
    ):
        got = upscaled(engine, clip, settings)
        again = upscaled(engine, clip, settings)
        want = upscaled(reference, clip, unbounded)
    np.testing.assert_array_equal(got, again)
    assert min(psnr(a, b) for a, b in zip(got, want, strict=True)) > 50


def test_closing_frees_the_gpu(tiny_bundle: Path, gpu: CudaDriver) -> None:
    """Memory is freed after success, errors and Ctrl-C, repeatedly."""
    clip = moving_clip(6, 180, 320)

    def free() -> int:
        gc.collect()
        with gpu.current():
            return gpu.free_memory()

    def interrupt(stage: str, frames: int) -> None:
        if stage == "forward":
            raise KeyboardInterrupt

    with open_engine(tiny_bundle, device="tensorrt") as engine:
        upscaled(engine, clip)  # libraries keep some memory permanently
    before = free()
    for _ in range(5):
        with open_engine(tiny_bundle, device="tensorrt") as engine:
            upscaled(engine, clip)
        with (
            open_engine(tiny_bundle, device="tensorrt") as engine,
            Stream(engine, Settings(), size=clip.shape[1:3], progress=interrupt) as stream,
        ):
            for image in clip:
                list(stream.push(image))
            with pytest.raises(KeyboardInterrupt):
                list(stream.flush())
        with open_engine(tiny_bundle, device="tensorrt") as engine, pytest.raises(EngineError):
            engine.run("none", frame=engine.zeros((1, 3, 8, 8), dtype="float32"))
    assert before - free() < 64 * MIB


def test_an_interrupted_stream_resumes(tiny_bundle: Path) -> None:
    """It resumes from the state of any frame, in another engine, with identical bits."""
    clip = moving_clip(12, 45, 70)
    settings = Settings(lookahead=2)
    with open_engine(tiny_bundle, device="tensorrt") as engine:
        want = upscaled(engine, clip, settings)
        with Stream(engine, settings, size=clip.shape[1:3]) as stream:
            made = [p.state() for image in clip[:8] for p in stream.push(image)]
    state = made[-1]
    with (
        open_engine(tiny_bundle, device="tensorrt") as engine,
        Stream(engine, settings, size=clip.shape[1:3], state=state) as stream,
    ):
        rest = [p.image for image in clip[state.frames :] for p in stream.push(image)]
        rest += [p.image for p in stream.flush()]
    np.testing.assert_array_equal(np.stack(rest), want[state.frames :])


def test_a_full_gpu_gets_smaller_plans(compact_float16: Path, gpu: CudaDriver) -> None:
    """If another user takes the planned memory, smaller plans are tried, or the error is clear."""
    clip = moving_clip(30, 360, 640)
    with open_engine(compact_float16, device="tensorrt") as engine:
        want = upscaled(engine, clip)
    with open_engine(compact_float16, device="tensorrt", size=lambda: (360, 640)) as engine:
        upscaled(engine, clip[:2])
        if gpu.gpu().is_integrated:
            return  # its memory is the system's, which would kill processes
        with gpu.current():
            taken = gpu.malloc(gpu.free_memory() - 600 * MIB)
        try:
            got = upscaled(engine, clip, Settings(memory=8 * 1024 * MIB))
            failure = ""
        except DeviceMemoryError as error:
            got, failure = want, str(error)
        finally:
            with gpu.current():
                gpu.free(taken)
    assert psnr(got, want) > 50
    assert not failure or "MiB were requested, but the GPU has" in failure


def test_a_bundle_of_another_gpu_still_runs(tiny_bundle: Path, tmp_path: Path) -> None:
    """A set for another compute capability is skipped."""
    built = built_here(tiny_bundle, tmp_path / "m.plan")
    with zipfile.ZipFile(built) as archive:
        names = [name for name in archive.namelist() if name.startswith("engines/")]
    assert len(names) == 7
    bundle = open_bundle(built)
    (engine_set,) = bundle.manifest.engine_sets
    plans = bundle.plans(engine_set)
    other = type(engine_set).from_dict({**engine_set.as_dict(), "compute_capability": "3.5"})
    signed = sign(other, bundle.graphs(), plans)
    write_bundle(built, bundle.manifest, bundle.graphs(), [(signed, plans)])
    with open_engine(built, device="tensorrt", size=lambda: (64, 96)) as engine:
        assert "from the bundle" not in engine.describe().reason
