"""Goes when run.py and evaluate.py no longer need it.

From sharp frames to what a viewer gets: blur, x4 reduction, noise, JPEG, and a real video codec.

One set of parameters is drawn for a whole clip (:func:`draw_degradation`) and applied to it
(:func:`degrade`). The order is that of the first half of the RealBasicVSR recipe (CVPR 2022,
section 4); the strengths are moderate, because the model is trained for fidelity (PSNR) and not to
invent texture.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

__all__ = ["CLEAN", "SCALE", "Degradation", "degrade", "draw_degradation"]

SCALE = 4
"""Ground truth is this many times larger than the degraded frames."""

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Degradation:
    """What happens to one clip. The defaults are a clean bicubic reduction and nothing else."""

    blur_sigmas: tuple[float, float] = (0.0, 0.0)
    """Standard deviations along the kernel's two axes, ground-truth pixels; 0 is no blur."""
    blur_angle: float = 0.0
    """Radians from the x axis to the first axis of the kernel."""
    resize: str = "bicubic"
    """"area", "bilinear" or "bicubic"; all are antialiased."""
    gaussian_noise: float = 0.0
    """Standard deviation on the 0-255 scale."""
    photons: float = 0.0
    """Mean photon count of a white pixel, for Poisson noise; 0 is none."""
    gray_noise: bool = False
    """Noise is the same in the three channels."""
    jpeg_quality: int | None = None
    codec: str | None = None
    """"libx264" or "mpeg4"; ``None`` skips the video encoder."""
    codec_quality: int = 23
    """Constant rate factor of libx264, or quantiser of mpeg4: higher is worse."""
    noise_seed: int = 0


CLEAN = Degradation()
"""Bicubic x4 reduction only."""


def draw_degradation(rng: np.random.Generator) -> Degradation:
    """Draw the parameters of one clip: what the model is trained and evaluated on."""
    first = float(rng.uniform(0.2, 2.5))
    second = float(rng.uniform(0.2, 2.5)) if rng.random() < 0.3 else first
    blurred = rng.random() < 0.8
    noise = str(rng.choice(["gaussian", "poisson", "none"], p=[0.45, 0.25, 0.3]))
    codec = str(rng.choice(["libx264", "mpeg4", "none"], p=[0.65, 0.25, 0.1]))
    quality = int(rng.integers(2, 9)) if codec == "mpeg4" else int(rng.integers(16, 34))
    return Degradation(
        blur_sigmas=(first, second) if blurred else (0.0, 0.0),
        blur_angle=float(rng.uniform(-np.pi, np.pi)),
        resize=str(rng.choice(["area", "bilinear", "bicubic"])),
        gaussian_noise=float(rng.uniform(1.0, 12.0)) if noise == "gaussian" else 0.0,
        photons=float(np.exp(rng.uniform(np.log(250.0), np.log(4000.0))))
        if noise == "poisson"
        else 0.0,
        gray_noise=bool(rng.random() < 0.4),
        jpeg_quality=int(rng.integers(60, 96)) if rng.random() < 0.25 else None,
        codec=None if codec == "none" else codec,
        codec_quality=quality,
        noise_seed=int(rng.integers(2**31)),
    )


def degrade(frames: Frames, degradation: Degradation) -> Frames:
    """Apply one degradation to one clip.

    Args:
        frames: (T, 4H, 4W, 3) uint8, RGB.

    Returns:
        (T, H, W, 3) uint8, RGB.

    Raises:
        ValueError: the frames are not uint8 RGB or not a multiple of four in size.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be (T, H, W, 3) uint8, got {frames.shape} {frames.dtype}")
    if frames.shape[1] % SCALE or frames.shape[2] % SCALE:
        raise ValueError(f"height and width must be multiples of {SCALE}, got {frames.shape[1:3]}")
    blurred = _blur(frames, degradation)
    small = _add_noise(_reduce(blurred, degradation.resize), degradation)
    # Clipped before any encoder: overshoot must not wrap around into speckles.
    result: Frames = np.clip(np.rint(small * 255.0), 0, 255).astype(np.uint8)
    if degradation.jpeg_quality is not None:
        result = np.stack([_jpeg(frame, degradation.jpeg_quality) for frame in result])
    if degradation.codec is not None:
        result = _encode_and_decode(result, degradation.codec, degradation.codec_quality)
    return result


def _blur(frames: Frames, degradation: Degradation) -> Frames:
    """Gaussian blur with the clip's kernel."""
    if max(degradation.blur_sigmas) <= 0.0:
        return frames
    first, second = degradation.blur_sigmas
    if first == second:  # separable, and so much faster
        size = (2 * _radius(first) + 1,) * 2
        border = cv2.BORDER_REFLECT_101
        return np.stack([cv2.GaussianBlur(f, size, first, borderType=border) for f in frames])
    kernel = _gaussian_kernel(degradation.blur_sigmas, degradation.blur_angle)
    return np.stack(
        [cv2.filter2D(f, -1, kernel, borderType=cv2.BORDER_REFLECT_101) for f in frames]
    )


def _radius(sigma: float) -> int:
    """Three standard deviations, at least one pixel."""
    return max(1, int(np.ceil(3.0 * sigma)))


