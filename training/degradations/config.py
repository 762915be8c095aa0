"""Defines the ranges, probabilities and step sizes of the degradations, as typed values.

The order of the steps is the published one (RealBasicVSR, CVPR 2022, section 4; Real-ESRGAN): the
sharpened ground truth goes through blur, resize, noise, JPEG and video compression twice. The final
blur and the resize to a quarter of the size come before or after the second video compression.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

__all__ = [
    "CLEAN",
    "MODERATE",
    "PUBLISHED",
    "BlurConfig",
    "BlurKind",
    "CodecConfig",
    "DegradationConfig",
    "Direction",
    "Encoder",
    "Filter",
    "JpegConfig",
    "NoiseConfig",
    "ResizeConfig",
    "StageConfig",
    "VideoConfig",
    "Walk",
]

BlurKind = Literal[
    "isotropic",
    "anisotropic",
    "generalized_isotropic",
    "generalized_anisotropic",
    "plateau_isotropic",
    "plateau_anisotropic",
    "sinc",
]
Direction = Literal["up", "down", "keep"]
Encoder = Literal["libx264", "mpeg4", "libx265", "libvpx-vp9", "libsvtav1"]
Filter = Literal["bilinear", "area", "bicubic"]
Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
Weight = Annotated[float, Meta(ge=0.0)]


class Walk(Struct, frozen=True, forbid_unknown_fields=True):
    """A parameter that walks through its range from frame to frame.

    It is drawn uniformly from the range for the first frame. Each further frame adds a uniform step
    of at most ``step`` in either direction, and the sum is clipped to the range.
    """

    low: float
    high: float
    step: Annotated[float, Meta(ge=0.0)] = 0.0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"a range must have low <= high, got {self.low} to {self.high}")


def _check_weights(weights: Iterable[float], *, of: str) -> None:
    if sum(weights) <= 0.0:
        raise ValueError(f"at least one of the {of} must have a weight above 0")


class BlurConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Describes a blur; the kind and size of its kernel are drawn once per clip."""

    probability: Probability
    kinds: dict[BlurKind, Weight]
    sizes: tuple[Annotated[int, Meta(ge=3, le=51)], ...]
    """Sides of the kernel in pixels, odd; all are equally likely."""
    sigma: Walk
    """Standard deviation in pixels; drawn separately for each axis of an anisotropic kernel."""
    angle: Walk
    """Angle of an anisotropic kernel, in radians."""
    beta_generalized: Walk
    """Exponent of generalized Gaussian kernels."""
    beta_plateau: Walk
    """Exponent of plateau kernels."""
    cutoff_small: Walk
    """Cutoff of sinc kernels smaller than 13 pixels, in radians per pixel."""
    cutoff_large: Walk
    """Cutoff of sinc kernels of 13 pixels and more, in radians per pixel."""

    def __post_init__(self) -> None:
        _check_weights(self.kinds.values(), of="kinds of blur")
        if not self.sizes or any(size % 2 == 0 for size in self.sizes):
            raise ValueError(
                f"the sizes of blur kernels must be one or more odd numbers, got {self.sizes}"
            )


class ResizeConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Describes a resize by a factor; direction and filter are drawn once per clip."""

    directions: dict[Direction, Weight]
    scale: Walk
    """Factor. Up is drawn between 1 and the high end, down between the low end and 1; the walk may
    cross 1."""
    filters: dict[Filter, Weight]

    def __post_init__(self) -> None:
        _check_weights(self.directions.values(), of="directions of resizing")
        _check_weights(self.filters.values(), of="filters")
        if self.scale.low <= 0.0:
            raise ValueError(f"the scale must be above 0, got {self.scale.low}")


class NoiseConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Describes the noise; its kind, and whether it is grey, are drawn once per clip."""

    kinds: dict[Literal["gaussian", "poisson", "none"], Weight]
    sigma: Walk
    """Standard deviation of Gaussian noise, levels of 255."""
    scale: Walk
    """Strength of Poisson noise; 1 is the shot noise of as many photons at white as the frame has
    levels."""
    gray_probability: Probability
    """Probability that the three channels get the same noise."""

    def __post_init__(self) -> None:
        _check_weights(self.kinds.values(), of="kinds of noise")


class JpegConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Describes the JPEG compression of every frame."""

    probability: Probability
    quality: Walk
    """Quality from 1 to 100; drawn values are rounded to whole numbers."""

    def __post_init__(self) -> None:
        if not 1 <= self.quality.low <= self.quality.high <= 100:
            raise ValueError(
                f"JPEG qualities must be from 1 to 100, got {self.quality.low} to "
                f"{self.quality.high}"
            )


class CodecConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """A video encoder with a range of either bitrates or qualities.

    libx264 and mpeg4 always give the same bytes for the same frames. libx265 does not, so a run
    that uses it cannot be repeated bit for bit.
    """

    encoder: Encoder
    weight: Weight = 1.0
    preset: str | None = None
    """Preset of the encoder (``cpu-used`` of libvpx-vp9); ``None`` uses its default."""
    bits_per_frame: tuple[int, int] | None = None
    """Smallest and largest target for the mean size of a frame, in bits."""
    quality: tuple[int, int] | None = None
    """Smallest and largest constant rate factor, or quantiser for mpeg4; higher is worse."""

    def __post_init__(self) -> None:
        ends = self.bits_per_frame or self.quality
        if (self.bits_per_frame is None) == (self.quality is None):
            raise ValueError(f"{self.encoder} needs either bits_per_frame or quality, not both")
        if ends is None or ends[0] > ends[1] or ends[0] < 0:
            raise ValueError(
                f"a range of {self.encoder} must have 0 <= low <= high, got "
                f"{ends and ends[0]} to {ends and ends[1]}"
            )


class VideoConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Describes the compression by a video encoder; all parameters are drawn once per clip."""

    probability: Probability
    codecs: tuple[CodecConfig, ...]

    def __post_init__(self) -> None:
        _check_weights([c.weight for c in self.codecs], of="codecs")


class StageConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Describes one of the two stages of the degradation."""

    blur: BlurConfig
    resize: ResizeConfig
    noise: NoiseConfig
    jpeg: JpegConfig
    video: VideoConfig


class DegradationConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Describes the whole pipeline."""

    first: StageConfig
    second: StageConfig | None
    final_blur: BlurConfig
    final_filters: dict[Filter, Weight]
    """Filters of the resize to exactly a quarter of the ground truth's size."""
    clean: Probability = 0.0
    """Share of the clips to which only this resize is applied."""

    def __post_init__(self) -> None:
        _check_weights(self.final_filters.values(), of="final filters")


# --------------------------------------------------------------------------------------- published

_PI = 3.141592653589793
_SIZES = (7, 9, 11, 13, 15, 17, 19, 21)
_FILTERS: dict[Filter, float] = {"bilinear": 1.0, "area": 1.0, "bicubic": 1.0}
_FIRST_BLUR = BlurConfig(
    probability=1.0,
    kinds={
        "isotropic": 0.405,
        "anisotropic": 0.225,
        "generalized_isotropic": 0.108,
        "generalized_anisotropic": 0.027,
        "plateau_isotropic": 0.108,
        "plateau_anisotropic": 0.027,
        "sinc": 0.1,
    },
    sizes=_SIZES,
    sigma=Walk(0.2, 3.0, 0.02),
    angle=Walk(-_PI, _PI, _PI / 10),
    beta_generalized=Walk(0.5, 4.0, 0.05),
    beta_plateau=Walk(1.0, 2.0, 0.1),
    cutoff_small=Walk(_PI / 3, _PI, _PI / 50),
    cutoff_large=Walk(_PI / 5, _PI, _PI / 50),
)
_JPEG = JpegConfig(probability=1.0, quality=Walk(30, 95, 3))
_VIDEO = VideoConfig(
    probability=1.0,
    # The published choice is libx264, h264 or mpeg4, all equally likely; h264 is FFmpeg's default
    # encoder of H.264, which is libx264 again.
    codecs=(
        CodecConfig("libx264", 2.0, preset="veryfast", bits_per_frame=(10_000, 100_000)),
        CodecConfig("mpeg4", 1.0, bits_per_frame=(10_000, 100_000)),
    ),
)

