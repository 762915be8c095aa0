"""Which encoder writes a container, and at which quality."""

from __future__ import annotations

import itertools
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.colour import depth_of
from rbvsr_deploy.video.encoder_trial import runs_on_device, software_for, try_encoder
from rbvsr_deploy.video.hdr import options_for
from rbvsr_deploy.video.opacity import no_room_for_opacity
from rbvsr_deploy.video.options import WriteOptions
from rbvsr_deploy.video.pixel_formats import closest

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


@dataclass(frozen=True)
class Quality:
    """How an encoder is told the quality to keep: the smaller the number, the better."""

    option: str
    default: float
    lowest: float
    highest: float


# Defaults look alike: visually close to the input of the encoder.
_QUALITY = {
    "libx264": Quality("crf", 18, 0, 51),
    "libx264rgb": Quality("crf", 18, 0, 51),
    "libx265": Quality("crf", 20, 0, 51),
    "libvpx": Quality("crf", 10, 4, 63),
    "libvpx-vp9": Quality("crf", 24, 0, 63),
    "libaom-av1": Quality("crf", 22, 0, 63),
    "libsvtav1": Quality("crf", 24, 1, 63),
    # Those of devices: none was at hand to try them on.
    "h264_nvenc": Quality("cq", 19, 1, 51),
    "hevc_nvenc": Quality("cq", 21, 1, 51),
    "av1_nvenc": Quality("cq", 24, 1, 51),
    "h264_qsv": Quality("global_quality", 19, 1, 51),
    "hevc_qsv": Quality("global_quality", 21, 1, 51),
    "av1_qsv": Quality("global_quality", 24, 1, 51),
    "vp9_qsv": Quality("global_quality", 24, 1, 51),
    "h264_amf": Quality("qp_i", 19, 0, 51),
    "hevc_amf": Quality("qp_i", 21, 0, 51),
}
_SPEED = {
    "libvpx-vp9": {"row-mt": "1", "cpu-used": "2"},
    "libvpx": {"cpu-used": "2"},
}
# Those of DNxHD are for a few sizes only.
_DNXHR = {
    "yuv422p": "dnxhr_hq",
    "yuv422p10le": "dnxhr_hqx",
    "yuv444p10le": "dnxhr_444",
    "gbrp10le": "dnxhr_444",
}
# Otherwise it writes twenty lines to the terminal for every part.
_QUIET = {"libx265": {"x265-params": "log-level=error"}}
# x265 4.2 writes beyond its buffers in pictures of up to 48 pixels in width, of any height, which
# glibc's malloc notices (MALLOC_CHECK_=3); at 52 and above it does not.
_NARROWEST_X265 = 52
# A run that is continued must give the bytes of one that was not, also where the machine is given
# other cores meanwhile. With one number of threads all encoders tried do (those of devices could
# not be), with another libx264, libvpx, libvpx-vp9 and mpeg4 do not; ffv1 and prores_ks do.
_THREADS = 8
_OTHER_THREADS = {
    # Divide the work among threads of their own, and give the same bytes with any number.
    "libx265": 0,
    "libsvtav1": 0,
    # Its threads wait for each other without sleeping: hardly anything moves where cores are few.
    "libvpx": 1,
}
# Encoders of fixed quantiser: without it they aim at a bit rate far too low for large pictures.
_FIXED_QUANTISER = frozenset({"mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "msmpeg4", "wmv2"})
_QUANTISER_2 = {"flags": "+qscale", "global_quality": str(2 * 118)}  # 118 is FF_QP2LAMBDA


@dataclass(frozen=True)
class Encoder:
    """An encoder with everything that has to be set before it is opened."""

    name: str
    pix_fmt: str
    options: dict[str, str] = field(default_factory=dict)
    threads: int = 0
    """0: as many as the encoder likes."""
    processor_options: dict[str, str] = field(default_factory=dict)
    """What this machine's processor needs beside ``options``; changes no byte."""


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
    if runs_on_device(found) and found.name not in _QUALITY:
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
    if found.name == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # errors only; it takes no option for that
    encoder = Encoder(
        name=found.name,
        pix_fmt=pix_fmt,
        options=merged(
            _quality_options(found.name, crf=wishes.crf),
            {"profile": _DNXHR[pix_fmt]} if found.name == "dnxhd" else {},
            _SPEED.get(found.name, {}),
            _QUIET.get(found.name, {}),
            _hdr_options(found.name, source=source),
        ),
        threads=_OTHER_THREADS.get(found.name, _THREADS),
        processor_options=_processor_options(found.name),
    )
    try_encoder(found, encoder, size=size)
    return encoder


def merged(*options: dict[str, str]) -> dict[str, str]:
    """All of them; of those that are lists of parameters, both."""
    result: dict[str, str] = {}
    for name, value in itertools.chain.from_iterable(some.items() for some in options):
        listed = name in result and name.endswith("-params")
        result[name] = f"{result[name]}:{value}" if listed else value
    return result


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


def _hdr_options(codec: str, *, source: Source | None) -> dict[str, str]:
    if source is None or source.hdr is None:
        return {}
    options = options_for(codec, source.hdr)
    if not options:
        logger.warning(
            "what %s tells of the display it was made on is lost: libx265 and libsvtav1 can tell "
            "it, %s cannot",
            source.path,
            codec,
        )
    return options


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


def _quality_options(name: str, *, crf: float | None) -> dict[str, str]:
    quality = _QUALITY.get(name)
    if quality is None:
        if crf is not None:
            raise MediaError(
                f"codec {name} has no crf: leave it out, or use one of "
                + ", ".join(sorted(_QUALITY))
            )
        return dict(_QUANTISER_2) if name in _FIXED_QUANTISER else {}
    value = quality.default if crf is None else crf
    if not quality.lowest <= value <= quality.highest:
        raise MediaError(
            f"crf {value:g} is out of range for {name}: it takes {quality.lowest:g} (best) to "
            f"{quality.highest:g}, and {quality.default:g} by default"
        )
    options = {quality.option: f"{value:g}"}
    if quality.option == "cq":
        options |= {"rc": "vbr", "b": "0"}  # otherwise it keeps to 2 Mb/s
    elif quality.option == "qp_i":
        options |= {"rc": "cqp", "qp_p": options["qp_i"]}
    return options


def _processor_options(name: str) -> dict[str, str]:
    """Options without which an encoder gives other bytes each time on some processors."""
    # x264's macroblock tree (core 165) does not always give the same with AVX-512: tests/data/
    # sample.mp4 came out in other bytes each of 24 times at 320x180, three of four times at
    # 960x540, never at 1280x720. Restricted to AVX2, it always gives the bytes of a processor
    # that has nothing newer, at the same size, quality (568.8 KB and 47.54 dB at 960x540, crf 18,
    # for 568.8 to 570.6 KB and 47.54 to 47.55 dB) and speed. Doing without the macroblock tree
    # would cost 19 % of the size (60 other frames of 1280x720: 701 KB for 592 KB, 0.46 dB better).
    if name in ("libx264", "libx264rgb") and _has_avx512():
        return {"x264-params": "asm=AVX2"}
    return {}


def _has_avx512() -> bool:
    """Whether the processor has AVX-512, hence AVX2; told by Linux only."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return any(line.startswith("flags") and " avx512f" in line for line in file)
    except OSError:
        return False


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
