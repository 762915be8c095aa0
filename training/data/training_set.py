"""Clips to train on: from real footage and from photographs under a synthetic camera.

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
"""Draws of one clip, if what is drawn turns out to be damaged."""

logger = logging.getLogger(__name__)

Frames = NDArray[np.uint8]


class DataConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What the clips are."""

    sources: tuple[SourceConfig, ...]
    length: Annotated[int, Meta(ge=1)] = 30
    """Frames per clip."""
    crop: Annotated[int, Meta(ge=8)] = 64
    """Height and width of the degraded frames; ground truth is four times larger."""
    stochastic: bool = True
    """The stochastic degradation scheme: load half as many frames, mirror them in time, and let the
    parameters of the degradations walk from frame to frame. Without it, as many different frames
    as the clip is long are loaded, and the parameters stay fixed over the clip."""
    max_speed: Annotated[float, Meta(gt=0.05)] = 4.0
    """Fastest synthetic camera, degraded pixels per frame; speeds are drawn log-uniformly from 0.05
    on."""
    parallax: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.5
    """Share of the photographs' clips that show two or three of them, the nearer ones faster."""
    cache: str | None = None
    """Folder for decoded frames, above all of videos, which are expensive to enter in the middle;
    ``None`` is none."""
    cache_gib: Annotated[float, Meta(gt=0.0)] = 16.0
    """What the cache may take, GiB; footage beyond that is decoded for every clip."""

    @property
    def side(self) -> int:
        """Height and width of the ground truth."""
        return self.crop * SCALE

    @property
    def loaded(self) -> int:
        """Different frames of a clip."""
        return (self.length + 1) // 2 if self.stochastic else self.length


@dataclass(frozen=True)
class Sample:
    """One clip: what the network gets, and what it should make of it."""

    degraded: Frames
    """(L, S, S, 3) uint8, RGB."""
    truth: Frames
    """(L, 4S, 4S, 3) uint8, RGB: real to the discriminator."""
    sharpened: Frames
    """(L, 4S, 4S, 3) uint8, RGB: unsharp-masked, the target of the other losses."""
    path: CameraPath | None
    """Of the synthetic camera; ``None`` for real footage."""
    degradation: Degradation
    """As drawn; as JSON, ``msgspec.json.encode(sample.degradation)``."""
    source: str
    """File or folder the clip comes from."""
    skipped: tuple[tuple[str, str], ...]
    """Files found damaged on the way, in whose place another clip was drawn; and the sentence that
    says so."""


class TrainingSet:
    """Degraded clips by number.

    Args:
        seed: of everything drawn.

    Raises:
        MediaError: a source is missing or empty.
    """

    def __init__(self, config: DataConfig, degradation: DegradationConfig, *, seed: int) -> None:
        self.config, self.degradation, self.seed = config, degradation, seed
        if not config.sources:
            raise MediaError("there is nothing to train on: name at least one source of clips")
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
            cache.tell()
        weights = np.array([source.weight for source in config.sources])
        self._weights = weights / weights.sum()
        self.skipped: Counter[str] = Counter()
        """Damaged files that :meth:`note` was told of, and how often."""

    def check(self) -> None:
        """Look at every source before the long work.

        Raises:
            MediaError: clips longer or larger than what is there, or an encoder that this PyAV does
                not have; one sentence that names the source or the encoder.
        """
        stages = [s for s in (self.degradation.first, self.degradation.second) if s is not None]
        for codec in (codec for stage in stages for codec in stage.video.codecs):
            check_encoder(codec.encoder)
        for source in self.sources:
            source.check()

    @property
    def has_motion(self) -> bool:
        """Whether there are sources whose true flow is known."""
        return any(source.config.kind == "photos" for source in self.sources)

    def sample(self, index: int, *, stream: int = 0, motion_only: bool = False) -> Sample:
        """Clip number ``index`` of a stream; the same for the same seed, stream and index.

        Args:
            stream: separates phases of training.
            motion_only: photographs only, so that the true flow is known.

        Raises:
            MediaError: nothing but damaged files was drawn.
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
            if multiprocessing.parent_process() is None:  # else it is noted where the clip arrives
                self.note(skipped)
            return self._degraded(clip.frames, clip.path, clip.name, tuple(skipped), rng)
        raise MediaError(
            f"{_ATTEMPTS} clips in a row could not be read, the last from {skipped[-1][0]}: "
            "repair or remove the damaged files"
        )

    def note(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Count damaged files; of each, say so the first time."""
        for path, sentence in skipped:
            self.skipped[path] += 1
            if self.skipped[path] == 1:
                logger.warning("%s; other clips are drawn in its place", sentence)

    def tell_skipped(self) -> None:
        """Say how many clips were lost to damaged files, if any."""
        if self.skipped:
            files = [f"{path} ({count})" for path, count in self.skipped.most_common(5)]
            logger.warning(
                f"{self.skipped.total()} clips were drawn anew for damaged files: "
                + ", ".join(files + ["..."] * (len(self.skipped) > 5))
            )

    def tell_costs(self) -> None:
        """Say what it costs if videos are decoded for every clip."""
        videos = [f for s in self.sources for f in s.usable if isinstance(f, VideoFile)]
        if not videos or self.config.cache is not None:
            return
        ahead = np.mean([video.frames_ahead(self.config.loaded) for video in videos])
        size = sum(video.count * video.frame_bytes for video in videos) / 2**30
        logger.warning(
            f"for every clip, {ahead:.0f} frames of a video are decoded ahead of the "
            f"{self.config.loaded} it shows, on average: set data.cache to a folder to decode "
            f"videos once and keep their frames there, {size:.1f} GiB"
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
        """Mirrored, if that is the scheme, and degraded. Sharpened before it is mirrored."""
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
