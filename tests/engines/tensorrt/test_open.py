"""Tests the choice of an engine for a bundle on a machine, and how it is reported."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
from click.testing import CliRunner

from rbvsr_deploy.bundle import open_bundle, write_bundle
from rbvsr_deploy.commands.run import run
from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.engines.base import Network
from rbvsr_deploy.engines.tensorrt import flavours
from rbvsr_deploy.engines.tensorrt import open as opening
from rbvsr_deploy.engines.tensorrt.base import Candidate
from rbvsr_deploy.errors import EngineError
from tests.conftest import short_clip
from tests.support.cuda_double import DriverDouble
from tests.support.tensorrt_double import (
    ENGINE_SET,
    PlansDouble,
    RuntimeDouble,
    candidate,
    small_bundle,
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    small_bundle(tmp_path / "model.plan")
    return tmp_path / "model.plan"


class Machine:
    """A machine with a GPU and a TensorRT, both doubles."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
        self.driver = DriverDouble()
        self.plans = PlansDouble(lambda height, width, batch: [candidate(open_bundle(bundle))])
        self.report: Any = None
        monkeypatch.setattr(opening, "open_driver", lambda: self.driver)
        monkeypatch.setattr(opening, "MachinePlans", self._plans)
        monkeypatch.setattr(
            opening,
            "TensorRTRuntime",
            lambda tensorrt, gpu: RuntimeDouble(
                self.driver, Network.of(open_bundle(bundle).manifest)
            ),
        )

    def _plans(self, bundle: Any, tensorrt: Any, driver: Any, **options: Any) -> PlansDouble:
        assert driver is self.driver
        self.report = options["report"]
        return self.plans


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> Machine:
    return Machine(monkeypatch, bundle)


def compiles_nothing(height: int, width: int, batch: int) -> list[Candidate]:
    raise EngineError("graph 'flow' could not be compiled by tensorrt 10.0.0: no kernels")


@pytest.mark.parametrize("device", ["auto", "tensorrt"])
def test_tensorrt_is_used_where_it_runs(device: str, bundle: Path, machine: Machine) -> None:
    """Engines for the frames' size are loaded at once if the size is known."""
    with open_engine(bundle, device=device, size=lambda: (20, 30)) as engine:
        said = engine.describe()
        assert said.engine == "tensorrt"
        assert said.device.startswith("cuda:0 ")
        why = {"auto": "TensorRT is available", "tensorrt": "TensorRT was requested"}[device]
        assert said.reason == f"{why}, engines from the bundle"
        assert machine.plans.asked == [(20, 30, 4)]
    assert machine.driver.leaks() == []


def test_without_a_size_engines_wait_for_the_first_frames(bundle: Path, machine: Machine) -> None:
    with open_engine(bundle):
        assert machine.plans.asked == []


@pytest.mark.parametrize("device", ["cpu", "CPUExecutionProvider"])
def test_the_requested_device_is_used(device: str, bundle: Path, machine: Machine) -> None:
    """A GPU is not used if the user requested another device."""
    with open_engine(bundle, device=device) as engine:
        assert engine.describe().engine == "onnxruntime"
        assert engine.describe().reason == f"device '{device}' was requested"


def test_onnx_runtime_is_used_if_compiling_fails(bundle: Path, machine: Machine) -> None:
    """This holds for "auto", with a reason; "tensorrt" raises an error. The GPU is left clean."""
    machine.plans.offer = compiles_nothing
    with open_engine(bundle, size=lambda: (20, 30)) as engine:
        assert engine.describe().engine == "onnxruntime"
        assert engine.describe().reason.startswith(
            "no TensorRT, as graph 'flow' could not be compiled by tensorrt 10.0.0; "
        )
    with pytest.raises(EngineError, match="no kernels"):
        open_engine(bundle, device="tensorrt", size=lambda: (20, 30))
    assert machine.driver.leaks() == []


