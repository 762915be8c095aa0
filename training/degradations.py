"""The degradations of one clip: drawn, so that they can be logged and replayed, and applied.

::

    degradation = draw_degradation(PUBLISHED, rng, length=30, walk=True)
    sharpened = sharpen(truth)
    degraded = degrade(sharpened, degradation)
    msgspec.json.decode(msgspec.json.encode(degradation), type=Degradation)  # the same again
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import cv2
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from rbvsr_deploy.training.compression import encode_and_decode
from rbvsr_deploy.training.degradation_config import (
    CLEAN,
    MODERATE,
    PUBLISHED,
    BlurConfig,
    BlurKind,
    DegradationConfig,
    Filter,
    JpegConfig,
    NoiseConfig,
    ResizeConfig,
    StageConfig,
    VideoConfig,
    Walk,
)
from rbvsr_deploy.training.kernels import gaussian_kernel, plateau_kernel, sinc_kernel

__all__ = [
    "CLEAN",
    "MODERATE",
    "PUBLISHED",
    "SCALE",
    "Blur",
    "Degradation",
    "DegradationConfig",
    "GaussianNoise",
    "Jpeg",
    "PoissonNoise",
    "Reduction",
    "Resize",
    "SincBlur",
    "Step",
    "VideoCompression",
    "degrade",
    "draw_degradation",
    "sharpen",
    "steps",
]

SCALE = 4
"""Ground truth is this many times larger than the degraded frames."""

Frames = NDArray[np.uint8]
Picture = NDArray[np.float32]
"""(H, W, 3) float32, RGB, nominally [0, 1]; what overshoots is clipped where 8 bits are made."""

PerFrame = tuple[float, ...]
"""One value for every frame of the clip."""

_T = TypeVar("_T", bound=str)


# --------------------------------------------------------------------------------- drawn parameters


class Blur(Struct, frozen=True, forbid_unknown_fields=True, tag="blur", tag_field="step"):
    """Kernel of :func:`~rbvsr_deploy.training.kernels.gaussian_kernel` or ``plateau_kernel``."""

    kind: BlurKind
    size: int
    sigma_x: PerFrame
    sigma_y: PerFrame
    angle: PerFrame
    beta: PerFrame


class SincBlur(Struct, frozen=True, forbid_unknown_fields=True, tag="sinc", tag_field="step"):
    """Kernel of :func:`~rbvsr_deploy.training.kernels.sinc_kernel`."""

    size: int
    cutoff: PerFrame


class Resize(Struct, frozen=True, forbid_unknown_fields=True, tag="resize", tag_field="step"):
    """Scales are relative to the first frame's size; the result is rounded down to even sizes."""

    direction: str
    filter: Filter
    scale: PerFrame


class Reduction(Struct, frozen=True, forbid_unknown_fields=True, tag="reduction", tag_field="step"):
    """Resize to exactly a quarter of the ground truth's size."""

    filter: Filter


class GaussianNoise(
    Struct, frozen=True, forbid_unknown_fields=True, tag="gaussian noise", tag_field="step"
):
    """Standard deviations in levels of 255."""

    sigma: PerFrame
    gray: bool
    seed: int


class PoissonNoise(
    Struct, frozen=True, forbid_unknown_fields=True, tag="poisson noise", tag_field="step"
):
    """Shot noise times a factor."""

    scale: PerFrame
    gray: bool
    seed: int


class Jpeg(Struct, frozen=True, forbid_unknown_fields=True, tag="jpeg", tag_field="step"):
    quality: tuple[int, ...]


class VideoCompression(
    Struct, frozen=True, forbid_unknown_fields=True, tag="video", tag_field="step"
):
    encoder: str
    bits_per_frame: int | None
    quality: int | None


Step = Blur | SincBlur | Resize | Reduction | GaussianNoise | PoissonNoise | Jpeg | VideoCompression


class Degradation(Struct, frozen=True, forbid_unknown_fields=True):
    """What happens to one clip, in this order."""

    length: int
    """Frames of the clip."""
    steps: tuple[Step, ...]


# ------------------------------------------------------------------------------------------ drawing


def draw_degradation(
    config: DegradationConfig, rng: np.random.Generator, *, length: int, walk: bool
) -> Degradation:
    """Draw the degradations of a clip.

    Args:
        length: frames of the clip.
        walk: let parameters walk from frame to frame; else they stay as they are drawn.
    """
    draw = _Draw(rng, length, walk)
    steps = list(draw.stage(config.first))
    if config.second is not None:
        *rest, last = draw.stage(config.second, keep_video_slot=True)
        steps += [s for s in rest if s is not None]
    else:
        last = None
    reduction: list[Step | None] = [
        Reduction(draw.choice(config.final_filters)),
        draw.blur(config.final_blur),
    ]
    compressed_first = rng.random() < 0.5
    steps += [last, *reduction] if compressed_first else [*reduction, last]
    return Degradation(length=length, steps=tuple(s for s in steps if s is not None))


