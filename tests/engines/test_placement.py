"""Tests that graphs are placed by measurement, and that a provider which is absent, broken, partial
or wrong is reported in a line and never used.

The plug-in here is a double: ONNX Runtime's CPU provider under another name, with faults.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rbvsr_deploy.bundle import open_bundle
from rbvsr_deploy.engines import onnx_runtime as engine_module
from rbvsr_deploy.engines import open_engine, placement, providers, sessions
from rbvsr_deploy.engines.base import Engine
from rbvsr_deploy.engines.placement import kept_placements
from rbvsr_deploy.engines.providers import Provider, find_providers, import_onnxruntime
from rbvsr_deploy.errors import EngineError
from rbvsr_deploy.runtime.stream import Settings, Stream
from tests.conftest import moving_clip

DOUBLE = Provider(
    "openvino", "DoubleProvider", "1.0", "a double", on_cpu=True, whole=True, devices=(object(),)
)


class Machine:
    """A machine with a plug-in whose behaviour the test sets."""

    def __init__(self) -> None:
        self.faulty: set[str] = set()
        """Graphs that the plug-in treats in another way than the CPU."""
        self.fault: Callable[[list[Any]], list[Any]] = lambda outputs: outputs
        """Applied to the outputs of those."""
        self.seconds: dict[str, float] = {"cpu": 0.2, "openvino": 0.1}
        """Time that a run takes, by provider."""
        self.opened: list[tuple[str, str]] = []
        """Graph and provider of every session."""
        self.runs: list[tuple[str, str]] = []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    clock = SimpleNamespace(now=0.0)
    real = sessions.open_session
    cpu = find_providers()[0]["cpu"]

    def open_session(
        bundle: Any, graph: str, provider: Provider, *, sizes: Mapping[str, int]
    ) -> Any:
        made.opened.append((graph, provider.name))
        assert bool(sizes) == provider.whole
        if provider is DOUBLE and graph in made.faulty:
            made.fault([])
        session = real(bundle, graph, cpu, sizes=sizes)
        return _Session(session, made, clock, graph=graph, provider=provider.name)

    for module in (placement, engine_module):
        monkeypatch.setattr(module, "open_session", open_session)
        if hasattr(module, "find_providers"):
            monkeypatch.setattr(
                module, "find_providers", lambda: ({"cpu": cpu, "openvino": DOUBLE}, {})
            )
    monkeypatch.setattr(placement, "_SIZES", ((10, 16), (20, 32)))
    monkeypatch.setattr(placement, "_ODD_SIZE", (9, 14))
    monkeypatch.setattr(placement, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setenv("RBVSR_CACHE", str(tmp_path / "cache"))
    return made


class _Session:
    def __init__(
        self, session: Any, machine: Machine, clock: Any, *, graph: str, provider: str
    ) -> None:
        self._session, self._machine, self._clock = session, machine, clock
        self._graph, self._provider = graph, provider

    def run(self, names: None, arrays: dict[str, Any]) -> list[Any]:
        self._clock.now += self._machine.seconds[self._provider]
        outputs: list[Any] = self._session.run(names, arrays)
        if self._provider == "openvino" and self._graph in self._machine.faulty:
            return self._machine.fault(outputs)
        return outputs

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self._machine.runs.append((self._graph, self._provider))
        self._session.run_with_iobinding(binding, options)


def opened(bundle: Path, **options: Any) -> tuple[Engine, list[str]]:
    lines: list[str] = []
    return open_engine(bundle, report=lines.append, **options), lines


def upscaled(engine: Engine) -> Any:
    clip = moving_clip(2, 20, 32)
    with Stream(engine, Settings(), size=(20, 32)) as stream:
        frames = [frame.image for image in clip for frame in stream.push(image)]
        return np.stack(frames + [frame.image for frame in stream.flush()])


def raising(outputs: list[Any]) -> list[Any]:
    if not outputs:
        raise EngineError("it does not take GridSample")
    return outputs


def test_the_faster_provider_gets_the_graph(machine: Machine, tiny_bundle: Path) -> None:
    """The plug-in is faster: it runs everything, which the description and every session say."""
    engine, lines = opened(tiny_bundle, size=lambda: (20, 32))
    with engine:
        assert lines == ["Measuring openvino on this machine, once for this model and size"]
        described = engine.describe()
        assert described.device == "cpu"
        assert "openvino 1.0 for" in described.placement
        assert "flow" in described.placement
        upscaled(engine)
    assert {provider for _, provider in machine.runs} == {"openvino"}


def test_the_slower_provider_gets_none(machine: Machine, tiny_bundle: Path) -> None:
    """A plug-in within the noise of the CPU's time is not used either."""
    machine.seconds = {"cpu": 0.1, "openvino": 0.098}
    engine, _ = opened(tiny_bundle)
    with engine:
        assert engine.describe().placement == ""
        upscaled(engine)
    assert {provider for _, provider in machine.runs} == {"cpu"}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (raising, "cannot be run (it does not take GridSample)"),
        (lambda outputs: [o + np.float32(0.01) for o in outputs], "differs from the CPU by 0.01"),
        (lambda outputs: [o * np.nan for o in outputs], "differs from the CPU by nan"),
        (lambda outputs: [o[..., :-1] for o in outputs], "has another shape or type"),
        (lambda outputs: [o.astype(np.float64) for o in outputs], "has another shape or type"),
    ],
    ids=["half-supporting", "wrong", "NaN", "shape", "type"],
)
@pytest.mark.parametrize("device", ["auto", "openvino"])
def test_a_faulty_provider_is_reported_and_not_used(
    fault: Any, words: str, device: str, machine: Machine, tiny_bundle: Path
) -> None:
    """The graph that fails runs on the CPU, the others on the plug-in, and a line says why."""
    machine.faulty, machine.fault = {"backward"}, fault
    engine, lines = opened(tiny_bundle, device=device)
    with engine:
        assert len(lines) == 2
        assert lines[1].startswith("openvino is not used for backward: 'backward' ")
        assert words in lines[1]
        images = upscaled(engine)
    assert ("backward", "cpu") in machine.runs
    assert ("backward", "openvino") not in machine.runs
    assert ("forward", "openvino") in machine.runs
    with open_engine(tiny_bundle, device="cpu") as alone:
        assert np.array_equal(upscaled(alone), images)
    engine, lines = opened(tiny_bundle, device=device)  # as kept
    with engine:
        assert len(lines) == 1
        assert words in lines[0]


