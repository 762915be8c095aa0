"""Loads batches of clips for the training loop, prepared by worker processes.

The clips of an iteration follow from the number of clips that the whole run has used so far. An
interrupted run therefore continues with the clips it would have used, and processes that share a
batch use together the clips that a single process would.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Generator, Iterator
from functools import partial
from typing import Any

import cv2
import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.training.config import TrainingConfig
from rbvsr_deploy.training.data.camera import true_flow
from rbvsr_deploy.training.data.training_set import Sample, TrainingSet

__all__ = ["ClipDataset", "FlowDataset", "batches", "flow_training_set", "to_frames"]

FLOW_LENGTH = 3
_PAIRS = ((0, 1), (1, 2), (1, 0), (2, 1))
"""Reference and neighbour of each flow in a flow clip, in the order of ``RealBasicVSR.flows``."""

Arrays = dict[str, np.ndarray[Any, Any]]
Skipped = tuple[tuple[str, str], ...]
Item = tuple[Arrays, Skipped] | RbvsrError


class ClipDataset(Dataset[Item]):
    """Gives clips by number: ``degraded``, ``truth`` and ``sharpened``, (L, H, W, 3) uint8."""

    stream = 1
    motion_only = False

    def __init__(self, clips: TrainingSet) -> None:
        self.clips = clips

    def __getitem__(self, index: int) -> Item:
        # Errors are returned: one raised in a worker would carry its traceback as its message.
        try:
            sample = self.clips.sample(index, stream=self.stream, motion_only=self.motion_only)
            return {"index": np.array(index), **self.arrays(sample)}, sample.skipped
        except RbvsrError as error:
            return error

    def arrays(self, sample: Sample) -> Arrays:
        return {
            "degraded": sample.degraded,
            "truth": sample.truth,
            "sharpened": sample.sharpened,
        }


class FlowDataset(ClipDataset):
    """Gives clips of three frames of a photograph: ``degraded``, and for the flows between
    neighbours ``flow`` (4, 2, S, S) float32 and ``known`` (4, S, S) bool.
    """

    stream = 0
    motion_only = True

    def arrays(self, sample: Sample) -> Arrays:
        assert sample.path is not None  # motion_only
        flows = [true_flow(sample.path, reference=r, neighbour=n) for r, n in _PAIRS]
        return {
            "degraded": sample.degraded,
            "flow": np.stack([flow for flow, _ in flows]),
            "known": np.stack([known for _, known in flows]),
        }


def flow_training_set(config: TrainingConfig) -> TrainingSet:
    """Return a training set of short clips with fast motion from the photographs of a recipe."""
    photos = tuple(s for s in config.data.sources if s.kind == "photos")
    data = msgspec.structs.replace(
        config.data,
        sources=photos,
        length=FLOW_LENGTH,
        stochastic=False,
        max_speed=config.flow.max_speed,
    )
    return TrainingSet(data, config.degradation, seed=config.seed)


class _Indices(Sampler[list[int]]):
    """Yields the endless batches of one process out of several."""

    def __init__(self, start: int, *, batch: int, rank: int, processes: int) -> None:
        self.start, self.batch, self.rank, self.processes = start, batch, rank, processes

    def __iter__(self) -> Iterator[list[int]]:
        for turn in itertools.count():
            first = self.start + (turn * self.processes + self.rank) * self.batch
            yield list(range(first, first + self.batch))


def batches(
    dataset: ClipDataset,
    *,
    start: int,
    batch: int,
    rank: int,
    processes: int,
    workers: int,
    pin: bool,
) -> Generator[dict[str, Tensor], None, None]:
    """Yield endless batches: the stacked arrays of the dataset. Close the generator after use.

    Args:
        dataset: clips by number.
        start: number of the first clip of the first batch of the first process.
        batch: number of clips per process.
        rank: number of this process.
        processes: number of processes that share the clips.
        workers: number of processes that prepare clips; 0 prepares them in this process.
        pin: use page-locked memory, which a GPU copies from faster.

    Raises:
        RbvsrError: a clip could not be prepared.
    """
    # Threads do not survive the fork: a worker that tried to end the threads of OpenCV, or of a
    # decoder that it garbage-collects, would hang. So let it inherit neither.
    cv2.setNumThreads(1)
    gc.collect()
    over = multiprocessing.RawValue(ctypes.c_bool, False)  # no lock, which a signal might interrupt
    loader = DataLoader(
        dataset,
        batch_sampler=_Indices(start, batch=batch, rank=rank, processes=processes),
        num_workers=workers,
        collate_fn=_stacked,
        worker_init_fn=partial(_start_worker, over),
        pin_memory=pin,
        # The loader draws seeds for its workers from this. The generator of the run would then
        # depend on the number of restarts.
        generator=torch.Generator(),
    )
    dataset.clips.log_costs()
    try:
        for stacked in loader:
            if isinstance(stacked, RbvsrError):
                raise stacked
            tensors, skipped = stacked
            if workers:
                dataset.clips.note(skipped)
            yield tensors
    finally:
        over.value = True
        dataset.clips.log_skipped()


def _stacked(items: list[Item]) -> tuple[dict[str, Tensor], Skipped] | RbvsrError:
    arrays: list[Arrays] = []
    skipped: Skipped = ()
    for item in items:
        if isinstance(item, RbvsrError):
            return item
        arrays.append(item[0])
        skipped += item[1]
    return {k: torch.from_numpy(np.stack([a[k] for a in arrays])) for k in arrays[0]}, skipped


def _start_worker(over: ctypes.c_bool, number: int) -> None:
    """Ignore the signals that end a run until the main process needs no more clips. That process
    handles them and saves the run, which the death of a worker would disrupt.
    """

    def end(signal_number: int, frame: object) -> None:
        if over.value:
            os._exit(0)

    # Bypass any progress bar, which writes from a thread of the main process, under a lock.
    sys.stderr = sys.__stderr__
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)


def to_frames(images: Tensor, device: torch.device) -> Tensor:
    """Convert (..., H, W, 3) uint8 to (..., 3, H, W) float32, [0, 1], on the device."""
    moved = images.to(device, non_blocking=True)
    return moved.movedim(-1, -3).float().div(255.0).contiguous()
