"""Tests that other implementations are measured in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from rbvsr_deploy.bench import peers
from rbvsr_deploy.bench.clips import synthetic_clip
from rbvsr_deploy.bench.peers import measure_peer
from rbvsr_deploy.errors import RbvsrError
from tests.bench.conftest import BRIEF

CLIP = synthetic_clip(3, width=16, height=12)


def make_network(path: Path, *, dtype: int = TensorProto.FLOAT) -> Path:
    """Write a network that enlarges frame by frame, by two, with nearest neighbours."""
    scales = helper.make_tensor("scales", TensorProto.FLOAT, (4,), [1, 1, 2, 2])
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest")
    x = helper.make_tensor_value_info("x", dtype, [1, 3, "H", "W"])
    y = helper.make_tensor_value_info("y", dtype, [1, 3, "2H", "2W"])
    graph = helper.make_graph([node], "peer", [x], [y], [scales])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_an_onnx_file_runs_frame_by_frame(tmp_path: Path, dtype: int) -> None:
    """In float32 or float16, with its own scale and its own peak of memory."""
    path = make_network(tmp_path / "peer.onnx", dtype=dtype)
    (result,) = measure_peer(path, CLIP, on_gpu=False, effort=BRIEF)
    assert result.name == "peer.onnx, onnxruntime, frame by frame"
    assert result.unavailable is None
    assert result.scale == 2
    assert result.frame_ms is not None
    assert result.frames_per_second == pytest.approx(1000 / result.frame_ms.p50)
    assert result.peak_host_bytes is None or result.peak_host_bytes > 2**24
    images = peers._open_onnx(path, False)(CLIP)
    assert (images[:, ::2, ::2] == CLIP).all()


@pytest.mark.slow
def test_a_checkpoint_runs_in_torch(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager; the compiled form is measured or says why not, and ends neither way in an error."""
    monkeypatch.setattr(peers, "_open_compiled", _refuse)
    eager, compiled = measure_peer(tiny_checkpoint, CLIP, on_gpu=False, effort=BRIEF)
    assert eager.unavailable is None
    assert eager.scale == 4
    assert compiled.unavailable == "it failed: no compiler"
    assert compiled.frames_per_second is None


def _refuse(path: Path, on_gpu: bool) -> peers._Upscale:
    raise RuntimeError("no compiler")


def _end_the_process(path: Path, on_gpu: bool) -> peers._Upscale:
    import os

    os._exit(9)


def test_a_peer_that_is_killed_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_open_onnx", _end_the_process)
    path = make_network(tmp_path / "peer.onnx")
    (result,) = measure_peer(path, CLIP, on_gpu=False, effort=BRIEF)
    assert result.unavailable == "its process was killed, probably for its memory"


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RbvsrError, match="does not exist"):
        measure_peer(tmp_path / "missing.onnx", CLIP, on_gpu=False, effort=BRIEF)
    (tmp_path / "text.txt").write_text("x", encoding="utf-8")
    with pytest.raises(RbvsrError, match=r"neither a checkpoint .* nor an ONNX file"):
        measure_peer(tmp_path / "text.txt", CLIP, on_gpu=False, effort=BRIEF)
