"""A round trip of a clip through a real video encoder, in memory."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

__all__ = ["encode_and_decode"]

Frames = NDArray[np.uint8]


def encode_and_decode(
    frames: Frames, encoder: str, *, bits_per_frame: int | None, quality: int | None
) -> Frames:
    """Encode and decode a clip; the same bytes every time.

    Args:
        frames: (T, H, W, 3) uint8, RGB.
        encoder: as FFmpeg names it.
        bits_per_frame: mean size aimed at, or
        quality: constant rate factor, for mpeg4 the quantiser: higher is worse.
    """
    height, width = frames.shape[1:3]
    padding = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    data = io.BytesIO()
    with av.open(data, "w", format="matroska") as container:
        # One frame per second, so that bits per second are bits per frame.
        stream: Any = container.add_stream(encoder, rate=1, options=_options(encoder, quality))
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        if bits_per_frame is not None:
            stream.bit_rate = bits_per_frame
        # One thread: the data must not depend on the number of processors.
        stream.codec_context.thread_count = 1
        for frame in np.pad(frames, padding, mode="edge"):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    data.seek(0)
    with av.open(data, "r") as container:
        container.streams.video[0].codec_context.thread_count = 1
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(decoded)[:, :height, :width]


def _options(encoder: str, quality: int | None) -> dict[str, str]:
    """Encoder options for constant quality, if given, and for repeatable results."""
    options: dict[str, str] = {}
    if quality is not None:
        if encoder == "mpeg4":
            options = {"qmin": str(quality), "qmax": str(quality)}
        else:
            options = {"crf": str(quality)}
    if encoder == "libx264":
        # Macroblock trees off: on frames this small x264 reads beyond its look-ahead pictures for
        # them, and the same input then gives different files from one run to the next.
        options["x264-params"] = "mbtree=0"
    return options