@pytest.mark.parametrize("has_gpu", [True, False])
def test_why_a_gpu_is_not_used_is_a_warning(
    has_gpu: bool,
    bundle: Path,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its user waits ten times as long otherwise; without a GPU nobody expects TensorRT."""

    def open_driver() -> DriverDouble:
        if not has_gpu:
            raise EngineError("there is no NVIDIA driver on this machine")
        return machine.driver

    monkeypatch.setattr("rbvsr_deploy.engines.cuda.open.open_driver", open_driver)
    machine.plans.offer = compiles_nothing
    caplog.set_level("INFO")
    open_engine(bundle, size=lambda: (20, 30)).close()
    levels = [r.levelname for r in caplog.records if "could not be compiled" in r.message]
    assert levels == ["WARNING" if has_gpu else "INFO"]


def test_a_gpu_that_no_tensorrt_compiles_for(
    bundle: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TensorRT-RTX on an H100, the error lists the supported capabilities."""
    hopper = replace(machine.driver.gpu(), compute_capability="9.0")
    monkeypatch.setattr(machine.driver, "gpu", lambda: hopper)
    if flavours.installed_flavours() != ("tensorrt-rtx",):
        pytest.skip("TensorRT compiles for every GPU")
    with pytest.raises(EngineError, match=r"8\.6, 8\.9, 12\.0.*, not for 9\.0"):
        open_engine(bundle, device="tensorrt")


def no_driver() -> DriverDouble:
    raise EngineError("there is no NVIDIA driver on this machine: install one")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "open_driver", no_driver)


def with_engines(bundle: Path) -> Path:
    """Add engines for two GPUs to the bundle."""
    opened = open_bundle(bundle)
    sets = [replace(ENGINE_SET, compute_capability=c) for c in ("12.0", "8.9")]
    write_bundle(bundle, opened.manifest, opened.graphs(), [(s, opened.graphs()) for s in sets])
    return bundle


@pytest.mark.usefixtures("no_gpu")
def test_engines_in_the_bundle_that_cannot_be_used_are_named(bundle: Path) -> None:
    """This holds without TensorRT too."""
    with open_engine(with_engines(bundle)) as engine:
        assert engine.describe().reason.startswith(
            "the bundle's engines for compute capability 8.9, 12.0 are not used, as there is no "
            "NVIDIA driver on this machine; "
        )


@pytest.mark.usefixtures("no_gpu")
def test_missing_tensorrt_is_not_mentioned_without_need(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU machine TensorRT is mentioned only if the bundle contains engines for it."""
    monkeypatch.setattr(flavours, "_PACKAGES", {})
    with open_engine(bundle) as engine:
        assert "TensorRT" not in engine.describe().reason
    with open_engine(with_engines(bundle)) as engine:
        assert "are not used, as TensorRT is not installed" in engine.describe().reason
    with pytest.raises(EngineError, match=r"pip install 'rbvsr-deploy\[tensorrt\]'"):
        open_engine(bundle, device="tensorrt")


@pytest.fixture
def video(sample: Path, tmp_path: Path) -> Path:
    return short_clip(sample, tmp_path / "video.mp4", frames=3)


@pytest.mark.slow
def test_the_command_runs_on_a_gpu(
    tiny_bundle: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``rbvsr-run`` writes the same video on the doubles and on the CPU."""
    bundle = Path(shutil.copy(tiny_bundle, tmp_path / "tiny.plan"))
    machine = Machine(monkeypatch, bundle)
    profile = replace(ENGINE_SET.profile, max_size=(128, 128))
    machine.plans.offer = lambda height, width, batch: [
        candidate(open_bundle(bundle), profile=profile)
    ]
    frames = []
    for device, name in (("auto", "gpu.mkv"), ("cpu", "cpu.mkv")):
        output = tmp_path / name
        done = CliRunner().invoke(
            run,
            [str(video), "--engine", str(bundle), "-o", str(output), "--device", device],
        )
        assert done.exit_code == 0, done.output
        with av.open(str(output)) as container:
            frames.append([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
        if device == "auto":
            assert machine.plans.asked == [(54, 96, 4)]
            assert "by tensorrt 10.0.0 on cuda:0" in done.output
            assert "TensorRT is available, engines from the bundle" in done.output
    assert len(frames[0]) == 3
    for ours, theirs in zip(*frames, strict=True):
        assert (ours == theirs).all()
    assert machine.driver.leaks() == []