def test_a_requested_provider_that_runs_nothing_is_an_error(
    machine: Machine, tiny_bundle: Path
) -> None:
    machine.faulty = set(open_bundle(tiny_bundle).manifest.graphs)
    machine.fault = raising
    with pytest.raises(EngineError, match=r"runs none of the graphs .*does not take GridSample"):
        opened(tiny_bundle, device="openvino")
    machine.fault = lambda outputs: outputs  # mended: nothing of the failure was kept
    engine, _ = opened(tiny_bundle, device="openvino")
    engine.close()


def test_a_requested_provider_is_used_even_if_it_is_slower(
    machine: Machine, tiny_bundle: Path
) -> None:
    machine.seconds = {"cpu": 0.1, "openvino": 5.0}
    engine, _ = opened(tiny_bundle, device="openvino")
    with engine:
        upscaled(engine)
    assert {provider for _, provider in machine.runs} == {"openvino"}


def test_a_provider_that_fails_at_a_size_later_loses_the_graph(
    machine: Machine, tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The graph is opened per size: where that fails after all, the CPU takes over with a line."""
    engine, _ = opened(tiny_bundle)
    machine.faulty, machine.fault = {"flow"}, raising
    with engine, caplog.at_level("WARNING"):
        upscaled(engine)
    assert [r.message for r in caplog.records if "openvino is not used for 'flow'" in r.message]
    assert ("flow", "cpu") in machine.runs


def test_what_was_measured_is_kept(machine: Machine, tiny_bundle: Path) -> None:
    """The second opening measures nothing, at similar sizes; another class of sizes does."""
    opened(tiny_bundle, size=lambda: (20, 32))[0].close()
    (kept,) = kept_placements(open_bundle(tiny_bundle))
    assert kept.size == (20, 32)
    assert set(kept.chosen.values()) == {"openvino"}
    assert kept.milliseconds["flow"] == {"cpu": 200.0, "openvino": 100.0}
    machine.opened.clear()
    machine.seconds = {"cpu": 0.1, "openvino": 0.2}
    engine, lines = opened(tiny_bundle, size=lambda: (30, 40))
    assert (lines, machine.opened) == ([], [])
    assert "openvino" in engine.describe().placement
    engine, lines = opened(tiny_bundle, size=lambda: (10, 16))
    assert len(lines) == 1
    assert engine.describe().placement == ""


@pytest.mark.parametrize("text", ["", "{", '{"chosen": {"flow": "elsewhere"}}'])
def test_a_damaged_placement_is_measured_again(
    text: str, machine: Machine, tiny_bundle: Path, tmp_path: Path
) -> None:
    opened(tiny_bundle)[0].close()
    (file,) = (tmp_path / "cache" / "placements").iterdir()
    file.write_text(text)
    engine, lines = opened(tiny_bundle)
    assert lines
    assert "openvino" in engine.describe().placement


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="the system has no modes")
def test_a_placement_that_others_can_write_is_not_used(
    machine: Machine, tiny_bundle: Path, tmp_path: Path
) -> None:
    opened(tiny_bundle)[0].close()
    (file,) = (tmp_path / "cache" / "placements").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    file.chmod(0o666)
    assert kept_placements(open_bundle(tiny_bundle)) == []


# ---------------------------------------------------------------------------------- finding them


@pytest.fixture
def forgetful() -> Iterator[None]:
    find_providers.cache_clear()
    yield
    find_providers.cache_clear()


class _Module(SimpleNamespace):
    """A plug-in's package; ``path`` may be an exception."""

    def get_library_path(self) -> str:
        if isinstance(self.path, Exception):
            raise self.path
        return str(self.path)

    def get_ep_names(self) -> list[str]:
        return ["CPUExecutionProvider"]


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize(
    ("installed", "registered", "words"),
    [
        (ModuleNotFoundError("no module"), None, "not installed (pip install 'rbvsr-deploy[op"),
        (ImportError("bad ELF"), None, "does not load (bad ELF)"),
        (_Module(path=FileNotFoundError("no library")), None, "does not load (no library)"),
        (_Module(path="lib.so"), RuntimeError("needs version 99\nsecond line"), "version 99)"),
    ],
    ids=["absent", "broken package", "no library", "refused"],
)
def test_an_absent_or_broken_plug_in_has_a_reason(
    installed: Any, registered: Any, words: str, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    """It is not offered; asking for it by name says why; everything else runs."""

    def load(name: str) -> Any:
        if name != "onnxruntime_ep_openvino":
            raise ModuleNotFoundError(name)
        if isinstance(installed, Exception):
            raise installed
        return installed

    def register(name: str, path: str) -> None:
        if registered is not None:
            raise registered

    monkeypatch.setattr(providers, "import_module", load)
    ort = import_onnxruntime()
    monkeypatch.setattr(ort, "register_execution_provider_library", register, raising=False)
    found, missing = find_providers()
    assert "openvino" not in found
    assert words in missing["openvino"]
    with pytest.raises(EngineError, match="device 'openvino' is not available") as caught:
        open_engine(tiny_bundle, device="openvino")
    assert words in str(caught.value)
    with open_engine(tiny_bundle) as engine:
        assert engine.describe().placement == ""


@pytest.mark.usefixtures("forgetful")
def test_a_plug_in_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's plug-in supports no CPU but Intel's."""
    monkeypatch.setattr(providers, "import_module", lambda name: _Module(path="lib.so"))
    ort = import_onnxruntime()
    monkeypatch.setattr(
        ort, "register_execution_provider_library", lambda name, path: None, raising=False
    )
    monkeypatch.setattr(ort, "get_ep_devices", list, raising=False)
    found, missing = find_providers()
    assert next(iter(found)) == "cpu"
    assert missing["openvino"] == "its plug-in supports no device of this machine"


@pytest.mark.usefixtures("forgetful")
def test_a_plug_in_has_a_provider_per_kind_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def device(kind: str, name: str = "CPUExecutionProvider") -> Any:
        hardware = SimpleNamespace(type=SimpleNamespace(name=kind), vendor="Intel")
        described = {"FULL_DEVICE_NAME": f"Intel {kind}", "version": "1.8"}
        return SimpleNamespace(ep_name=name, ep_metadata=described, device=hardware)

    monkeypatch.setattr(providers, "import_module", lambda name: _Module(path="lib.so"))
    ort = import_onnxruntime()
    monkeypatch.setattr(
        ort, "register_execution_provider_library", lambda name, path: None, raising=False
    )
    listed = [device("CPU"), device("GPU"), device("CPU", "CPUExecutionProvider.AUTO")]
    monkeypatch.setattr(ort, "get_ep_devices", lambda: listed, raising=False)
    found, _ = find_providers()
    assert found["openvino"].on_cpu
    assert not found["openvino-gpu"].on_cpu
    assert str(found["openvino-gpu"]) == "openvino-gpu 1.8"
    assert found["openvino-gpu"].hardware == "Intel GPU"
    assert '"INFERENCE_PRECISION_HINT": "f32"' in found["openvino-gpu"].options["load_config"]


def test_openvino_runs_the_graphs(tiny_bundle: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """With the real plug-in, where it supports this machine."""
    pytest.importorskip("onnxruntime_ep_openvino")
    if "openvino" not in find_providers()[0]:
        pytest.skip(find_providers()[1]["openvino"])
    monkeypatch.setenv("RBVSR_CACHE", str(tmp_path))
    engine, lines = opened(tiny_bundle, device="openvino")
    with engine:
        assert len(lines) == 1, lines
        images = upscaled(engine)
    with open_engine(tiny_bundle, device="cpu") as alone:
        assert np.abs(images.astype(int) - upscaled(alone)).max() <= 1
