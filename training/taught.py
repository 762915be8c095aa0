"""Stores clips together with the output of a teacher.

A clip is degraded and upscaled by the teacher once, when it is first requested, and then stored in
a file, which is read in later epochs and after a restart. The student gets the degraded frames; the
teacher gets the ground truth reduced by averaging, without blur, noise and compression.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

from rbvsr_deploy.errors import RbvsrError, first_line
from rbvsr_deploy.files import sha256, write_atomically
from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.training.clips import Arrays, ClipDataset, Item, Skipped
from rbvsr_deploy.training.config import TrainingConfig
from rbvsr_deploy.training.data.camera import true_flow
from rbvsr_deploy.training.data.training_set import DataConfig, Sample, TrainingSet
from rbvsr_deploy.training.run_folder import writes
from rbvsr_deploy.training.teacher import load_teacher

__all__ = ["TaughtClips", "TaughtImages"]

_FINE = ("truth", "sharpened", "taught")
"""Names of the arrays at output size; the others have the size of the degraded frames."""


class TaughtClips(ClipDataset):
    """Gives patches of a limited number of stored clips.

    In addition to the arrays of :class:`ClipDataset` there are: ``taught``, the output of the
    teacher, (L, 4S, 4S, 3) uint8; ``flow`` from each frame but the first to the previous one,
    (L-1, 2, S, S) float32; and ``known``, (L-1, S, S) bool, which is false everywhere if the source
    is not a photograph.

    Each time a clip is drawn, a patch is cut from it, and mirrored and transposed at random.

    Args:
        config: recipe with a ``distillation.share`` above 0.

    Raises:
        RbvsrError: no teacher is named, the folder cannot be written, or it holds clips of another
            recipe.
        CheckpointError: the weights of the teacher cannot be read.
    """

    kind = "clips"

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(TrainingSet(self.data(config), config.degradation, seed=config.seed))
        distillation = config.distillation
        if distillation.teacher is None:
            raise RbvsrError(
                "the recipe has a distillation.share above 0 but no teacher: set "
                "distillation.teacher to the ncnn .bin file of realesr-general-x4v3"
            )
        files = [Path(f) for f in (distillation.teacher, distillation.mixed_with) if f is not None]
        self.teacher = load_teacher(
            files[0], other=files[1] if len(files) > 1 else None, share=distillation.mixture
        )
        self.count = distillation.clips
        self.patch = min(distillation.patch, self.clips.config.crop)
        self.folder = Path(distillation.folder) / self.kind
        recipe = {
            "data": msgspec.to_builtins(self.clips.config),
            "degradation": msgspec.to_builtins(config.degradation),
            "seed": config.seed,
            "teacher": [sha256(file) for file in files],
            "mixture": distillation.mixture,
        }
        for free in ("cache", "cache_gib"):
            del recipe["data"][free]
        self._claim(json.dumps(recipe, indent=1, sort_keys=True))

    def data(self, config: TrainingConfig) -> DataConfig:
        """Return the description of the stored clips."""
        return config.data

    def _claim(self, recipe: str) -> None:
        """Record the recipe in the folder, or check that its clips belong to the same recipe."""
        note = self.folder / "recipe.json"
        with writes(note):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not note.exists():
                write_atomically(note, recipe.encode())
        if note.read_text(encoding="utf-8") != recipe:
            raise RbvsrError(
                f"'{self.folder}' contains clips of other sources, sizes or degradations, or of "
                "another teacher: choose another distillation.folder, or remove this one"
            )

    def __getitem__(self, index: int) -> Item:
        number = index % self.count
        path = self.folder / f"{number:06}.safetensors"
        skipped: Skipped = ()
        try:
            if not path.exists():
                sample = self.clips.sample(number, stream=self.stream)
                skipped = sample.skipped
                with writes(path):
                    write_atomically(path, safetensors_bytes(self._taught(sample)))
            rng = np.random.default_rng([self.clips.seed, self.stream, index])
            return {"index": np.array(index), **_turned(self._patch(path, rng), rng)}, skipped
        except RbvsrError as error:
            return error

    def _taught(self, sample: Sample) -> Arrays:
        """Return all arrays of a clip to store."""
        arrays = self.arrays(sample)
        length, side = arrays["degraded"].shape[:2]
        blocks = arrays["truth"].reshape(length, side, SCALE, side, SCALE, 3)
        reduced = np.rint(blocks.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)
        return {**arrays, "taught": self.teacher.upscale(reduced)}

    def arrays(self, sample: Sample) -> Arrays:
        length, side = sample.degraded.shape[:2]
        flow = np.zeros((length - 1, 2, side, side), np.float32)
        known = np.zeros((length - 1, side, side), bool)
        if sample.path is not None:
            for i in range(length - 1):
                flow[i], known[i] = true_flow(sample.path, reference=i + 1, neighbour=i)
        return {**super().arrays(sample), "flow": flow, "known": known}

    def _patch(self, path: Path, rng: np.random.Generator) -> Arrays:
        """Read a random patch of a stored clip, without reading the rest."""
        try:
            with safe_open(path, framework="numpy") as stored:
                slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 (no dict)
                side = slices["degraded"].get_shape()[1]
                top, left = (int(v) for v in rng.integers(side - self.patch + 1, size=2))
                return {
                    name: _cut(part, top, left, self.patch, SCALE if name in _FINE else 1)
                    for name, part in slices.items()
                }
        except (OSError, SafetensorError, KeyError) as error:
            raise RbvsrError(
                f"the stored clip '{path}' cannot be read ({first_line(error)}): remove the file "
                "to create it again"
            ) from None


class TaughtImages(TaughtClips):
    """Gives single frames: the arrays of :class:`TaughtClips` with length 1, without ``flow`` and
    ``known``.

    Each frame is the middle one of three, so that it shows how video compression affects a frame
    with neighbours.
    """

    kind = "images"
    stream = 3

    def data(self, config: TrainingConfig) -> DataConfig:
        return msgspec.structs.replace(
            config.data, length=3, stochastic=False, crop=config.images.crop
        )

    def arrays(self, sample: Sample) -> Arrays:
        return {name: frames[1:2] for name, frames in ClipDataset.arrays(self, sample).items()}


def _cut(part: Any, top: int, left: int, side: int, scale: int) -> NDArray[Any]:
    """Cut a square from every frame of (L, H, W) or (L, H, W, 3), or of flow (L, 2, H, W)."""
    rows, columns = (slice(scale * a, scale * (a + side)) for a in (top, left))
    shape = part.get_shape()
    of_flow = len(shape) == 4 and shape[1] == 2
    cut: NDArray[Any] = part[:, :, rows, columns] if of_flow else part[:, rows, columns]
    return cut


def _turned(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    """Mirror and transpose the frames, each at random."""
    flip_x, flip_y, transpose = rng.random(3) < 0.5
    return {
        name: np.ascontiguousarray(
            _turned_flow(array, flip_x, flip_y, transpose)
            if name == "flow"
            else _turned_frames(array, flip_x, flip_y, transpose)
        )
        for name, array in arrays.items()
    }


def _turned_frames(frames: Any, flip_x: bool, flip_y: bool, transpose: bool) -> Any:
    frames = frames[:, :, ::-1] if flip_x else frames
    frames = frames[:, ::-1] if flip_y else frames
    return frames.swapaxes(1, 2) if transpose else frames


def _turned_flow(flow: Any, flip_x: bool, flip_y: bool, transpose: bool) -> Any:
    """Mirror and transpose a flow (L, 2, H, W), in both its positions and its directions."""
    signs = np.array([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0], flow.dtype)
    flow = flow[:, :, :, ::-1] if flip_x else flow
    flow = flow[:, :, ::-1] if flip_y else flow
    flow = flow * signs[:, None, None]
    return flow[:, ::-1].swapaxes(2, 3) if transpose else flow