def _gaussian_kernel(sigmas: tuple[float, float], angle: float) -> NDArray[np.float64]:
    """Anisotropic Gaussian of odd size, three standard deviations to each side, sum 1."""
    radius = _radius(max(sigmas))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = -np.sin(angle) * x + np.cos(angle) * y
    kernel = np.exp(-0.5 * ((along / sigmas[0]) ** 2 + (across / sigmas[1]) ** 2))
    normalised: NDArray[np.float64] = kernel / kernel.sum()
    return normalised


def _reduce(frames: Frames, mode: str) -> NDArray[np.float32]:
    """x4 smaller, antialiased; (T, 4H, 4W, 3) uint8 -> (T, H, W, 3) float32, about [0, 1]."""
    height, width = frames.shape[1] // SCALE, frames.shape[2] // SCALE
    if mode == "area":
        small = [cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in frames]
        return np.stack(small).astype(np.float32) / 255.0
    # OpenCV's bicubic and bilinear skip pixels when they reduce; those of torch can be antialiased.
    tensor = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255.0
    reduced = F.interpolate(
        tensor, size=(height, width), mode=mode, antialias=True, align_corners=False
    )
    result: NDArray[np.float32] = reduced.permute(0, 2, 3, 1).numpy()
    return result


def _add_noise(frames: NDArray[np.float32], degradation: Degradation) -> NDArray[np.float32]:
    """Gaussian and Poisson noise, independent in every frame; (T, H, W, 3) float32 in and out."""
    rng = np.random.default_rng(degradation.noise_seed)
    shape = (*frames.shape[:3], 1 if degradation.gray_noise else 3)
    if degradation.gaussian_noise > 0.0:
        noise = rng.standard_normal(shape, dtype=np.float32)
        frames = frames + noise * np.float32(degradation.gaussian_noise / 255.0)
    if degradation.photons > 0.0:
        light = np.clip(frames, 0.0, 1.0)
        light = light.mean(axis=-1, keepdims=True) if degradation.gray_noise else light
        counts = rng.poisson(light * degradation.photons).astype(np.float32)
        frames = frames + (counts / np.float32(degradation.photons) - light)
    return frames.astype(np.float32)


def _jpeg(frame: Frames, quality: int) -> Frames:
    """One JPEG round trip of an RGB frame."""
    _, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None  # it was encoded one line above
    return decoded[..., ::-1].astype(np.uint8)


# -------------------------------------------------------------------------------------- video codec


def _encode_and_decode(frames: Frames, codec: str, quality: int) -> Frames:
    """A round trip through a real encoder, in memory; odd sizes are padded for it and cut again."""
    height, width = frames.shape[1:3]
    padding = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    data = io.BytesIO()
    with av.open(data, "w", format="matroska") as container:
        # One thread: the clips are tiny, and the data must not depend on the number of processors.
        stream: Any = container.add_stream(codec, rate=25, options=_codec_options(codec, quality))
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for planes in _to_yuv420(np.pad(frames, padding, mode="edge")):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode(None))
    data.seek(0)
    with av.open(data, "r") as container:
        container.streams.video[0].codec_context.thread_count = 1
        decoded = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]
    return _from_yuv420(decoded)[:, :height, :width]


def _codec_options(codec: str, quality: int) -> dict[str, str]:
    """Encoder options for constant quality."""
    if codec == "libx264":
        # Macroblock trees off: on frames this small x264 reads beyond its look-ahead pictures for
        # them, and the same input then gives different files from one run to the next.
        return {"crf": str(quality), "preset": "veryfast", "x264-params": "mbtree=0"}
    return {"qmin": str(quality), "qmax": str(quality), "bf": "0"}


# BT.601, studio range, on the 0-255 scale (ITU-R BT.601-7): what players assume of untagged
# standard-definition video.
_TO_YUV = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], np.float32
) / np.float32(255.0)
_FROM_YUV = np.linalg.inv(_TO_YUV.astype(np.float64)).astype(np.float32)
_OFFSET = np.array([16.0, 128.0, 128.0], np.float32)


def _to_yuv420(frames: Frames) -> list[Frames]:
    """(T, H, W, 3) RGB, even sizes -> per frame the (H * 3 / 2, W) planes of PyAV's yuv420p."""
    height, width = frames.shape[1:3]
    result = []
    for frame in frames:
        yuv = frame.astype(np.float32) @ _TO_YUV.T + _OFFSET
        chroma = cv2.resize(yuv[..., 1:], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        parts = (yuv[..., 0].ravel(), chroma[..., 0].ravel(), chroma[..., 1].ravel())
        planes = np.rint(np.concatenate(parts)).clip(0, 255).astype(np.uint8)
        result.append(planes.reshape(height * 3 // 2, width))
    return result


def _from_yuv420(planes: Sequence[NDArray[Any]]) -> Frames:
    """Inverse of :func:`_to_yuv420`, chroma enlarged bilinearly."""
    frames = []
    for frame in planes:
        height, width = frame.shape[0] * 2 // 3, frame.shape[1]
        luma, chroma = frame[:height], frame[height:].reshape(2, height // 2, width // 2)
        large = [cv2.resize(c.astype(np.float32), (width, height)) for c in chroma]
        yuv = np.stack((luma.astype(np.float32), *large), axis=-1) - _OFFSET
        frames.append(np.rint(yuv @ _FROM_YUV.T).clip(0, 255).astype(np.uint8))
    return np.stack(frames)
