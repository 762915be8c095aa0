"""Batches of clips for the training loop, prepared by worker processes.

Which clips a process gets at which iteration follows from the number of clips that the whole run
has seen so far, so that a run goes on with the clips it would have seen, and processes that share
a batch see together what a single one would.
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
"""Reference and neighbour of each flow of such a clip, in the order of ``RealBasicVSR.flows``."""

Arrays = dict[str, np.ndarray[Any, Any]]
Skipped = tuple[tuple[str, str], ...]
Item = tuple[Arrays, Skipped] | RbvsrError


class ClipDataset(Dataset[Item]):
    """Clips by number: ``degraded``, ``truth`` and ``sharpened``, (L, H, W, 3) uint8."""

    stream = 1
    motion_only = False

    def __init__(self, clips: TrainingSet) -> None:
        self.clips = clips

    def __getitem__(self, index: int) -> Item:
        # Errors are handed over, because one raised in a worker comes out with its whole traceback
        # as its message.
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
    """Three frames of a photograph: ``degraded``, and of the flows between neighbours ``flow``
    (4, 2, S, S) float32 and ``known`` (4, S, S) bool.
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
    """The photographs of a recipe, as short clips with fast motion."""
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
    """Endless batches of one process out of several."""

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
    """Endless batches: the arrays of the dataset, stacked. To be closed after use.

    Args:
        start: number of the first clip of the first batch of the first process.
        batch: clips per process.
        workers: processes that prepare clips; 0 prepares them here.
        pin: put them into memory that a GPU copies from faster.

    Raises:
        RbvsrError: a clip could not be made.
    """
    # Threads do not survive the fork: a worker that wanted to end those of OpenCV, or of a decoder
    # that it collects as garbage, would wait for ever. Neither is left to it.
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
        # What a loader draws seeds for its workers from; not the generator of the run, which would
        # then depend on how often it was restarted.
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
    """The signals that end a run are for the process that saves it, and that would be thrown off by
    the end of a worker; only when it wants no more clips do they end this one.
    """

    def end(signal_number: int, frame: object) -> None:
        if over.value:
            os._exit(0)

    # Not through a progress bar, which writes from a thread of the other process, under a lock.
    sys.stderr = sys.__stderr__
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)


def to_frames(pictures: Tensor, device: torch.device) -> Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32, [0, 1], on the device."""
    moved = pictures.to(device, non_blocking=True)
    return moved.movedim(-1, -3).float().div(255.0).contiguous()
