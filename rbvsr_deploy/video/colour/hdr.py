"""Reads HDR metadata from decoded frames and converts it to encoder options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from av import VideoFrame
    from av.sidedata.sidedata import SideData

__all__ = ["TRANSFERS", "HdrMetadata", "hdr_metadata", "options_for"]

TRANSFERS = {16: "PQ", 18: "HLG"}
"""Names of the HDR transfer characteristics, by H.273 code."""
# Encoders that accept static metadata: the option, and the parameters within it.
_PARAMETERS = {
    "libx264": ("x264-params", "mastering-display", "cll"),
    "libx265": ("x265-params", "master-display", "max-cll"),
    "libsvtav1": ("svtav1-params", "mastering-display", "content-light"),
}


@dataclass(frozen=True)
class HdrMetadata:
    """Holds the static HDR metadata of a video."""

    display: tuple[float, ...] | None
    """Mastering display (SMPTE ST 2086): x and y of red, green, blue and white, then minimum and
    maximum luminance in cd/m2."""
    light: tuple[int, int] | None
    """Content light level (CTA-861.3): MaxCLL, the maximum of any pixel, and MaxFALL, the maximum
    frame average, in cd/m2."""


def hdr_metadata(frame: VideoFrame) -> HdrMetadata | None:
    """Return the static HDR metadata of a decoded frame; ``None`` if it has none."""
    display = light = None
    data = _side_data(frame, "MASTERING_DISPLAY_METADATA")
    if data is not None:
        # FFmpeg's AVMasteringDisplayMetadata: ten fractions, then the flags has_primaries and
        # has_luminance.
        numbers = np.frombuffer(data, np.int32)
        if numbers[20] and numbers[21]:
            display = tuple(float(n) for n in numbers[0:20:2] / numbers[1:20:2])
    data = _side_data(frame, "CONTENT_LIGHT_LEVEL")
    if data is not None:
        most, mean = np.frombuffer(data, np.uint32)[:2]
        light = int(most), int(mean)
    return HdrMetadata(display, light) if display or light else None


def options_for(codec: str, metadata: HdrMetadata) -> dict[str, str]:
    """Return encoder options that write the metadata; empty if the encoder cannot write it."""
    names = _PARAMETERS.get(codec)
    if names is None:
        return {}
    option, display, light = names
    parts = []
    if metadata.display is not None:
        parts.append(f"{display}={_show(metadata.display, whole=codec != 'libsvtav1')}")
    if metadata.light is not None:
        parts.append(f"{light}={metadata.light[0]},{metadata.light[1]}")
    return {option: ":".join(parts)}


def _show(display: tuple[float, ...], *, whole: bool) -> str:
    """Format mastering display data as the encoders expect it.

    ``whole``: as integers in units of 1/50000 (chromaticity) and 1/10000 cd/m2 (luminance).
    """

    def number(value: float, scale: int) -> str:
        return str(round(value * scale)) if whole else f"{value:.6g}"

    red, green, blue, white = (
        f"({number(x, 50000)},{number(y, 50000)})"
        for x, y in zip(display[0:8:2], display[1:8:2], strict=True)
    )
    least, greatest = (number(value, 10000) for value in display[8:])
    return f"G{green}B{blue}R{red}WP{white}L({greatest},{least})"


def _side_data(frame: VideoFrame, name: str) -> bytes | None:
    try:
        data = frame.side_data.get(name)
    except ValueError:
        # PyAV has no name for some newer kinds of side data, and then fails for all kinds.
        return None
    return None if data is None else bytes(cast("SideData", data))
