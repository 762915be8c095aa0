"""Tests that batches have the same clips for any workers, processes and starting point."""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import weakref
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.training.clips import (
    Arrays,
    ClipDataset,
    FlowDataset,
    batches,
    flow_training_set,
    to_frames,
)
from rbvsr_deploy.training.config import TrainingConfig, load_config
from rbvsr_deploy.training.data.sources import SourceConfig
from rbvsr_deploy.training.data.training_set import DataConfig, Sample, TrainingSet
from rbvsr_deploy.training.degradations.clip_degradation import CLEAN
from tests.training.conftest import make_photo


@pytest.fixture
def config(sources: tuple[Path, Path]) -> TrainingConfig:
    photos = SourceConfig(kind="photos", path=str(sources[0]))
    videos = SourceConfig(kind="videos", path=str(sources[1]))
    changes = ["data.length=4", "data.crop=16"]
    return load_config("tiny-stage1", changes=changes, sources=[photos, videos])


@pytest.fixture
def dataset(config: TrainingConfig) -> ClipDataset:
    return ClipDataset(TrainingSet(config.data, config.degradation, seed=5))


def first(
    dataset: ClipDataset,
    count: int,
    *,
    start: int = 0,
    batch: int = 2,
    rank: int = 0,
    processes: int = 1,
    workers: int = 0,
) -> list[dict[str, Tensor]]:
    loaded = batches(
        dataset,
        start=start,
        batch=batch,
        rank=rank,
        processes=processes,
        workers=workers,
        pin=False,
    )
    with contextlib.closing(loaded):
        return list(itertools.islice(loaded, count))


@pytest.mark.slow
def test_workers_do_not_change_clips_and_end(dataset: ClipDataset) -> None:
    """Two workers give the same bytes in the same order as none, and both end afterwards."""
    before = set(multiprocessing.active_children())
    here, there = first(dataset, 3), first(dataset, 3, workers=2)
    for ours, theirs in zip(here, there, strict=True):
        assert ours.keys() == theirs.keys() == {"index", "degraded", "truth", "sharpened"}
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert here[0]["degraded"].shape == (2, 4, 16, 16, 3)
    assert here[0]["truth"].shape == here[0]["sharpened"].shape == (2, 4, 64, 64, 3)
    assert set(multiprocessing.active_children()) == before


@pytest.mark.slow
def test_processes_share_every_batch(dataset: ClipDataset) -> None:
    """In each iteration, two processes together use the clips of one with a double batch."""
    alone = [b["index"].tolist() for b in first(dataset, 2, start=8, batch=4)]
    parts = [
        [b["index"].tolist() for b in first(dataset, 2, start=8, rank=rank, processes=2)]
        for rank in (0, 1)
    ]
    assert alone == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert [a + b for a, b in zip(*parts, strict=True)] == alone


class Broken(ClipDataset):
    """A dataset whose fourth clip cannot be prepared."""

    made = 0

    def arrays(self, sample: Sample) -> Arrays:
        self.made += 1
        if self.made == 4:
            raise MediaError("'clip.mp4' is damaged: replace it")
        return super().arrays(sample)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_is_passed_on_unchanged(dataset: ClipDataset, workers: int) -> None:
    """From a worker too, the message is one sentence, not a traceback."""
    with pytest.raises(MediaError) as error:
        first(Broken(dataset.clips), 2, workers=workers)
    assert str(error.value) == "'clip.mp4' is damaged: replace it"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_files_are_named_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    """In any process, a file is named when first drawn, and the total is logged at the end."""
    for name, frames in (("whole", 4), ("broken", 4)):
        (tmp_path / name).mkdir()
        for t in range(frames):
            cv2.imwrite(str(tmp_path / name / f"{t}.png"), make_photo(t, height=96, width=96))
    (tmp_path / "broken" / "1.png").write_bytes(b"not an image")
    data = DataConfig(sources=(SourceConfig("frames", str(tmp_path)),), length=4, crop=8)
    clips = TrainingSet(data, CLEAN, seed=2)
    first(ClipDataset(clips), 6, workers=workers)
    (count,) = clips.skipped.values()
    assert count >= 2
    assert caplog.text.count("1.png' is damaged") == 1
    assert f"{count} clips were redrawn because of damaged files: " in caplog.text


@pytest.mark.slow
def test_the_cost_of_decoding_is_logged(
    dataset: ClipDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With videos and without a cache, one warning gives the extra frames and the cache size."""
    first(dataset, 1)
    assert caplog.text.count("4 extra frames on average to reach the 2 that it shows") == 1
    assert "set data.cache to a folder" in caplog.text
    caplog.clear()
    config = msgspec.structs.replace(dataset.clips.config, cache=str(tmp_path))
    first(ClipDataset(TrainingSet(config, CLEAN, seed=5)), 1)
    assert "extra frames" not in caplog.text


class Garbage:
    """An object that only the garbage collector frees, like a decoder in a traceback."""

    def __init__(self) -> None:
        self.itself = self


class Finds(ClipDataset):
    """Reports whether the worker inherited garbage."""

    def __init__(self, clips: TrainingSet, garbage: weakref.ref[Garbage]) -> None:
        super().__init__(clips)
        self.garbage = garbage

    def arrays(self, sample: Sample) -> Arrays:
        return {"found": np.array(self.garbage() is not None)}


@pytest.mark.slow
def test_no_garbage_is_left_to_a_worker(dataset: ClipDataset) -> None:
    """A decoder that is collected in a worker hangs, waiting for threads that did not survive the
    fork.
    """
    gc.disable()
    try:
        garbage = weakref.ref(Garbage())
        (batch,) = first(Finds(dataset.clips, garbage), 1, workers=1)
    finally:
        gc.enable()
    assert not batch["found"].any()


@pytest.mark.slow
def test_flow_clips_know_their_motion(config: TrainingConfig) -> None:
    """They have three different frames of a photograph, and flows in the order of the network: to
    the next frame twice, then to the previous frame, which is about the opposite.
    """
    clips = flow_training_set(config)
    assert {source.config.kind for source in clips.sources} == {"photos"}
    (batch,) = first(FlowDataset(clips), 1)
    assert batch["degraded"].shape == (2, 3, 16, 16, 3)
    assert batch["flow"].shape == (2, 4, 2, 16, 16)
    assert batch["known"].dtype == torch.bool
    there, back = batch["flow"][:, :2], batch["flow"][:, 2:]
    assert there.abs().max() > 0.05
    assert (there + back).abs().mean() < 0.5 * there.abs().mean()


def test_images_become_tensors() -> None:
    """Images (..., H, W, 3) uint8 become (..., 3, H, W) in [0, 1]."""
    images = torch.arange(2 * 3 * 4 * 5 * 3, dtype=torch.uint8).view(2, 3, 4, 5, 3)
    frames = to_frames(images, torch.device("cpu"))
    assert frames.shape == (2, 3, 3, 4, 5)
    assert frames[1, 2, 0, 3, 4].item() == pytest.approx(images[1, 2, 3, 4, 0].item() / 255)
