"""Converts decoded frames to RGB, and RGB to frames for an encoder.

swscale is exact to rounding when it converts 8 bits of any range to RGB, or RGB to limited-range
8 bits. In all other cases its error reaches one 8-bit level, which is four codes at 10 bits. For
those, swscale only resamples chroma and the H.273 matrix is applied here.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from rbvsr_deploy.pixels import WHITE, Image, eight_bits
from rbvsr_deploy.video.colour.chroma_siting import from_left, lies_left, to_left
from rbvsr_deploy.video.colour.colour import (
    FULL,
    LIMITED,
    LUMA_WEIGHTS,
    Colour,
    depth_of,
    has_alpha,
    is_grey,
)
from rbvsr_deploy.video.colour.planes import planes_of

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.format import VideoFormat
    from av.video.reformatter import VideoReformatter
    from numpy.typing import NDArray

__all__ = ["from_rgb", "opacity_of", "resized", "to_rgb"]

# SWS_BICUBIC, SWS_ACCURATE_RND and full chroma interpolation for input and output. Without them,
# swscale takes the nearest chroma sample and rounds coarsely. PyAV names the flags only from 18 on.
_ACCURATE = 0x4 | 0x40000 | 0x2000 | 0x4000


def to_rgb(frame: VideoFrame, *, colour: Colour, is_image: bool = False) -> Image:
    """Convert a decoded frame to RGB, in the orientation in which it is stored.

    Args:
        frame: a decoded frame in any pixel format.
        colour: the colour description to apply.
        is_image: whether the frame is from an image file, where chroma is centre-sited.

    Returns:
        ``(H, W, 3)`` RGB, contiguous: uint8, or uint16 if the frame has more than 8 bits.
    """
    import cv2

    video_format = frame.format
    depth = depth_of(video_format)
    if video_format.name.startswith("yuvj") and colour.range == LIMITED:
        frame = _renamed(frame)  # swscale takes these formats for full range, whatever the tag
        video_format = frame.format
    if not video_format.is_rgb:
        frame.colorspace, frame.color_range = colour.matrix, colour.range
    if is_grey(video_format):
        luma = _reformatted(frame, "gray" if depth == 8 else f"gray{depth}le")
        image = _transformed(_samples(luma), _rgb_of_luma(colour, depth=depth))
        return image if depth > 8 else image.astype(np.uint8)
    if lies_left(video_format) and not is_image:
        frame = from_left(frame)
    if depth <= 8:
        rgb = _reformatted(frame, "rgb24").to_ndarray()
        return np.ascontiguousarray(rgb, dtype=np.uint8)
    if video_format.is_rgb or video_format.name.startswith("xyz"):
        # If swscale drops the alpha plane of a planar format, it returns wrong colours.
        alpha = "a" if video_format.is_planar and has_alpha(video_format) else ""
        green, blue, red = planes_of(_reformatted(frame, f"gbr{alpha}p{depth}le"))[:3]
        samples = np.asarray(cv2.merge([red, green, blue]), dtype=np.uint16)
        return samples if depth == 16 else _transformed(samples, _scaling(WHITE / (2**depth - 1)))
    yuv = _reformatted(frame, f"yuv444p{depth}le")
    return _transformed(_samples(yuv), _rgb_of_yuv(colour, depth=depth))


def resized(frame: VideoFrame, *, width: int, height: int) -> VideoFrame:
    """Return a decoded frame scaled by bicubic interpolation, in the same pixel format."""
    # Before the conversion, swscale takes the tags of the frame for those of the result.
    return frame.reformat(width=width, height=height, interpolation=_ACCURATE)


def opacity_of(frame: VideoFrame) -> Image | None:
    """Return the alpha channel of a decoded frame, in the orientation in which it is stored.

    Returns:
        ``(H, W, 1)`` uint8, or uint16 if the frame has more than 8 bits; ``None`` without alpha.
    """
    video_format = frame.format
    depth = depth_of(video_format)
    if not has_alpha(video_format):
        return None
    if depth <= 8:
        rgba = _reformatted(frame, "rgba").to_ndarray()
        return np.ascontiguousarray(rgba[..., 3:], dtype=np.uint8)
    if video_format.is_planar and not is_grey(video_format):
        return _transformed(planes_of(frame)[3][..., None], _scaling(WHITE / (2**depth - 1), 1))
    rgba = _reformatted(frame, "rgba64le").to_ndarray()
    return np.ascontiguousarray(rgba[..., 3:], dtype=np.uint16)


def from_rgb(
    image: Image, *, pix_fmt: str, colour: Colour, opacity: Image | None = None
) -> VideoFrame:
    """Convert RGB to a frame for an encoder.

    Args:
        image: ``(H, W, 3)`` RGB, uint8 or uint16.
        pix_fmt: FFmpeg name of the encoder's pixel format.
        colour: matrix and range to convert to, and the tags to set.
        opacity: ``(H, W, 1)`` alpha of the same dtype, for a pixel format with alpha; ``None``:
            opaque.
    """
    from av.video.format import VideoFormat

    target = VideoFormat(pix_fmt, image.shape[1], image.shape[0])
    if depth_of(target) <= 8 and target.is_rgb:
        image = eight_bits(image)
        opacity = None if opacity is None else eight_bits(opacity)
    by_swscale = target.is_rgb or colour.range == LIMITED
    if image.dtype == np.uint8 and depth_of(target) <= 8 and by_swscale:
        frame = _packed(image, opacity)
    else:
        frame = _planar(image, opacity, target=target, colour=colour)
    # The converted frame inherits the tag; it has no meaning for RGB.
    frame.colorspace = colour.matrix
    frame = _reformatted(frame, pix_fmt, dst_color_range=colour.range)
    if lies_left(target):
        frame = _reformatted(to_left(frame), pix_fmt, dst_color_range=colour.range)
    if not target.is_rgb:
        frame.colorspace, frame.color_range = colour.matrix, colour.range
    frame.color_primaries, frame.color_trc = colour.primaries, colour.transfer
    return frame


def _renamed(frame: VideoFrame) -> VideoFrame:
    """Return a frame of one of the yuvj formats with the same samples in the format without j."""
    from av import VideoFrame

    renamed = VideoFrame(frame.width, frame.height, frame.format.name.replace("yuvj", "yuv"))
    for new, old in zip(planes_of(renamed), planes_of(frame), strict=True):
        new[...] = old
    return renamed


class _Reformatters(threading.local):
    """Keeps the thread's contexts of swscale, by source and target format."""

    def __init__(self) -> None:
        self.of_formats: dict[tuple[str, str], VideoReformatter] = {}