PUBLISHED = DegradationConfig(
    first=StageConfig(
        blur=_FIRST_BLUR,
        resize=ResizeConfig(
            directions={"up": 0.2, "down": 0.7, "keep": 0.1},
            scale=Walk(0.15, 1.5, 0.015),
            filters=_FILTERS,
        ),
        noise=NoiseConfig(
            kinds={"gaussian": 0.5, "poisson": 0.5},
            sigma=Walk(1.0, 30.0, 0.1),
            scale=Walk(0.05, 3.0, 0.005),
            gray_probability=0.4,
        ),
        jpeg=_JPEG,
        video=_VIDEO,
    ),
    second=StageConfig(
        blur=msgspec.structs.replace(_FIRST_BLUR, probability=0.8, sigma=Walk(0.2, 1.5, 0.02)),
        resize=ResizeConfig(
            directions={"up": 0.3, "down": 0.4, "keep": 0.3},
            scale=Walk(0.3, 1.2, 0.03),
            filters=_FILTERS,
        ),
        noise=NoiseConfig(
            kinds={"gaussian": 0.5, "poisson": 0.5},
            sigma=Walk(1.0, 25.0, 0.1),
            scale=Walk(0.05, 2.5, 0.005),
            gray_probability=0.4,
        ),
        jpeg=_JPEG,
        video=_VIDEO,
    ),
    final_blur=msgspec.structs.replace(
        _FIRST_BLUR,
        probability=0.8,
        kinds={"sinc": 1.0},
        cutoff_large=_FIRST_BLUR.cutoff_small,
    ),
    final_filters=_FILTERS,
)
"""Published recipe, used in both stages of training."""

MODERATE = DegradationConfig(
    first=StageConfig(
        blur=BlurConfig(
            probability=0.8,
            kinds={"isotropic": 0.7, "anisotropic": 0.3},
            sizes=(17,),
            sigma=Walk(0.2, 2.5, 0.02),
            angle=_FIRST_BLUR.angle,
            beta_generalized=_FIRST_BLUR.beta_generalized,
            beta_plateau=_FIRST_BLUR.beta_plateau,
            cutoff_small=_FIRST_BLUR.cutoff_small,
            cutoff_large=_FIRST_BLUR.cutoff_large,
        ),
        resize=ResizeConfig(
            directions={"down": 1.0}, scale=Walk(0.25, 0.25), filters={"area": 1.0}
        ),
        noise=NoiseConfig(
            kinds={"gaussian": 0.45, "poisson": 0.25, "none": 0.3},
            sigma=Walk(1.0, 12.0, 0.1),
            scale=Walk(0.25, 1.0, 0.005),
            gray_probability=0.4,
        ),
        jpeg=JpegConfig(probability=0.25, quality=Walk(60, 95, 3)),
        video=VideoConfig(
            probability=0.9,
            codecs=(
                CodecConfig("libx264", 0.65, preset="veryfast", quality=(16, 33)),
                CodecConfig("mpeg4", 0.25, quality=(2, 8)),
            ),
        ),
    ),
    second=None,
    final_blur=msgspec.structs.replace(_FIRST_BLUR, probability=0.0),
    final_filters={"area": 1.0},
)
"""Milder strengths, like those that the first compact model was trained with, for fidelity instead
of invented texture. The reduction uses only the area filter, as OpenCV's other filters skip pixels
at a factor of 4."""

_NO_VIDEO = msgspec.structs.replace(MODERATE.first.video, probability=0.0)
CLEAN = DegradationConfig(
    first=StageConfig(
        blur=MODERATE.final_blur,
        resize=MODERATE.first.resize,
        noise=msgspec.structs.replace(MODERATE.first.noise, kinds={"none": 1.0}),
        jpeg=JpegConfig(probability=0.0, quality=Walk(95, 95)),
        video=_NO_VIDEO,
    ),
    second=None,
    final_blur=MODERATE.final_blur,
    final_filters={"area": 1.0},
)
"""Reduction by the area filter and nothing else."""
