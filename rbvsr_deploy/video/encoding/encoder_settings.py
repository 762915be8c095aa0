"""How an encoder is set before it is opened: quality, threads, and what it needs besides."""

from __future__ import annotations

import itertools
import logging
import os
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
    """How an encoder is told the quality to keep: the smaller the number, the better."""

    option: str
    default: float
    lowest: float
    highest: float


# Defaults look alike: visually close to the input of the encoder.
_QUALITY = {
    "libx264": _Quality("crf", 18, 0, 51),
    "libx264rgb": _Quality("crf", 18, 0, 51),
    "libx265": _Quality("crf", 20, 0, 51),
    "libvpx": _Quality("crf", 10, 4, 63),
    "libvpx-vp9": _Quality("crf", 24, 0, 63),
    "libaom-av1": _Quality("crf", 22, 0, 63),
    "libsvtav1": _Quality("crf", 24, 1, 63),
    # Those of devices: none was at hand to try them on.
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
# Those of DNxHD are for a few sizes only.
_DNXHR = {
    "yuv422p": "dnxhr_hq",
    "yuv422p10le": "dnxhr_hqx",
    "yuv444p10le": "dnxhr_444",
    "gbrp10le": "dnxhr_444",
}
# Otherwise it writes twenty lines to the terminal for every part.
_QUIET = {"libx265": {"x265-params": "log-level=error"}}
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


def takes_quality(name: str) -> bool:
    """Whether it is known how an encoder is told a quality."""
    return name in _QUALITY


def settings_for(name: str, *, pix_fmt: str, crf: float | None, source: Source | None) -> Encoder:
    """An encoder with all its settings.

    Args:
        name: FFmpeg's, of the encoder.
        pix_fmt: one it can write.
        crf: quality on the encoder's own scale; ``None``: its default.
        source: what is told of its display is told again; ``None``: nothing is.

    Raises:
        MediaError: the encoder has no such quality.
    """
    if name == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # errors only; it takes no option for that
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
    """All of them; of those that are lists of parameters, both."""
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
