"""Draws clips to train on, from real footage and from photographs filmed with a synthetic camera.

A clip is a pure function of (seed, stream, index): the same in every worker, in every process and
after every restart.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.training.data.cache import FrameCache
from rbvsr_deploy.training.data.camera import CameraPath
from rbvsr_deploy.training.data.footage import DamagedSourceError, VideoFile
from rbvsr_deploy.training.data.sharpening import sharpen
from rbvsr_deploy.training.data.sources import (
    ClipShape,
    Source,
    SourceConfig,
    open_source,
)
from rbvsr_deploy.training.degradations.clip_degradation import (
    Degradation,
    DegradationConfig,
    degrade,
    draw_degradation,
)
from rbvsr_deploy.training.degradations.compression import check_encoder

__all__ = ["DataConfig", "Sample", "SourceConfig", "TrainingSet"]

_ATTEMPTS = 20
"""Number of draws of one clip before giving up, when the drawn sources are damaged."""

logger = logging.getLogger(__name__)

Frames = NDArray[np.uint8]


class DataConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Describes the clips of a training set."""

    sources: tuple[SourceConfig, ...]
    length: Annotated[int, Meta(ge=1, le=10_000)] = 30
    """Frames per clip."""
    crop: Annotated[int, Meta(ge=8, le=4096)] = 64
    """Height and width of the degraded frames in pixels; the ground truth is four times larger."""
    stochastic: bool = True
    """Use the stochastic degradation scheme: load half as many frames, mirror them in time, and let
    the degradation parameters walk from frame to frame. Otherwise every frame of the clip is a
    different one, and the parameters stay fixed over the clip."""
    max_speed: Annotated[float, Meta(gt=0.05)] = 4.0
    """Maximum speed of the synthetic camera in degraded pixels per frame; speeds are drawn
    log-uniformly from 0.05 upwards."""
    parallax: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.5
    """Share of the photograph clips that show two or three photographs, nearer ones moving
    faster."""
    cache: str | None = None
    """Folder for decoded frames, useful above all for videos, where random access is expensive;
    ``None`` disables the cache."""
    cache_gib: Annotated[float, Meta(gt=0.0)] = 16.0
    """Size limit of the cache in GiB; footage beyond it is decoded again for every clip."""

    @property
    def side(self) -> int:
        """Height and width of the ground truth in pixels."""
        return self.crop * SCALE

    @property
    def loaded(self) -> int:
        """Number of different frames in a clip."""
        return (self.length + 1) // 2 if self.stochastic else self.length


@dataclass(frozen=True)
class Sample:
    """One clip: the input of the network and its targets."""

    degraded: Frames
    """(L, S, S, 3) uint8, RGB."""
    truth: Frames
    """(L, 4S, 4S, 3) uint8, RGB: ground truth, the real example for the discriminator."""
    sharpened: Frames
    """(L, 4S, 4S, 3) uint8, RGB: unsharp-masked ground truth, the target of the other losses."""
    path: CameraPath | None
    """Path of the synthetic camera; ``None`` for real footage."""
    degradation: Degradation
    """The degradation that was drawn; ``msgspec.json.encode(sample.degradation)`` gives JSON."""
    source: str
    """File or folder the clip comes from."""
    skipped: tuple[tuple[str, str], ...]
    """Damaged files that were drawn first, each with the sentence that reports it."""


