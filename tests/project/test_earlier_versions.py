"""Tests that bundles, checkpoints and unfinished jobs of version 0.1.0 still work."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import torch

from rbvsr_deploy.checkpoint import load_checkpoint
from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.upscaler import Upscaler
from rbvsr_deploy.video.images import read_image
from tests.conftest import DATA, moving_clip
from tests.support.sinks import write_segments

EARLIER = DATA / "version_0_1_0"


def test_bundle_and_checkpoint() -> None:
    """A bundle of 0.1.0 gives the frames of the network in the checkpoint it was exported from."""
    clip = moving_clip(4, 24, 32)
    with Upscaler(EARLIER / "bundle.plan", device="cpu") as upscaler:
        frames = np.stack(list(upscaler.frames(clip)))
    model = load_checkpoint(EARLIER / "checkpoint.pth").model
    with torch.no_grad():
        whole = model(torch.from_numpy(clip).permute(0, 3, 1, 2)[None].float() / 255)[0]
    expected = (255 * whole.clamp(0, 1)).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(frames.astype(float) - expected).max() <= 1


def test_the_checkpoint_runs_directly() -> None:
    with open_engine(EARLIER / "checkpoint.pth", device="cpu") as engine:
        assert engine.describe().engine == "torch"


def test_an_unfinished_job_is_continued(tmp_path: Path) -> None:
    """A job folder of 0.1.0 keeps its two finished segments of two images each, and the output has
    the pixels of an uninterrupted run.
    """
    with tarfile.open(EARLIER / "job.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    job = write_segments(tmp_path / "in", tmp_path / "out", lengths=[2, 2, 2])
    assert job.started_over is None
    assert job.resumed_segments == 2
    write_segments(tmp_path / "in", tmp_path / "fresh", lengths=[2, 2, 2])
    names = [f"{number}.png" for number in range(6)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for name in names:
        again = read_image(tmp_path / "fresh" / name)
        np.testing.assert_array_equal(read_image(tmp_path / "out" / name), again)
    assert not list(tmp_path.glob(".*.job"))
