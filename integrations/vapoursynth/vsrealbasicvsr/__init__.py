"""RealBasicVSR for VapourSynth: :func:`realbasicvsr`."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rbvsr_deploy import RbvsrError, Upscaler, open_engine
from rbvsr_deploy.pixels import WHITE, Image
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE
from vsrealbasicvsr.frame_server import FrameServer

if TYPE_CHECKING:
    import vapoursynth as vs

__all__ = ["realbasicvsr"]
__version__ = "0.1.0"

CACHE_BYTES = 512 * 2**20
"""Memory for upscaled frames that may be asked for again."""

CACHE_FRAMES = 64
"""Most upscaled frames that are kept, however small they are."""


def realbasicvsr(
    clip: vs.VideoNode,
    engine: str | os.PathLike[str] | None = None,
    device: str = "auto",
    lookahead: int | None = None,
    cleanings: int | None = None,
) -> vs.VideoNode:
    """Upscale real-world video with RealBasicVSR, a recurrent network that draws on all frames of a
    scene.

    A scene begins at a frame whose property ``_SceneChangePrev`` is not 0, as scene detection
    filters set it; without any, the clip is one scene. Frames may be requested in any order and by
    any number of threads; going forwards is efficient. A request further back than the cache
    reaches runs the scene again from its beginning.

    Args:
        clip: RGBH or RGBS, full range; values outside [0, 1] are clipped.
        engine: path of a bundle (``model.plan``) or checkpoint; the compact model for CPUs if
            ``None``.
        device: "auto", "tensorrt", "cuda", "cpu" or an execution provider of ONNX Runtime.
        lookahead: number of future frames each frame draws on; ``None``: all of its scene. A small
            number shows the first frame of a scene sooner, for a higher cost per frame.
        cleanings: number of cleaning passes; ``None``: decided for each scene.

    Returns:
        A clip in the format of ``clip``, four times as wide and high, with the same frame
        properties.

    Raises:
        ValueError: an argument is invalid, or the engine cannot be opened.
    """
    import vapoursynth as vs

    if not isinstance(clip, vs.VideoNode):
        raise ValueError("realbasicvsr: this is not a clip")
    if clip.format.id not in (vs.RGBH, vs.RGBS):
        name = clip.format.name if clip.format.id else "a variable format"
        raise ValueError(f"realbasicvsr: only RGBH and RGBS are supported, not {name}")
    if clip.width == 0 or clip.height == 0:
        raise ValueError("realbasicvsr: only clips of constant size are supported")

    core = vs.core
    try:
        upscaler = Upscaler(
            open_engine(
                Path(engine or DEFAULT_BUNDLE),
                device=device,
                size=lambda: (clip.height, clip.width),
                report=lambda line: core.log_message(vs.MESSAGE_TYPE_INFORMATION, line),
            ),
            lookahead=lookahead,
            cleanings=cleanings,
            scene_cuts=False,
        )
    except (RbvsrError, ValueError) as error:
        raise ValueError(f"realbasicvsr: {error}") from error

    def read(n: int) -> tuple[Image, bool]:
        with clip.get_frame(n) as frame:
            return _to_image(frame), bool(frame.props.get("_SceneChangePrev", 0))

    def upscale(images: Iterable[Image]) -> Generator[Image, None, None]:
        yield from upscaler.frames(images)

    blank = clip.std.BlankClip(width=clip.width * 4, height=clip.height * 4, keep=True)
    cached = _cached_frames(blank, threads=core.num_threads)
    server = FrameServer(read, upscale, length=clip.num_frames, cached=cached)

    def serve(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        try:
            image = server.frame(n)
        except RbvsrError as error:
            raise vs.Error(f"realbasicvsr: {error}") from error
        return _to_frame(image, f.copy())

    return blank.std.ModifyFrame(blank, serve).std.CopyFrameProps(clip)


def _cached_frames(clip: vs.VideoNode, *, threads: int) -> int:
    """Return how many upscaled frames to keep: threads ask for up to one each, out of order."""
    per_frame: int = clip.width * clip.height * 3 * 2
    return max(2 * threads, min(CACHE_FRAMES, CACHE_BYTES // per_frame))


def _to_image(frame: vs.VideoFrame) -> Image:
    """Return a frame as (H, W, 3) RGB; NaN becomes 0."""
    image = np.empty((frame.height, frame.width, 3), np.uint16)
    for i in range(3):
        plane = np.asarray(frame[i]).astype(np.float32)
        image[..., i] = np.rint(np.fmin(np.fmax(plane, 0), 1) * np.float32(WHITE))
    return image


def _to_frame(image: Image, frame: vs.VideoFrame) -> vs.VideoFrame:
    """Write an image to a frame, and return the frame."""
    for i in range(3):
        np.copyto(np.asarray(frame[i]), image[..., i] / np.float32(WHITE), casting="same_kind")
    return frame