_reformatters = _Reformatters()


def _reformatted(
    frame: VideoFrame, pix_fmt: str, *, dst_color_range: int | None = None
) -> VideoFrame:
    from av.video.reformatter import VideoReformatter

    formats = frame.format.name, pix_fmt
    reformatter = _reformatters.of_formats.setdefault(formats, VideoReformatter())
    # One thread: a context with threads hangs in a forked process. A kept one is still faster than
    # a new one with threads for every frame: 1280x720 from RGB takes 2.1 ms instead of 2.3, and of
    # CPU 2.1 ms instead of 3.0.
    return reformatter.reformat(
        frame,
        format=pix_fmt,
        interpolation=_ACCURATE,
        dst_color_range=dst_color_range,
        threads=1,
    )


def _packed(image: Image, opacity: Image | None) -> VideoFrame:
    """Return a packed 8-bit RGB or RGBA frame with the samples unchanged."""
    from av import VideoFrame

    samples = image if opacity is None else np.concatenate((image, opacity), axis=2)
    return VideoFrame.from_ndarray(
        np.ascontiguousarray(samples, dtype=np.uint8), format="rgb24" if opacity is None else "rgba"
    )


def _planar(
    image: Image, opacity: Image | None, *, target: VideoFormat, colour: Colour
) -> VideoFrame:
    """Return a planar RGB or YUV 4:4:4 frame with the bit depth of ``target``."""
    from av import VideoFrame

    height, width = image.shape[:2]
    depth, white = depth_of(target), np.iinfo(image.dtype).max
    scale = (2**depth - 1) / white
    if target.is_rgb:
        samples = _transformed(image, _scaling(scale)[[1, 2, 0]])
        name = "gbrp" if opacity is None else "gbrap"
    else:
        samples = _transformed(image, _yuv_of_rgb(colour, depth=depth, white=white))
        # Full-range chroma of pure red and blue exceeds the largest code by half a code.
        np.minimum(samples, 2**depth - 1, out=samples)
        name = "yuv444p" if opacity is None else "yuva444p"
    frame = VideoFrame(width, height, name if depth == 8 else f"{name}{depth}le")
    if not target.is_rgb:
        frame.color_range = colour.range
    planes = planes_of(frame)
    for number in range(3):
        planes[number][...] = samples[..., number]
    if opacity is not None:
        planes[3][...] = _transformed(opacity, _scaling(scale, 1))[..., 0]
    return frame


