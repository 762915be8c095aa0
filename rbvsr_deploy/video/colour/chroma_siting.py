"""Shifts chroma samples between left siting, which video uses, and the centre siting of swscale.

Unless tagged otherwise, players assume that H.264, H.265 and VP9 chroma is sited on the left pixel
of each pair; PyAV does not expose the tag. JPEG and WebP images use centre siting. Half a pixel in
the input would become two pixels in the output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rbvsr_deploy.video.colour.colour import depth_of
from rbvsr_deploy.video.colour.planes import planes_of

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.format import VideoFormat
    from numpy.typing import NDArray

__all__ = ["from_left", "lies_left", "to_left"]

# Shifts by a quarter of a chroma sample to the right. Catmull-Rom cubic, so it is exact on ramps.
_QUARTER = np.array([[-9, 111, 29, -3]]) / 128


def lies_left(video_format: VideoFormat) -> bool:
    """Return whether chroma has half the horizontal resolution and is sited on the left."""
    return (
        not video_format.is_rgb
        and len(video_format.components) > 2
        and video_format.chroma_width(16) == 8
        and not video_format.name.startswith("yuvj")
    )


def from_left(frame: VideoFrame) -> VideoFrame:
    """Return a copy of a left-sited frame with centre-sited chroma.

    Args:
        frame: a frame in a format for which ``lies_left`` is true.
    """
    from av import VideoFrame

    source = _planar(frame)
    shifted = VideoFrame(source.width, source.height, source.format.name)
    shifted.colorspace, shifted.color_range = frame.colorspace, frame.color_range
    for number, (old, new) in enumerate(zip(planes_of(source), planes_of(shifted), strict=True)):
        new[...] = _filtered(old, _QUARTER, anchor=1) if number in (1, 2) else old
    return shifted


def to_left(frame: VideoFrame) -> VideoFrame:
    """Shift centre-sited chroma to the left; changes a planar frame in place."""
    planar = _planar(frame)
    for plane in planes_of(planar)[1:3]:
        plane[...] = _filtered(plane, _QUARTER[:, ::-1], anchor=2)
    return planar


def _planar(frame: VideoFrame) -> VideoFrame:
    """Convert a frame to a fully planar format; hardware decoders return semi-planar frames."""
    if frame.format.is_planar and len(frame.planes) > 2:
        return frame
    depth = depth_of(frame.format)
    name = "yuv420p" if frame.format.chroma_height(16) == 8 else "yuv422p"
    return frame.reformat(format=name if depth == 8 else f"{name}{depth}le")


def _filtered(plane: NDArray[Any], kernel: NDArray[np.float64], *, anchor: int) -> NDArray[Any]:
    import cv2

    return np.asarray(
        cv2.filter2D(
            np.ascontiguousarray(plane),
            -1,
            kernel,
            anchor=(anchor, 0),
            borderType=cv2.BORDER_REPLICATE,
        )
    )
