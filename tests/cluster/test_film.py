"""Tests that several processes give the bytes of one, whatever ends in between."""

from __future__ import annotations

from pathlib import Path

from rbvsr_deploy.runtime.scenes import read_scene_list
from tests.cluster.conftest import alone, shared


def test_the_same_file_as_one_process(clip: Path, model: Path, tmp_path: Path) -> None:
    """Every byte is the same, and so are scenes, scene list and what is kept."""
    cuts = tmp_path / "cuts.txt"
    expected = alone(clip, tmp_path / "one.mp4", scene_list=cuts)
    summary = shared(clip, tmp_path / "two.mp4", model=model, scene_list=tmp_path / "cuts2.txt")
    assert (tmp_path / "two.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert (tmp_path / "cuts2.txt").read_text() == cuts.read_text()
    assert len(read_scene_list(cuts)) > 5
    assert summary.scenes == expected.scenes
    assert summary.kept == expected.kept
    assert (summary.frames, summary.resumed_frames) == (expected.frames, 0)
    assert sum(worker.frames for worker in summary.workers) == expected.frames
    assert all(worker.frames and worker.bytes for worker in summary.workers)
    assert not (tmp_path / ".two.mp4.job").exists()
