"""Tests of providers that have a session for each size, such as CUDA, on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from rbvsr_deploy.bundle import open_bundle
from rbvsr_deploy.engines import onnx_runtime
from rbvsr_deploy.engines.onnx_runtime import OnnxRuntimeEngine
from rbvsr_deploy.engines.providers import CUDA, Provider, find_providers
from rbvsr_deploy.engines.sessions import open_session
from rbvsr_deploy.errors import DeviceMemoryError, EngineError

FRAMES = np.random.default_rng(0).random((4, 3, 24, 32), np.float32)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, int]]]:
    """Make the CPU a provider with a session for each size; the sessions that are opened."""
    monkeypatch.setattr(Provider, "fixed", True)
    sizes: list[tuple[str, dict[str, int]]] = []

    def recording(bundle: Any, graph: str, provider: Any, **options: Any) -> Any:
        sizes.append((graph, options["sizes"]))
        return open_session(bundle, graph, provider, **options)

    monkeypatch.setattr(onnx_runtime, "open_session", recording)
    return sizes


def test_the_last_frames_of_a_scene_need_no_session(
    tiny_bundle: Path, opened: list[tuple[str, dict[str, int]]]
) -> None:
    """Any number of frames gives the same results, with sessions for one frame and for a batch."""
    with OnnxRuntimeEngine(open_bundle(tiny_bundle), device="cpu") as engine:
        opened.clear()
        want, residues = engine.run("clean", frame=FRAMES)
        for count in (1, 3, 2, 4, 1, 3):
            got, residue = engine.run("clean", frame=FRAMES[:count])
            np.testing.assert_allclose(got, want[:count], atol=1e-6)
            np.testing.assert_allclose(residue, residues[:count], atol=1e-7)
            into = np.zeros((5, *want.shape[1:]), np.float32), np.zeros(5, np.float32)
            engine.run("clean", frame=FRAMES[:count], into=[a[1 : 1 + count] for a in into])
            np.testing.assert_array_equal(into[0][1 : 1 + count], got)
            assert not into[0][0].any()
            assert not into[0][1 + count :].any()
        flow = engine.run("flow", reference=FRAMES[:3], neighbour=FRAMES[1:])[0]
        assert flow.shape == (3, 2, 24, 32)
    assert [sizes["N"] for graph, sizes in opened if graph == "clean"] == [4, 1]
    ((_, sizes),) = [session for session in opened if session[0] == "flow"]
    assert (sizes["N"], sizes["H"], sizes["W"]) == (3, 24, 32)


def test_without_memory_the_sessions_are_closed(
    tiny_bundle: Path,
    opened: list[tuple[str, dict[str, int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the device ran out of memory, smaller batches open smaller sessions."""
    with OnnxRuntimeEngine(open_bundle(tiny_bundle), device="cpu") as engine:
        engine.run("clean", frame=FRAMES)
        with monkeypatch.context() as patch:
            patch.setattr(engine, "_place", lambda array: 1 / 0)
            with pytest.raises(EngineError, match="division"):
                engine.run("clean", frame=FRAMES)

            def full(array: Any) -> Any:
                raise RuntimeError("CUDA error: out of memory")

            patch.setattr(engine, "_place", full)
            with pytest.raises(DeviceMemoryError):
                engine.run("clean", frame=FRAMES)
        opened.clear()
        engine.run("clean", frame=FRAMES[:2])
    assert [(graph, sizes["N"]) for graph, sizes in opened] == [("clean", 2)]


def test_a_block_is_downloaded_once(tiny_bundle: Path) -> None:
    """Its frames are taken from it one by one, until a graph may have changed it."""

    class Value:
        count = 0

        def numpy(self) -> Any:
            self.count += 1
            return FRAMES + self.count

    value = Value()
    block = onnx_runtime._CudaArray(value, start=0, shape=FRAMES.shape, dtype=FRAMES.dtype)
    with OnnxRuntimeEngine(open_bundle(tiny_bundle), device="cpu") as engine:
        for n in range(4):
            frame = engine.begin_download(engine.slice(block, n, n + 1))()
            np.testing.assert_array_equal(frame, FRAMES[n : n + 1] + 1)
        engine.run("clean", frame=FRAMES[:1])
        np.testing.assert_array_equal(engine.download(block), FRAMES + 2)
    assert value.count == 2


def test_options_of_cuda(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions are exact float32, and are not searched for at every change of size."""
    asked: list[Any] = []

    def session(*arguments: Any, providers: Any) -> Any:
        asked.extend(providers)
        raise RuntimeError("no CUDA here")

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    cuda = replace(find_providers()[0]["cpu"], name="cuda", execution_provider=CUDA)
    with pytest.raises(EngineError, match="cannot be opened on CUDAExecutionProvider: no CUDA"):
        open_session(open_bundle(tiny_bundle), "clean", cuda, sizes={})
    (name, options), _ = asked
    assert name == CUDA
    assert options["use_tf32"] == "0"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