class _Draw:
    """Draws the steps of one clip."""

    def __init__(self, rng: np.random.Generator, length: int, walk: bool) -> None:
        self.rng, self.length, self.walks = rng, length, walk

    def choice(self, weights: dict[_T, float]) -> _T:
        names = list(weights)
        p = np.array([weights[name] for name in names])
        return names[self.rng.choice(len(names), p=p / p.sum())]

    def walk(self, walk: Walk, *, low: float | None = None, high: float | None = None) -> PerFrame:
        """First value between ``low`` and ``high``, the others within the whole range."""
        first = self.rng.uniform(
            walk.low if low is None else low, walk.high if high is None else high
        )
        values = [float(first)]
        sizes = self.rng.uniform(-walk.step, walk.step, self.length - 1)
        for size in sizes if self.walks else np.zeros(self.length - 1):
            values.append(float(min(max(values[-1] + size, walk.low), walk.high)))
        return tuple(values)

    def stage(self, config: StageConfig, *, keep_video_slot: bool = False) -> Iterator[Step | None]:
        yield self.blur(config.blur)
        yield self.resize(config.resize)
        yield self.noise(config.noise)
        yield self.jpeg(config.jpeg)
        yield self.video(config.video)

    def blur(self, config: BlurConfig) -> Blur | SincBlur | None:
        if self.rng.random() >= config.probability:
            return None
        kind = self.choice(config.kinds)
        size = int(self.rng.choice(config.sizes))
        if kind == "sinc":
            cutoff = config.cutoff_small if size < 13 else config.cutoff_large
            return SincBlur(size=size, cutoff=self.walk(cutoff))
        sigma_x = self.walk(config.sigma)
        if kind.endswith("anisotropic"):
            sigma_y, angle = self.walk(config.sigma), self.walk(config.angle)
        else:
            sigma_y, angle = sigma_x, (0.0,) * self.length
        if kind.startswith("generalized"):
            beta = self.walk(config.beta_generalized)
        elif kind.startswith("plateau"):
            beta = self.walk(config.beta_plateau)
        else:
            beta = (1.0,) * self.length
        return Blur(kind=kind, size=size, sigma_x=sigma_x, sigma_y=sigma_y, angle=angle, beta=beta)

    def resize(self, config: ResizeConfig) -> Resize:
        direction, scale = self.choice(config.directions), config.scale
        low = 1.0 if direction != "down" else scale.low
        high = 1.0 if direction != "up" else scale.high
        return Resize(
            direction=direction,
            filter=self.choice(config.filters),
            scale=self.walk(scale, low=min(low, scale.high), high=max(high, scale.low)),
        )

    def noise(self, config: NoiseConfig) -> GaussianNoise | PoissonNoise | None:
        kind = self.choice(config.kinds)
        if kind == "none":
            return None
        gray = bool(self.rng.random() < config.gray_probability)
        seed = int(self.rng.integers(2**31))
        if kind == "gaussian":
            return GaussianNoise(sigma=self.walk(config.sigma), gray=gray, seed=seed)
        return PoissonNoise(scale=self.walk(config.scale), gray=gray, seed=seed)

    def jpeg(self, config: JpegConfig) -> Jpeg | None:
        if self.rng.random() >= config.probability:
            return None
        return Jpeg(quality=tuple(round(q) for q in self.walk(config.quality)))

    def video(self, config: VideoConfig) -> VideoCompression | None:
        if self.rng.random() >= config.probability:
            return None
        chosen = self.choice({str(i): c.weight for i, c in enumerate(config.codecs)})
        codec = config.codecs[int(chosen)]

        def integer(ends: tuple[int, int] | None) -> int | None:
            return None if ends is None else int(self.rng.integers(ends[0], ends[1] + 1))

        return VideoCompression(
            encoder=codec.encoder,
            bits_per_frame=integer(codec.bits_per_frame),
            quality=integer(codec.quality),
        )


# ----------------------------------------------------------------------------------------- applying


def sharpen(frames: Frames) -> Frames:
    """Unsharp mask of Real-ESRGAN, where it changes something by more than 10 levels.

    Args:
        frames: (T, H, W, 3) uint8.

    Returns:
        The same shape and type.
    """
    return np.stack([_sharpen(frame) for frame in frames])


def _sharpen(frame: Frames) -> Frames:
    picture = frame.astype(np.float32) / np.float32(255.0)
    residual = picture - cv2.GaussianBlur(picture, (51, 51), 0)
    mask = (np.abs(residual) * 255.0 > 10.0).astype(np.float32)
    soft = cv2.GaussianBlur(mask, (51, 51), 0)
    sharp = np.clip(picture + 0.5 * residual, 0.0, 1.0)
    return _to_bytes(soft * sharp + (1.0 - soft) * picture)


def degrade(frames: Frames, degradation: Degradation) -> Frames:
    """Apply one degradation to one clip.

    Args:
        frames: (T, 4H, 4W, 3) uint8, RGB.

    Returns:
        (T, H, W, 3) uint8, RGB.

    Raises:
        ValueError: the frames are not uint8 RGB, not a multiple of four in size, or not as many as
            the degradation has parameters for.
    """
    *_, (_, pictures) = steps(frames, degradation)
    return np.stack([_to_bytes(picture) for picture in pictures])