def _samples(frame: VideoFrame) -> NDArray[Any]:
    """Stack the planes of a frame, all of the same size, to (H, W, planes)."""
    import cv2

    return np.asarray(cv2.merge(planes_of(frame)))


def _transformed(samples: NDArray[Any], matrix: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Apply an affine map to every pixel of (H, W, N) and round: (H, W, M).

    ``matrix`` is (M, N + 1); its last column is the offset.
    """
    import cv2

    # For 8-bit input, OpenCV would use low-precision coefficients.
    result = cv2.transform(samples.astype(np.uint16, copy=False), matrix)
    return np.asarray(result, dtype=np.uint16).reshape(*samples.shape[:2], len(matrix))


def _scaling(factor: float, count: int = 3) -> NDArray[np.float64]:
    return factor * np.eye(count, count + 1)


def _extent(colour: Colour, *, depth: int) -> tuple[float, float, float, float]:
    """Return the code of black, the span from black to white, and the chroma centre and span."""
    step = 2.0 ** (depth - 8)
    if colour.range == FULL:
        return 0, 2**depth - 1, 128 * step, 2**depth - 1
    return 16 * step, 219 * step, 128 * step, 224 * step


def _yuv_of_rgb(colour: Colour, *, depth: int, white: int) -> NDArray[np.float64]:
    """Return the (3, 4) affine map of H.273 from RGB with maximum ``white`` to YUV codes."""
    red, blue = LUMA_WEIGHTS[colour.matrix]
    luma = np.array([red, 1 - red - blue, blue])
    black, height, middle, extent = _extent(colour, depth=depth)
    u = (np.array([0, 0, 1]) - luma) / (2 - 2 * blue)
    v = (np.array([1, 0, 0]) - luma) / (2 - 2 * red)
    factors = np.stack((height * luma, extent * u, extent * v)) / white
    return np.column_stack((factors, [black, middle, middle]))


def _rgb_of_yuv(colour: Colour, *, depth: int) -> NDArray[np.float64]:
    """Return the (3, 4) affine map from YUV codes to 16-bit RGB; swscale handles 8 bits."""
    forth = _yuv_of_rgb(colour, depth=depth, white=WHITE)
    back = np.linalg.inv(forth[:, :3])
    return np.column_stack((back, -back @ forth[:, 3]))


def _rgb_of_luma(colour: Colour, *, depth: int) -> NDArray[np.float64]:
    """Return the (3, 2) affine map from luma codes to 8-bit or 16-bit RGB."""
    black, height, *_ = _extent(colour, depth=depth)
    factor = (255 if depth == 8 else WHITE) / height
    return np.tile([factor, -black * factor], (3, 1))
