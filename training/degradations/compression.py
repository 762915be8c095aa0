"""Compresses clips with real video encoders, in memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError

__all__ = ["check_encoder", "encode_and_decode"]

Frame = NDArray[np.uint8]

_SMALLEST = {"libx265": 64, "libsvtav1": 64}
"""Minimum height and width of frames by encoder. Smaller frames are padded: encoders refuse them,
or, like x265 4.2 up to 48 pixels, write beyond their buffers."""


def check_encoder(encoder: str) -> None:
    """Raise ``MediaError`` if this PyAV build lacks an encoder."""
    try:
        av.Codec(encoder, "w")
    except ValueError:
        raise MediaError(
            f"this PyAV build has no encoder '{encoder}': remove it from the configuration"
        ) from None


def encode_and_decode(
    frames: Sequence[Frame],
    encoder: str,
    *,
    preset: str | None = None,
    bits_per_frame: int | None = None,
    quality: int | None = None,
) -> list[Frame]:
    """Encode and decode a clip; the same frames give the same result every time.

    Args:
        frames: (H, W, 3) uint8, RGB, each.
        encoder: FFmpeg's name of the encoder.
        preset: preset of the encoder; ``None`` uses its default.
        bits_per_frame: target mean size of a frame in bits; an alternative to ``quality``.
        quality: constant rate factor, or the quantiser for mpeg4; higher is worse.

    Returns:
        As many frames of the same shape, uint8, RGB.
    """
    height, width = frames[0].shape[:2]
    smallest = _SMALLEST.get(encoder, 2)
    below = max(height + height % 2, smallest) - height
    right = max(width + width % 2, smallest) - width
    # Share one swscale context: otherwise PyAV creates one per frame, which takes longer than the
    # conversion itself.
    reformatter = VideoReformatter()
    data = io.BytesIO()
    with av.open(data, "w", format="matroska") as container:
        # One frame per second, so that bits per second are bits per frame.
        stream: Any = container.add_stream(
            encoder, rate=1, options=_options(encoder, preset, quality)
        )
        stream.width, stream.height, stream.pix_fmt = width + right, height + below, "yuv420p"
        if bits_per_frame is not None:
            stream.bit_rate = bits_per_frame
        # One thread: the data must not depend on the number of processors.
        stream.codec_context.thread_count = 1
        for frame in frames:
            padded = cv2.copyMakeBorder(frame, 0, below, 0, right, cv2.BORDER_REPLICATE)
            rgb = av.VideoFrame.from_ndarray(padded, format="rgb24")  # type: ignore[arg-type]
            container.mux(stream.encode(reformatter.reformat(rgb, format="yuv420p", threads=1)))
        container.mux(stream.encode(None))
    data.seek(0)
    with av.open(data, "r") as container:
        container.streams.video[0].codec_context.thread_count = 1
        decoded = [
            reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            for frame in container.decode(video=0)
        ]
    assert len(decoded) == len(frames)
    return [np.ascontiguousarray(frame[:height, :width]) for frame in decoded]


def _options(encoder: str, preset: str | None, quality: int | None) -> dict[str, str]:
    options = {} if preset is None else {"preset": preset}
    match encoder:
        case "libx264":
            # Disable macroblock trees: on frames this small, x264 reads beyond its look-ahead
            # frames for them, and the same input then gives different files from run to run.
            options["x264-params"] = "mbtree=0"
        case "libx265":
            options["x265-params"] = "log-level=none:pools=none:frame-threads=1"
        case "libvpx-vp9":
            options = {"deadline": "realtime", "cpu-used": preset or "8"}
        case "libsvtav1":
            options["svtav1-params"] = "lp=1"
    if quality is not None:
        if encoder == "mpeg4":
            options |= {"qmin": str(quality), "qmax": str(quality)}
        else:
            options["crf"] = str(quality)
    return options
