"""Which encoder writes a container, and in which pixel format."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.colour.colour import depth_of
from rbvsr_deploy.video.colour.opacity import no_room_for_opacity
from rbvsr_deploy.video.colour.pixel_formats import closest
from rbvsr_deploy.video.encoding.encoder_settings import Encoder, settings_for, takes_quality
from rbvsr_deploy.video.encoding.encoder_trial import runs_on_device, software_for, try_encoder
from rbvsr_deploy.video.options import WriteOptions

if TYPE_CHECKING:
    from av.codec import Codec

    from rbvsr_deploy.video.base import Source

logger = logging.getLogger(__name__)

DEFAULT_CODEC = "libx264"
DEFAULT_PIX_FMT = "yuv420p"

CONTAINERS = {
    ".avi": "avi",
    ".flv": "flv",
    ".m2ts": "mpegts",
    ".m4v": "mp4",
    ".mkv": "matroska",
    ".mov": "mov",
    ".mp4": "mp4",
    ".mts": "mpegts",
    ".ts": "mpegts",
    ".webm": "webm",
}
"""Suffixes of the videos that can be written, and FFmpeg's names of their containers."""

# Codecs of inputs of more than 8 bits that are kept, and their encoders: those for further work on
# a film, with its chroma and all its bits.
_INTERMEDIATE = {"prores": "prores_ks", "ffv1": "ffv1", "dnxhd": "dnxhd"}
# Encoders of more than 8 bits for other inputs. In AVI and FLV nobody expects any.
_DEEP_CODECS = {
    "matroska": ("libx265",),
    "mov": ("libx265",),
    "mp4": ("libx265",),
    "mpegts": ("libx265",),
    "webm": ("libvpx-vp9", "libsvtav1", "libaom-av1"),
}
_ALPHA_CODECS = {"matroska": "ffv1", "mov": "prores_ks"}
"""Containers of videos with opacity, and their encoders."""
_DELIVERED_DEPTH = 10
"""Bits that players can be expected to read."""

# x265 4.2 writes beyond its buffers in pictures of up to 48 pixels in width, of any height, which
# glibc's malloc notices (MALLOC_CHECK_=3); at 52 and above it does not.
_NARROWEST_X265 = 52


def choose_encoder(
    container: str,
    wishes: WriteOptions,
    *,
    size: tuple[int, int],
    source: Source | None = None,
) -> Encoder:
    """Checks the wishes against what the encoder and the container can do.

    Args:
        container: FFmpeg's name of the output's container.
        wishes: codec, quality and pixel format.
        size: width and height of the output.
        source: whose depth and codec decide where nothing is wished for; ``None``: 8 bits.

    Raises:
        MediaError: one sentence that names the wish and what is allowed.
    """
    name = wishes.codec or default_codec(container, source)
    found = _find_codec(name, container=container)
    if runs_on_device(found) and not takes_quality(found.name):
        raise MediaError(
            f"codec {found.name} cannot be told a quality here: use {software_for(found)}"
        )
    formats = [video_format.name for video_format in found.video_formats or ()]
    pix_fmt = wishes.pix_fmt
    if source is not None and source.keeps_opacity:
        if found.name not in _ALPHA_CODECS.values():
            raise no_room_for_opacity(f"{found.name} in {container}")
        if pix_fmt is not None and closest([pix_fmt], depth=8, alpha=True) is None:
            raise no_room_for_opacity(f"pixel format {pix_fmt}")
    if pix_fmt is None:
        pix_fmt = DEFAULT_PIX_FMT
        if formats:
            pix_fmt = _pix_fmt_for(source, formats, codec=found.name, chosen=bool(wishes.codec))
    elif formats and pix_fmt not in formats:
        raise MediaError(
            f"codec {found.name} cannot write pixel format {pix_fmt!r}: choose from "
            + ", ".join(formats)
        )
    _check_size(pix_fmt, size=size, codec=found.name)
    encoder = settings_for(found.name, pix_fmt=pix_fmt, crf=wishes.crf, source=source)
    try_encoder(found, encoder, size=size)
    return encoder


