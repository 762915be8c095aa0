"""Where chroma samples lie: swscale takes and puts them in the middle of the pixels they are for.

Video has them on the left ones of these pixels where nothing else is told (H.264, H.265 and VP9 as
players read them; PyAV does not tell what a file says), JPEG and WebP pictures in the middle. Half
a pixel of the input would be two of the output.
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

# A quarter of a chroma sample to the right, by the cubic of Catmull and Rom: exact on ramps.
_QUARTER = np.array([[-9, 111, 29, -3]]) / 128


def lies_left(video_format: VideoFormat) -> bool:
    """Whether chroma has half as many samples across, on the left ones of their pixels."""
    return (
        not video_format.is_rgb
        and len(video_format.components) > 2
        and video_format.chroma_width(16) == 8
        and not video_format.name.startswith("yuvj")
    )


def from_left(frame: VideoFrame) -> VideoFrame:
    """The same picture with chroma samples in the middle of their pixels; a new frame.

    Args:
        frame: of a format of which ``lies_left`` is true.
    """
    from av import VideoFrame

    given = _planar(frame)
    made = VideoFrame(given.width, given.height, given.format.name)
    made.colorspace, made.color_range = frame.colorspace, frame.color_range
    for number, (old, new) in enumerate(zip(planes_of(given), planes_of(made), strict=True)):
        new[...] = _moved(old, _QUARTER, anchor=1) if number in (1, 2) else old
    return made


def to_left(frame: VideoFrame) -> VideoFrame:
    """The way back; changes a planar frame in place."""
    made = _planar(frame)
    for plane in planes_of(made)[1:3]:
        plane[...] = _moved(plane, _QUARTER[:, ::-1], anchor=2)
    return made


def _planar(frame: VideoFrame) -> VideoFrame:
    """Each kind of sample in a plane of its own, which decoders of devices do not give."""
    if frame.format.is_planar and len(frame.planes) > 2:
        return frame
    depth = depth_of(frame.format)
    name = "yuv420p" if frame.format.chroma_height(16) == 8 else "yuv422p"
    return frame.reformat(format=name if depth == 8 else f"{name}{depth}le")


def _moved(plane: NDArray[Any], kernel: NDArray[np.float64], *, anchor: int) -> NDArray[Any]:
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
