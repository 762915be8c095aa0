"""Defines the steps of a degradation, as values that hold the drawn parameters, and applies them.

Images are (H, W, 3) float32, RGB, nominally in [0, 1]. Filters and noise may leave that range;
values are clipped on conversion to 8 bits, before every encoder. The images of a clip may differ in
size from frame to frame.
"""

from __future__ import annotations

import functools
import itertools
import re
from statistics import NormalDist

import cv2
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from rbvsr_deploy.training.degradations.compression import encode_and_decode
from rbvsr_deploy.training.degradations.config import BlurKind, Direction, Encoder, Filter
from rbvsr_deploy.training.degradations.kernels import (
    Kernel,
    gaussian_kernel,
    plateau_kernel,
    separable_parts,
    sinc_kernel,
    trimmed,
)

__all__ = [
    "Blur",
    "FloatImage",
    "GaussianNoise",
    "Jpeg",
    "PerFrame",
    "PoissonNoise",
    "Reduction",
    "Resize",
    "SincBlur",
    "Step",
    "VideoCompression",
    "apply",
    "from_bytes",
    "to_bytes",
]

Frame = NDArray[np.uint8]
"""(H, W, 3) uint8, RGB."""
FloatImage = NDArray[np.float32]
"""(H, W, 3) float32, RGB, nominally in [0, 1]."""
PerFrame = tuple[float, ...]
"""One value for every frame of the clip."""


def _tag(name: str) -> str:
    """Return the name of a step in JSON: ``GaussianNoise`` becomes "gaussian noise"."""
    return re.sub("(?<!^)(?=[A-Z])", " ", name).lower()


class _Step(Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag=_tag):
    """Base of the steps; JSON identifies them by the field ``step``."""


class Blur(_Step, frozen=True):
    """Blurs with a kernel from ``gaussian_kernel`` or ``plateau_kernel`` of ``kernels``."""

    kind: BlurKind
    size: int
    sigma_x: PerFrame
    sigma_y: PerFrame
    angle: PerFrame
    beta: PerFrame


class SincBlur(_Step, frozen=True):
    """Blurs with :func:`~rbvsr_deploy.training.degradations.kernels.sinc_kernel`."""

    size: int
    cutoff: PerFrame


class Resize(_Step, frozen=True):
    """Resizes by scales relative to the first frame; sizes are rounded down to even numbers."""

    direction: Direction
    filter: Filter
    scale: PerFrame


class Reduction(_Step, frozen=True):
    """Resizes to exactly a quarter of the ground truth's size."""

    filter: Filter


class GaussianNoise(_Step, frozen=True):
    """Adds Gaussian noise; standard deviations are in levels of 255."""

    sigma: PerFrame
    gray: bool
    seed: int


class PoissonNoise(_Step, frozen=True):
    """Adds the shot noise of as many photons at white as the frame has levels, times a factor."""

    scale: PerFrame
    gray: bool
    seed: int


class Jpeg(_Step, frozen=True):
    """Compresses each frame as JPEG, with a quality from 1 to 100."""

    quality: tuple[int, ...]


class VideoCompression(_Step, frozen=True):
    """Compresses the clip with
    :func:`~rbvsr_deploy.training.degradations.compression.encode_and_decode`.
    """

    encoder: Encoder
    preset: str | None
    bits_per_frame: int | None
    quality: int | None


Step = Blur | SincBlur | Resize | Reduction | GaussianNoise | PoissonNoise | Jpeg | VideoCompression


def apply(step: Step, images: list[FloatImage], *, size: tuple[int, int]) -> list[FloatImage]:
    """Apply a step to the images of a clip.

    Args:
        step: the step, with parameters for as many frames.
        images: (H, W, 3) float32, RGB, each.
        size: height and width of the degraded frames.

    Returns:
        As many images, (H', W', 3) float32, RGB, each.
    """
    match step:
        case Blur() | SincBlur():
            return [_blur(p, _kernel(step, i)) for i, p in enumerate(images)]
        case Resize():
            height, width = images[0].shape[:2]
            sizes = [(_even(height * s), _even(width * s)) for s in step.scale]
            return [_resize(p, s, step.filter) for p, s in zip(images, sizes, strict=True)]
        case Reduction():
            return [_resize(p, size, step.filter) for p in images]
        case GaussianNoise():
            rng = np.random.default_rng(step.seed)
            values = zip(images, step.sigma, strict=True)
            return [_gaussian_noise(p, sigma, step.gray, rng) for p, sigma in values]
        case PoissonNoise():
            rng = np.random.default_rng(step.seed)
            values = zip(images, step.scale, strict=True)
            return [_poisson_noise(p, scale, step.gray, rng) for p, scale in values]
        case Jpeg():
            return [_jpeg(p, q) for p, q in zip(images, step.quality, strict=True)]
        case VideoCompression():
            return _compress(images, step)


# -------------------------------------------------------------------------------- blur and resizing


def _kernel(step: Blur | SincBlur, frame: int) -> Kernel:
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


def _blur(image: FloatImage, kernel: Kernel) -> FloatImage:
    """Correlate an image with a kernel, to within half a level of 255, by the cheaper method.

    The border is reflected without repeating the last pixel.
    """
    kernel = trimmed(kernel)
    parts = separable_parts(kernel)
    # A value of a separable row or column takes twice as long as one of a full kernel.
    if np.count_nonzero(kernel) <= 4 * len(kernel) * len(parts):
        return _correlated(image, kernel)
    result = np.zeros_like(image)
    for column, row in parts:
        result += cv2.sepFilter2D(image, -1, row, column)
    return result