def default_codec(container: str, source: Source | None = None) -> str:
    """The codec that is written when none is asked for."""
    if source is not None and source.keeps_opacity and container in _ALPHA_CODECS:
        return _ALPHA_CODECS[container]
    if source is not None and source.depth > 8:
        kept = _INTERMEDIATE.get(source.codec or "")
        for name in (kept, *_DEEP_CODECS.get(container, ())):
            if name is not None and _writes_deep(name) and _fits(name, container=container):
                return name
    return "libvpx-vp9" if container == "webm" else DEFAULT_CODEC


def _writes_deep(name: str) -> bool:
    """Whether this build of FFmpeg has the encoder, for more than 8 bits."""
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    try:
        formats = Codec(name, "w").video_formats or ()
    except UnknownCodecError:
        return False
    return any(depth_of(video_format) > 8 for video_format in formats)


def _pix_fmt_for(source: Source | None, formats: list[str], *, codec: str, chosen: bool) -> str:
    """The pixel format that suits an input; where it holds fewer bits, a warning says so.

    Args:
        source: the input; ``None``: 8 bits.
        formats: what the codec can write.
        codec: name of the encoder.
        chosen: whether the user chose the codec; the default one keeps 8 bits.
    """
    from av.video.format import VideoFormat

    depth, like = 8 if source is None else source.depth, DEFAULT_PIX_FMT
    wanted = min(depth, _DELIVERED_DEPTH)
    if codec == DEFAULT_CODEC and not chosen:
        wanted = 8
    elif source is not None and depth > 8 and codec in _INTERMEDIATE.values():
        wanted, like = depth, source.pix_fmt or like
    alpha = source is not None and source.keeps_opacity
    pix_fmt = closest(formats, depth=wanted, like=like, alpha=alpha) or formats[0]
    kept = depth_of(VideoFormat(pix_fmt, 16, 16))
    if source is not None and kept < min(depth, _DELIVERED_DEPTH):
        logger.warning(
            "%s has %d bits per sample; they are rounded to the %d of %s",
            source.path,
            depth,
            kept,
            pix_fmt,
        )
    return pix_fmt


def needs_constant_rate(container: str, *, codec: str) -> bool:
    """Whether the output has no time stamps of its own, only a number of frames per second."""
    from av.format import ContainerFormat, Flags

    variable = Flags(ContainerFormat(container, "w").flags) & Flags.variable_fps
    return not variable or codec in ("mpeg1video", "mpeg2video", "mpeg4")


def _fits(name: str, *, container: str) -> bool:
    """Whether the container can hold the codec; found by trying, since some do not tell."""
    import io

    import av

    try:
        # Leaving it without a header or packets writes nothing.
        av.open(io.BytesIO(), "w", format=container).add_stream(name)
    except (av.FFmpegError, ValueError):
        return False
    return True


def _find_codec(name: str, *, container: str) -> Codec:
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    try:
        found = Codec(name, "w")
    except UnknownCodecError:
        raise MediaError(
            f"codec {name!r} is not known to this build of FFmpeg as an encoder: "
            "use for example libx264, libx265, libvpx-vp9 or libsvtav1"
        ) from None
    if found.type != "video":
        raise MediaError(f"codec {name!r} is for {found.type}: use a video encoder such as libx264")
    if not _fits(found.name, container=container):
        raise MediaError(
            f"codec {found.name} cannot be written into {container}: leave the codec out for "
            f"{default_codec(container)}, or give the output a name ending in .mkv"
        )
    return found


def _check_size(pix_fmt: str, *, size: tuple[int, int], codec: str) -> None:
    from av.video.format import VideoFormat

    width, height = size
    if codec == "libx265" and width < _NARROWEST_X265:
        raise MediaError(
            f"libx265 cannot write pictures that are {width} pixels wide: use codec libx264 or ffv1"
        )
    video_format = VideoFormat(pix_fmt, width, height)
    if video_format.is_rgb:
        return
    across = width % 2 and video_format.chroma_width(2) == 1
    down = height % 2 and video_format.chroma_height(2) == 1
    if across or down:
        raise MediaError(
            f"{width}x{height} cannot be written as {pix_fmt}, which takes even sizes only: "
            "use pixel format yuv444p"
        )
