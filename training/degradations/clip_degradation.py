"""Draws the degradations of a clip, as values that can be logged and replayed, and applies them.

::

    degradation = draw_degradation(PUBLISHED, rng, length=30, walk=True)
    degraded = degrade(sharpened, degradation)
    msgspec.json.decode(msgspec.json.encode(degradation), type=Degradation)  # the same again

The order of the steps is the published one (RealBasicVSR, CVPR 2022, section 4; Real-ESRGAN, ICCV
workshops 2021): blur, resize, noise, JPEG and video compression; blur, resize, noise and JPEG
again; then, in random order, video compression, and the reduction to the final size with a last
blur.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.training.degradations.config import (
    CLEAN,
    MODERATE,
    PUBLISHED,
    BlurConfig,
    DegradationConfig,
    JpegConfig,
    NoiseConfig,
    ResizeConfig,
    StageConfig,
    VideoConfig,
    Walk,
)
from rbvsr_deploy.training.degradations.steps import (
    Blur,
    FloatImage,
    GaussianNoise,
    Jpeg,
    PerFrame,
    PoissonNoise,
    Reduction,
    Resize,
    SincBlur,
    Step,
    VideoCompression,
    apply,
    from_bytes,
    to_bytes,
)

__all__ = [
    "CLEAN",
    "MODERATE",
    "PUBLISHED",
    "Degradation",
    "DegradationConfig",
    "degrade",
    "draw_degradation",
    "walk_through",
]


Frames = NDArray[np.uint8]

_Name = TypeVar("_Name", bound=str)


class Degradation(Struct, frozen=True, forbid_unknown_fields=True):
    """The degradation of one clip, as a sequence of steps."""

    length: int
    """Number of frames in the clip."""
    steps: tuple[Step, ...]
    """Steps in the order they are applied."""


def draw_degradation(
    config: DegradationConfig, rng: np.random.Generator, *, length: int, walk: bool
) -> Degradation:
    """Draw the degradations of a clip.

    Args:
        config: ranges and probabilities to draw from.
        rng: source of randomness.
        length: number of frames in the clip.
        walk: let parameters walk from frame to frame; otherwise they stay fixed over the clip.
    """
    draw = _Draw(rng, length=length, walk=walk)
    if config.clean and draw.happens(config.clean):
        return Degradation(length=length, steps=(Reduction(draw.name(config.final_filters)),))
    drawn = [*draw.stage(config.first), draw.video(config.first.video)]
    last = [Reduction(draw.name(config.final_filters)), draw.blur(config.final_blur)]
    if config.second is not None:
        drawn += draw.stage(config.second)
        video = draw.video(config.second.video)
        last = [video, *last] if rng.random() < 0.5 else [*last, video]
    return Degradation(length=length, steps=tuple(s for s in [*drawn, *last] if s is not None))


def degrade(frames: Frames, degradation: Degradation) -> Frames:
    """Apply a degradation to a clip.

    Args:
        frames: (T, 4H, 4W, 3) uint8, RGB.

    Returns:
        (T, H, W, 3) uint8, RGB.

    Raises:
        ValueError: the frames are not uint8 RGB, their sides are not multiples of four, or their
            number differs from the length of the degradation.
    """
    *_, (_, images) = walk_through(frames, degradation)
    return np.stack([to_bytes(image) for image in images])


def walk_through(
    frames: Frames, degradation: Degradation
) -> Iterator[tuple[Step | None, list[FloatImage]]]:
    """Yield the images after every step of :func:`degrade`, preceded by ``None`` and the frames.

    Args and errors are those of :func:`degrade`; images are (H, W, 3) float32, RGB.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be (T, H, W, 3) uint8, got {frames.shape} {frames.dtype}")
    height, width = frames.shape[1:3]
    if height % SCALE or width % SCALE:
        raise ValueError(f"height and width must be multiples of {SCALE}, got {height}x{width}")
    if len(frames) != degradation.length:
        raise ValueError(f"{len(frames)} frames, but parameters for {degradation.length}")
    images = [from_bytes(frame) for frame in frames]
    yield None, images
    for step in degradation.steps:
        images = apply(step, images, size=(height // SCALE, width // SCALE))
        yield step, images


class _Draw:
    """Draws the steps of one clip; ``None`` stands for a step that is skipped."""

    def __init__(self, rng: np.random.Generator, *, length: int, walk: bool) -> None:
        self.rng, self.length, self.walking = rng, length, walk

    def stage(self, config: StageConfig) -> list[Step | None]:
        """Draw the steps of one stage, without its video compression."""
        return [
            self.blur(config.blur),
            self.resize(config.resize),
            self.noise(config.noise),
            self.jpeg(config.jpeg),
        ]

    def blur(self, config: BlurConfig) -> Step | None:
        if not self.happens(config.probability):
            return None
        kind, size = self.name(config.kinds), int(self.rng.choice(config.sizes))
        if kind == "sinc":
            cutoff = config.cutoff_small if size < 13 else config.cutoff_large
            return SincBlur(size=size, cutoff=self.walk(cutoff))
        sigma_x, sigma_y = self.walk(config.sigma), self.walk(config.sigma)
        angle, beta = self.walk(config.angle), (1.0,) * self.length
        if not kind.endswith("anisotropic"):
            sigma_y, angle = sigma_x, (0.0,) * self.length
        if kind.startswith("generalized"):
            beta = self.walk(config.beta_generalized)
        elif kind.startswith("plateau"):
            beta = self.walk(config.beta_plateau)
        return Blur(kind=kind, size=size, sigma_x=sigma_x, sigma_y=sigma_y, angle=angle, beta=beta)

    def resize(self, config: ResizeConfig) -> Step:
        direction, scale = self.name(config.directions), config.scale
        ends = {"up": (1.0, scale.high), "down": (scale.low, 1.0), "keep": (1.0, 1.0)}[direction]
        first = float(self.rng.uniform(*np.clip(ends, scale.low, scale.high)))
        return Resize(
            direction=direction,
            filter=self.name(config.filters),
            scale=self.walk(scale, first=first),
        )

    def noise(self, config: NoiseConfig) -> Step | None:
        kind = self.name(config.kinds)
        gray, seed = self.happens(config.gray_probability), int(self.rng.integers(2**31))
        if kind == "gaussian":
            return GaussianNoise(sigma=self.walk(config.sigma), gray=gray, seed=seed)
        if kind == "poisson":
            return PoissonNoise(scale=self.walk(config.scale), gray=gray, seed=seed)
        return None

    def jpeg(self, config: JpegConfig) -> Step | None:
        if not self.happens(config.probability):
            return None
        ends = (round(config.quality.low), round(config.quality.high))
        qualities = [self.whole(ends)]
        for step in self.steps(config.quality):
            qualities.append(min(max(round(qualities[-1] + step), ends[0]), ends[1]))
        return Jpeg(quality=tuple(qualities))

    def video(self, config: VideoConfig) -> Step | None:
        if not self.happens(config.probability):
            return None
        weights = np.array([codec.weight for codec in config.codecs])
        codec = config.codecs[int(self.rng.choice(len(weights), p=weights / weights.sum()))]
        bits, quality = codec.bits_per_frame, codec.quality
        return VideoCompression(
            encoder=codec.encoder,
            preset=codec.preset,
            bits_per_frame=None if bits is None else self.whole(bits),
            quality=None if quality is None else self.whole(quality),
        )

    def happens(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def name(self, weights: dict[_Name, float]) -> _Name:
        shares = np.array(list(weights.values()))
        return list(weights)[int(self.rng.choice(len(shares), p=shares / shares.sum()))]

    def whole(self, ends: tuple[int, int]) -> int:
        return int(self.rng.integers(ends[0], ends[1] + 1))

    def walk(self, walk: Walk, *, first: float | None = None) -> PerFrame:
        """Draw a value for every frame, clipped to the range after every step."""
        values = [float(self.rng.uniform(walk.low, walk.high)) if first is None else first]
        for step in self.steps(walk):
            values.append(min(max(values[-1] + step, walk.low), walk.high))
        return tuple(values)

    def steps(self, walk: Walk) -> list[float]:
        """Draw the change from each frame to the next."""
        size = walk.step if self.walking else 0.0
        steps: list[float] = self.rng.uniform(-size, size, self.length - 1).tolist()
        return steps
