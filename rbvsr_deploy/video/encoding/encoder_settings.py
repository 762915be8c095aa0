"""Prepares the settings of an encoder before it is opened: quality, threads and special options."""

from __future__ import annotations

import itertools
import logging
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.colour.hdr import options_for

if TYPE_CHECKING:
    from rbvsr_deploy.video.base import Source

__all__ = ["Encoder", "merged", "settings_for", "takes_quality"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Quality:
    """Describes the constant-quality option of an encoder; smaller values are better."""

    option: str
    default: float
    lowest: float
    highest: float


# The defaults give similar results: visually close to the frames that are encoded.
_QUALITY = {
    "libx264": _Quality("crf", 18, 0, 51),
    "libx264rgb": _Quality("crf", 18, 0, 51),
    "libx265": _Quality("crf", 20, 0, 51),
    "libvpx": _Quality("crf", 10, 4, 63),
    "libvpx-vp9": _Quality("crf", 24, 0, 63),
    "libaom-av1": _Quality("crf", 22, 0, 63),
    "libsvtav1": _Quality("crf", 24, 1, 63),
    # Hardware encoders: not tested, for lack of the devices.
    "h264_nvenc": _Quality("cq", 19, 1, 51),
    "hevc_nvenc": _Quality("cq", 21, 1, 51),
    "av1_nvenc": _Quality("cq", 24, 1, 51),
    "h264_qsv": _Quality("global_quality", 19, 1, 51),
    "hevc_qsv": _Quality("global_quality", 21, 1, 51),
    "av1_qsv": _Quality("global_quality", 24, 1, 51),
    "vp9_qsv": _Quality("global_quality", 24, 1, 51),
    "h264_amf": _Quality("qp_i", 19, 0, 51),
    "hevc_amf": _Quality("qp_i", 21, 0, 51),
}
_SPEED = {
    "libvpx-vp9": {"row-mt": "1", "cpu-used": "2"},
    "libvpx": {"cpu-used": "2"},
}
# The plain DNxHD profiles support only a few sizes.
_DNXHR = {
    "yuv422p": "dnxhr_hq",
    "yuv422p10le": "dnxhr_hqx",
    "yuv444p10le": "dnxhr_444",
    "gbrp10le": "dnxhr_444",
}
# Otherwise x265 prints twenty lines to the terminal for every segment.
_QUIET = {"libx265": {"x265-params": "log-level=error"}}
# A resumed run must give the same bytes as an uninterrupted one, even if the number of available
# cores has changed in between. With a fixed number of threads, all encoders tested do so (hardware
# encoders could not be tested). With another number, ffv1 and prores_ks still do, but libx264,
# libvpx, libvpx-vp9 and mpeg4 do not.
_THREADS = 8
_OTHER_THREADS = {
    # These manage their own threads, and give the same bytes with any number of them.
    "libx265": 0,
    "libsvtav1": 0,
    # Its threads spin while they wait, which stalls machines with few cores.
    "libvpx": 1,
}
# Encoders that need a fixed quantiser: their default bit rate is far too low for large frames.
_FIXED_QUANTISER = frozenset({"mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "msmpeg4", "wmv2"})
_AVX512_ON_WINDOWS = 41  # PF_AVX512F_INSTRUCTIONS_AVAILABLE
_QUANTISER_2 = {"flags": "+qscale", "global_quality": str(2 * 118)}  # 118 is FF_QP2LAMBDA


@dataclass(frozen=True)
class Encoder:
    """Names an encoder and holds all settings it needs before it is opened."""

    name: str
    pix_fmt: str
    options: dict[str, str] = field(default_factory=dict)
    threads: int = 0
    """Number of threads; 0: chosen by the encoder."""
    processor_options: dict[str, str] = field(default_factory=dict)
    """Additional options for the processor of this machine; they do not change the output."""


def takes_quality(name: str) -> bool:
    """Return whether a constant-quality option is known for an encoder."""
    return name in _QUALITY


def settings_for(name: str, *, pix_fmt: str, crf: float | None, source: Source | None) -> Encoder:
    """Return an encoder with all its settings.

    Args:
        name: FFmpeg name of the encoder.
        pix_fmt: a pixel format that the encoder supports.
        crf: quality on the encoder's own scale; ``None``: its default.
        source: the input, whose HDR metadata is passed on; ``None``: none is written.

    Raises:
        MediaError: the encoder has no such quality.
    """
    if name == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # errors only; not available as an option
    return Encoder(
        name=name,
        pix_fmt=pix_fmt,
        options=merged(
            _quality_options(name, crf=crf),
            {"profile": _DNXHR[pix_fmt]} if name == "dnxhd" else {},
            _SPEED.get(name, {}),
            _QUIET.get(name, {}),
            _hdr_options(name, source=source),
        ),
        threads=_OTHER_THREADS.get(name, _THREADS),
        processor_options=_processor_options(name),
    )


def merged(*options: dict[str, str]) -> dict[str, str]:
    """Merge options; later ones win, except that lists of parameters are concatenated."""
    result: dict[str, str] = {}
    for name, value in itertools.chain.from_iterable(some.items() for some in options):
        listed = name in result and name.endswith("-params")
        result[name] = f"{result[name]}:{value}" if listed else value
    return result


def _quality_options(name: str, *, crf: float | None) -> dict[str, str]:
    quality = _QUALITY.get(name)
    if quality is None:
        if crf is not None:
            raise MediaError(
                f"codec {name} has no crf: leave crf unset, or use one of "
                + ", ".join(sorted(_QUALITY))
            )
        return dict(_QUANTISER_2) if name in _FIXED_QUANTISER else {}
    value = quality.default if crf is None else crf
    if not quality.lowest <= value <= quality.highest:
        raise MediaError(
            f"crf {value:g} is out of range for {name}: use {quality.lowest:g} (best) to "
            f"{quality.highest:g}; the default is {quality.default:g}"
        )
    options = {quality.option: f"{value:g}"}
    if quality.option == "cq":
        options |= {"rc": "vbr", "b": "0"}  # otherwise the bit rate is limited to 2 Mb/s
    elif quality.option == "qp_i":
        options |= {"rc": "cqp", "qp_p": options["qp_i"]}
    return options


def _hdr_options(codec: str, *, source: Source | None) -> dict[str, str]:
    if source is None or source.hdr is None:
        return {}
    options = options_for(codec, source.hdr)
    if not options:
        source.changes.drop(
            "HDR display metadata", f"{codec} cannot write it, libx265 and libsvtav1 can"
        )
    else:
        source.changes.keep("HDR display metadata", f"written by {codec}")
    return options


def _processor_options(name: str) -> dict[str, str]:
    """Return the options that make an encoder deterministic on this processor."""
    # x264's macroblock tree (core 165) is not deterministic with AVX-512: encoding
    # tests/data/sample.mp4 repeatedly gave different bytes each of 24 times at 320x180, three of
    # four times at 960x540, never at 1280x720. Restricted to AVX2, it always gives the bytes of a
    # processor without AVX-512, at the same size, quality (568.8 KB and 47.54 dB at 960x540, crf
    # 18, compared to 568.8 to 570.6 KB and 47.54 to 47.55 dB) and speed. Disabling the macroblock
    # tree would add 19 % to the size (60 other frames of 1280x720: 701 KB instead of 592 KB, and
    # 0.46 dB better).
    if name in ("libx264", "libx264rgb") and _has_avx512():
        return {"x264-params": "asm=AVX2"}
    return {}


def _has_avx512() -> bool:
    """Return whether the processor has AVX-512 and hence AVX2; macOS is not asked."""
    if sys.platform == "win32":
        from ctypes import windll

        return bool(windll.kernel32.IsProcessorFeaturePresent(_AVX512_ON_WINDOWS))
    else:  # noqa: RET505  mypy skips the branches of other systems
        try:
            with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
                return any(line.startswith("flags") and " avx512f" in line for line in file)
        except OSError:
            return False