def steps(frames: Frames, degradation: Degradation) -> Iterator[tuple[Step | None, list[Picture]]]:
    """Every step with the pictures after it; first ``None`` with the undegraded ones."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be (T, H, W, 3) uint8, got {frames.shape} {frames.dtype}")
    if frames.shape[1] % SCALE or frames.shape[2] % SCALE:
        raise ValueError(f"height and width must be multiples of {SCALE}, got {frames.shape[1:3]}")
    if len(frames) != degradation.length:
        raise ValueError(f"{len(frames)} frames, but parameters for {degradation.length}")
    size = (frames.shape[1] // SCALE, frames.shape[2] // SCALE)
    pictures = [frame.astype(np.float32) / np.float32(255.0) for frame in frames]
    yield None, pictures
    for step in degradation.steps:
        pictures = _apply(step, pictures, size)
        yield step, pictures


def _apply(step: Step, pictures: list[Picture], size: tuple[int, int]) -> list[Picture]:
    match step:
        case Blur() | SincBlur():
            return [cv2.filter2D(p, -1, _kernel(step, i)) for i, p in enumerate(pictures)]
        case Resize():
            height, width = pictures[0].shape[:2]
            sizes = [(_even(height * s), _even(width * s)) for s in step.scale]
            return [_resize(p, s, step.filter) for p, s in zip(pictures, sizes, strict=True)]
        case Reduction():
            return [_resize(p, size, step.filter) for p in pictures]
        case GaussianNoise():
            rng = np.random.default_rng(step.seed)
            return [
                _gaussian_noise(p, s, step.gray, rng)
                for p, s in zip(pictures, step.sigma, strict=True)
            ]
        case PoissonNoise():
            rng = np.random.default_rng(step.seed)
            return [
                _poisson_noise(p, s, step.gray, rng)
                for p, s in zip(pictures, step.scale, strict=True)
            ]
        case Jpeg():
            return [_jpeg(p, q) for p, q in zip(pictures, step.quality, strict=True)]
        case VideoCompression():
            return _compress(pictures, step)


def _kernel(step: Blur | SincBlur, frame: int) -> NDArray[np.float32]:
    if isinstance(step, SincBlur):
        return sinc_kernel(step.size, cutoff=step.cutoff[frame])
    kernel = plateau_kernel if step.kind.startswith("plateau") else gaussian_kernel
    return kernel(
        step.size,
        sigma_x=step.sigma_x[frame],
        sigma_y=step.sigma_y[frame],
        angle=step.angle[frame],
        beta=step.beta[frame],
    )


_INTERPOLATION = {
    "bilinear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "bicubic": cv2.INTER_CUBIC,
}


def _even(length: float) -> int:
    return max(2, int(length) // 2 * 2)


def _resize(picture: Picture, size: tuple[int, int], filter: Filter) -> Picture:
    interpolation = _INTERPOLATION[filter]
    return cv2.resize(picture, (size[1], size[0]), interpolation=interpolation)  # type: ignore[no-any-return]


def _gaussian_noise(
    picture: Picture, sigma: float, gray: bool, rng: np.random.Generator
) -> Picture:
    shape = (*picture.shape[:2], 1 if gray else 3)
    return picture + rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma / 255.0)


def _poisson_noise(picture: Picture, scale: float, gray: bool, rng: np.random.Generator) -> Picture:
    light = picture.clip(0.0, 1.0)
    if gray:
        light = cv2.cvtColor(light, cv2.COLOR_RGB2GRAY)[..., None]
    light = np.rint(light * 255.0) / np.float32(255.0)
    photons = 2.0 ** np.ceil(np.log2(len(np.unique(light))))
    noise = rng.poisson(light * photons).astype(np.float32) / np.float32(photons) - light
    return picture + noise * np.float32(scale)


def _to_bytes(picture: Picture) -> Frames:
    """Clipped before it is rounded: overshoot must not wrap around into speckles."""
    return np.rint(picture.clip(0.0, 1.0) * 255.0).astype(np.uint8)


def _from_bytes(frame: NDArray[Any]) -> Picture:
    return frame.astype(np.float32) / np.float32(255.0)


def _jpeg(picture: Picture, quality: int) -> Picture:
    """One JPEG round trip; OpenCV's codec takes and gives BGR."""
    frame = cv2.cvtColor(_to_bytes(picture), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return _from_bytes(cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))


def _compress(pictures: Sequence[Picture], step: VideoCompression) -> list[Picture]:
    """The video has the first frame's size; frames of other sizes are resized to it."""
    size = (pictures[0].shape[0], pictures[0].shape[1])
    frames = np.stack([_to_bytes(_resize(p, size, "bicubic")) for p in pictures])
    decoded = encode_and_decode(
        frames, step.encoder, bits_per_frame=step.bits_per_frame, quality=step.quality
    )
    return [_from_bytes(frame) for frame in decoded]