class TrainingSet:
    """Gives degraded clips by number.

    Args:
        config: describes the clips.
        degradation: describes how they are degraded.
        seed: seed of all random draws.

    Raises:
        MediaError: a source does not exist or is empty.
    """

    def __init__(self, config: DataConfig, degradation: DegradationConfig, *, seed: int) -> None:
        self.config, self.degradation, self.seed = config, degradation, seed
        if not config.sources:
            raise MediaError("there is nothing to train on: give at least one source of clips")
        cache = None
        if config.cache is not None:
            cache = FrameCache(Path(config.cache), limit=int(config.cache_gib * 2**30))
        shape = ClipShape(
            frames=config.loaded,
            crop=config.crop,
            side=config.side,
            max_speed=config.max_speed,
            parallax=config.parallax,
        )
        self.sources: list[Source] = [
            open_source(source, shape, cache=cache) for source in config.sources
        ]
        if cache is not None:
            cache.log_usage()
        weights = np.array([source.weight for source in config.sources])
        self._weights = weights / weights.sum()
        self.skipped: Counter[str] = Counter()
        """Damaged files passed to :meth:`note`, with how often each was drawn."""

    def check(self) -> None:
        """Check every source and encoder before training starts.

        Raises:
            MediaError: a source is too short or too small for the clips, or this PyAV lacks an
                encoder.
        """
        stages = [s for s in (self.degradation.first, self.degradation.second) if s is not None]
        for codec in (codec for stage in stages for codec in stage.video.codecs):
            check_encoder(codec.encoder)
        for source in self.sources:
            source.check()

    @property
    def has_motion(self) -> bool:
        """True if the true flow of any source is known."""
        return any(source.config.kind == "photos" for source in self.sources)

    def sample(self, index: int, *, stream: int = 0, motion_only: bool = False) -> Sample:
        """Draw clip number ``index`` of a stream; the same for the same seed, stream and index.

        Args:
            index: number of the clip.
            stream: number that separates the phases of training.
            motion_only: draw from photographs only, so that the true flow is known.

        Raises:
            MediaError: only damaged files were drawn.
            ValueError: ``motion_only`` without a source of photographs.
        """
        skipped: list[tuple[str, str]] = []
        for attempt in range(_ATTEMPTS):
            rng = np.random.default_rng([self.seed, stream, index, attempt])
            source = self._choose(rng, motion_only)
            try:
                clip = source.clip(rng)
            except DamagedSourceError as error:
                skipped.append((error.path, str(error)))
                continue
            # In a worker process, the process that receives the clip notes them instead.
            if multiprocessing.parent_process() is None:
                self.note(skipped)
            return self._degraded(clip.frames, clip.path, clip.name, tuple(skipped), rng)
        raise MediaError(
            f"{_ATTEMPTS} clips in a row could not be read, the last from {skipped[-1][0]}: "
            "repair or remove the damaged files"
        )

    def note(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Count damaged files, and warn about each the first time."""
        for path, sentence in skipped:
            self.skipped[path] += 1
            if self.skipped[path] == 1:
                logger.warning("%s; drawing other clips instead", sentence)

    def log_skipped(self) -> None:
        """Log how many clips had to be redrawn because of damaged files, if any."""
        if self.skipped:
            files = [f"{path} ({count})" for path, count in self.skipped.most_common(5)]
            logger.warning(
                f"{self.skipped.total()} clips were redrawn because of damaged files: "
                + ", ".join(files + ["..."] * (len(self.skipped) > 5))
            )

    def log_costs(self) -> None:
        """Warn about the cost of decoding videos for every clip, if they are not cached."""
        videos = [f for s in self.sources for f in s.usable if isinstance(f, VideoFile)]
        if not videos or self.config.cache is not None:
            return
        ahead = np.mean([video.frames_ahead(self.config.loaded) for video in videos])
        size = sum(video.count * video.frame_bytes for video in videos) / 2**30
        logger.warning(
            f"each clip from a video decodes {ahead:.0f} extra frames on average to reach the "
            f"{self.config.loaded} that it shows: set data.cache to a folder with {size:.1f} GiB "
            "of free space to decode each video only once"
        )

    def _choose(self, rng: np.random.Generator, motion_only: bool) -> Source:
        numbers = [
            i for i, s in enumerate(self.sources) if s.config.kind == "photos" or not motion_only
        ]
        if not numbers:
            raise ValueError("no source has known motion: give a source of kind 'photos'")
        weights = self._weights[numbers]
        return self.sources[numbers[int(rng.choice(len(numbers), p=weights / weights.sum()))]]

    def _degraded(
        self,
        frames: Frames,
        path: CameraPath | None,
        name: str,
        skipped: tuple[tuple[str, str], ...],
        rng: np.random.Generator,
    ) -> Sample:
        """Sharpen a clip, mirror it in time if the scheme asks for that, and degrade it."""
        config = self.config
        degradation = draw_degradation(
            self.degradation, rng, length=config.length, walk=config.stochastic
        )
        order = np.arange(config.length)
        if config.stochastic:
            order = np.minimum(order, 2 * config.loaded - 1 - order)  # 0 1 2 2 1 0
        sharpened = sharpen(frames)[order]
        return Sample(
            degraded=degrade(sharpened, degradation),
            truth=frames[order],
            sharpened=sharpened,
            path=path and path.reordered(order),
            degradation=degradation,
            source=name,
            skipped=skipped,
        )
