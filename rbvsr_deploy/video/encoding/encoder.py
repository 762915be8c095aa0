"""Chooses the encoder and pixel format of a video output."""

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
"""Suffixes of supported video outputs, and the FFmpeg names of their containers."""

# Codecs of deep inputs that the output keeps, and their encoders: intermediate codecs for further
# processing, which hold the full chroma and bit depth.
_INTERMEDIATE = {"prores": "prores_ks", "ffv1": "ffv1", "dnxhd": "dnxhd"}
# Encoders for other inputs with more than 8 bits. Players do not expect deep video in AVI and FLV.
_DEEP_CODECS = {
    "matroska": ("libx265",),
    "mov": ("libx265",),
    "mp4": ("libx265",),
    "mpegts": ("libx265",),
    "webm": ("libvpx-vp9", "libsvtav1", "libaom-av1"),
}
_ALPHA_CODECS = {"matroska": "ffv1", "mov": "prores_ks"}
"""Containers for videos with alpha, and their encoders."""
_DELIVERED_DEPTH = 10
"""Bits per sample that players commonly support."""

# x265 4.2 overruns its buffers for frames up to 48 pixels wide, whatever their height; glibc's
# malloc detects it (MALLOC_CHECK_=3). From 52 pixels on it does not.
_NARROWEST_X265 = 52


def choose_encoder(
    container: str,
    options: WriteOptions,
    *,
    size: tuple[int, int],
    source: Source | None = None,
) -> Encoder:
    """Choose the encoder, and check the options against what it and the container support.

    Args:
        container: FFmpeg name of the output container.
        options: codec, quality and pixel format.
        size: width and height of the output in pixels.
        source: the input, whose depth and codec determine the defaults; ``None``: 8 bits.

    Raises:
        MediaError: an option is not supported; names the option and the allowed values.
    """
    found, pix_fmt = _choose_format(container, options, source=source)
    _check_size(pix_fmt, size=size, codec=found.name)
    encoder = settings_for(found.name, pix_fmt=pix_fmt, crf=options.crf, source=source)
    try_encoder(found, encoder, size=size)
    return encoder


def size_multiple(pix_fmt: str) -> tuple[int, int]:
    """Return what the height and width of frames in a pixel format must be multiples of."""
    from av.video.format import VideoFormat

    video_format = VideoFormat(pix_fmt, 16, 16)
    if video_format.is_rgb or len(video_format.components) < 3:
        return 1, 1
    return 16 // video_format.chroma_height(16), 16 // video_format.chroma_width(16)


def pix_fmt_for(container: str, options: WriteOptions, *, source: Source) -> str:
    """Return the pixel format that :func:`choose_encoder` chooses.

    Raises:
        MediaError: an option is not supported.
    """
    return _choose_format(container, options, source=source)[1]


def _choose_format(
    container: str, options: WriteOptions, *, source: Source | None
) -> tuple[Codec, str]:
    name = options.codec or default_codec(container, source)
    found = _find_codec(name, container=container)
    if runs_on_device(found) and not takes_quality(found.name):
        raise MediaError(
            f"no quality setting is known for codec {found.name}: use {software_for(found)}"
        )
    formats = [video_format.name for video_format in found.video_formats or ()]
    pix_fmt = options.pix_fmt
    if source is not None and source.keeps_opacity:
        if found.name not in _ALPHA_CODECS.values():
            raise no_room_for_opacity(f"{found.name} in {container}")
        if pix_fmt is not None and closest([pix_fmt], depth=8, alpha=True) is None:
            raise no_room_for_opacity(f"pixel format {pix_fmt}")
    if pix_fmt is None:
        pix_fmt = DEFAULT_PIX_FMT
        if formats:
            pix_fmt = _pix_fmt_for(source, formats, codec=found.name, chosen=bool(options.codec))
    elif formats and pix_fmt not in formats:
        raise MediaError(
            f"codec {found.name} cannot write pixel format {pix_fmt!r}: choose from "
            + ", ".join(formats)
        )
    return found, pix_fmt


def default_codec(container: str, source: Source | None = None) -> str:
    """Return the encoder to use when none is requested."""
    if source is not None and source.keeps_opacity and container in _ALPHA_CODECS:
        return _ALPHA_CODECS[container]
    if source is not None and source.depth > 8:
        kept = _INTERMEDIATE.get(source.codec or "")
        for name in (kept, *_DEEP_CODECS.get(container, ())):
            if name is not None and _writes_deep(name) and _fits(name, container=container):
                return name
    return "libvpx-vp9" if container == "webm" else DEFAULT_CODEC


def _writes_deep(name: str) -> bool:
    """Return whether this FFmpeg build has the encoder, with support for more than 8 bits."""
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    try:
        formats = Codec(name, "w").video_formats or ()
    except UnknownCodecError:
        return False
    return any(depth_of(video_format) > 8 for video_format in formats)


def _pix_fmt_for(source: Source | None, formats: list[str], *, codec: str, chosen: bool) -> str:
    """Return the pixel format that suits an input; warn if it has fewer bits per sample.

    Args:
        source: the input; ``None``: 8 bits.
        formats: pixel formats that the encoder supports.
        codec: name of the encoder.
        chosen: whether the user chose the codec; the default codec stays at 8 bits.
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
        source.changes.convert(
            f"{depth} bits per sample", f"rounded to {kept} bits, as {codec} writes {pix_fmt}"
        )
    return pix_fmt


def needs_constant_rate(container: str, *, codec: str) -> bool:
    """Return whether the output stores a frame rate instead of a timestamp per frame."""
    from av.format import ContainerFormat, Flags

    variable = Flags(ContainerFormat(container, "w").flags) & Flags.variable_fps
    return not variable or codec in ("mpeg1video", "mpeg2video", "mpeg4")


def _fits(name: str, *, container: str) -> bool:
    """Return whether the container can hold the codec.

    It is tried out, as some formats do not list their codecs.
    """
    import io

    import av

    try:
        # Nothing is written before the header.
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
            f"this build of FFmpeg has no encoder {name!r}: use for example libx264, libx265, "
            "libvpx-vp9 or libsvtav1"
        ) from None
    if found.type != "video":
        raise MediaError(
            f"codec {name!r} encodes {found.type}: use a video encoder such as libx264"
        )
    if not _fits(found.name, container=container):
        raise MediaError(
            f"{container} cannot hold codec {found.name}: use {default_codec(container)}, or give "
            "the output a name ending in .mkv"
        )
    return found


def _check_size(pix_fmt: str, *, size: tuple[int, int], codec: str) -> None:
    from av.video.format import VideoFormat

    width, height = size
    if codec == "libx265" and width < _NARROWEST_X265:
        raise MediaError(
            f"libx265 cannot encode a width of {width} pixels, only {_NARROWEST_X265} or more: use "
            "codec libx264 or ffv1"
        )
    video_format = VideoFormat(pix_fmt, width, height)
    if video_format.is_rgb:
        return
    across = width % 2 and video_format.chroma_width(2) == 1
    down = height % 2 and video_format.chroma_height(2) == 1
    if across or down:
        raise MediaError(
            f"{width}x{height} cannot be written as {pix_fmt}, which requires an even size: use "
            "pixel format yuv444p"
        )