_TILE = 11


def _correlated(image: FloatImage, kernel: Kernel) -> FloatImage:
    """Correlate in tiles of the kernel. OpenCV filters with larger kernels in the frequency domain;
    with smaller ones it skips zeros, of which a trimmed kernel has many.
    """
    if len(kernel) <= _TILE:
        return cv2.filter2D(image, -1, kernel)  # type: ignore[return-value]
    (height, width), border = image.shape[:2], len(kernel) // 2
    padded = cv2.copyMakeBorder(image, border, border, border, border, cv2.BORDER_REFLECT_101)
    result = np.zeros_like(image)
    for top, left in itertools.product(range(0, len(kernel), _TILE), repeat=2):
        tile = kernel[top : top + _TILE, left : left + _TILE]
        if tile.any():
            filtered = cv2.filter2D(padded[top:, left:], -1, tile, anchor=(0, 0))
            result += filtered[:height, :width]
    return result


def _even(length: float) -> int:
    return max(2, int(length) // 2 * 2)


_INTERPOLATION = {
    "bilinear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "bicubic": cv2.INTER_CUBIC,
}


def _resize(image: FloatImage, size: tuple[int, int], filter: Filter) -> FloatImage:
    interpolation = _INTERPOLATION[filter]
    return cv2.resize(image, (size[1], size[0]), interpolation=interpolation)  # type: ignore[return-value]


# -------------------------------------------------------------------------------------------- noise


# Noise is drawn from tables of equally likely values, which is several times faster than NumPy's
# normal and Poisson distributions. The tails beyond the last values are lost.

_SHOTS = 1024
"""Number of table values for each Poisson distribution; more would not fit the CPU cache."""


def _gaussian_noise(
    image: FloatImage, sigma: float, gray: bool, rng: np.random.Generator
) -> FloatImage:
    shape = (*image.shape[:2], 1 if gray else 3)
    draws = rng.integers(2**16, size=shape, dtype=np.uint16)
    return image + _normal_distribution().take(draws, mode="clip") * np.float32(sigma / 255.0)


def _poisson_noise(
    image: FloatImage, scale: float, gray: bool, rng: np.random.Generator
) -> FloatImage:
    """Add Poisson noise as in Real-ESRGAN, on images in [0, 1]; mmagic adds it on 0 to 255 without
    rescaling, which is 16 times weaker.
    """
    light = to_bytes(image)
    if gray:
        light = cv2.cvtColor(light, cv2.COLOR_RGB2GRAY)[..., None].astype(np.uint8)
    histogram = cv2.calcHist([light.reshape(len(light), -1)], [0], None, [256], [0, 256])
    levels = np.count_nonzero(histogram)
    noise = _shot_noise(1 << int(levels - 1).bit_length())
    draws = rng.integers(2**16, size=light.shape, dtype=np.uint16) % np.uint16(_SHOTS)
    draws = light * np.intp(_SHOTS) + draws
    return image + noise.take(draws, mode="clip") * np.float32(scale)


@functools.cache
def _normal_distribution() -> NDArray[np.float32]:
    """Return (65536,) equally likely values, up to 4.3 standard deviations."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / 2**16) for i in range(2**16)], np.float32)


@functools.cache
def _shot_noise(photons: int) -> NDArray[np.float32]:
    """Return (256 * _SHOTS,): for each level of 255, equally likely values of
    (Poisson(m) - m) / photons, up to 3.3 standard deviations; m is the mean number of photons at
    the level, ``photons`` that at white.
    """
    quantiles = (np.arange(_SHOTS) + 0.5) / _SHOTS
    counts = np.arange(2 * photons + 40, dtype=np.float64)
    log_factorials = np.concatenate(([0.0], np.cumsum(np.log(counts[1:]))))
    table = np.zeros((256, _SHOTS), np.float32)
    for level in range(1, 256):
        mean = photons * level / 255.0
        below = np.cumsum(np.exp(counts * np.log(mean) - mean - log_factorials))
        found = np.searchsorted(below, quantiles)
        table[level] = found / photons - level / 255.0
    return table.ravel()


# -------------------------------------------------------------------------------------- compression


def to_bytes(image: FloatImage) -> Frame:
    """Round an image to uint8, clipped so that overshoot does not wrap around into speckles."""
    return cv2.addWeighted(image, 255.0, image, 0.0, 0.0, dtype=cv2.CV_8U)  # type: ignore[return-value]


def from_bytes(frame: Frame) -> FloatImage:
    """Convert a uint8 frame to a float32 image in [0, 1]."""
    return frame.astype(np.float32) / np.float32(255.0)


def _jpeg(image: FloatImage, quality: int) -> FloatImage:
    """Compress and decompress an image as JPEG.

    OpenCV's codec expects BGR; given RGB, it would subsample and quantise the wrong colours.
    """
    frame = cv2.cvtColor(to_bytes(image), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return from_bytes(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))  # type: ignore[arg-type]


def _compress(images: list[FloatImage], step: VideoCompression) -> list[FloatImage]:
    """Compress a clip at the size of its first frame; frames of other sizes are resized to it."""
    size = (images[0].shape[0], images[0].shape[1])
    fitting = [p if p.shape[:2] == size else _resize(p, size, "bilinear") for p in images]
    decoded = encode_and_decode(
        [to_bytes(p) for p in fitting],
        step.encoder,
        preset=step.preset,
        bits_per_frame=step.bits_per_frame,
        quality=step.quality,
    )
    return [from_bytes(frame) for frame in decoded]
