"""What videos of high dynamic range tell of the display they were made on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from av import VideoFrame
    from av.sidedata.sidedata import SideData

__all__ = ["TRANSFERS", "HdrMetadata", "dynamic_metadata", "hdr_metadata", "options_for"]

TRANSFERS = {16: "PQ", 18: "HLG"}
"""Transfer characteristics of high dynamic range, by their numbers in H.273."""
# PyAV's names of what is told for every frame anew, and what people call it. Encoders take none.
_DYNAMIC = {
    "DOVI_METADATA": "Dolby Vision",
    "DOVI_RPU_BUFFER": "Dolby Vision",
    "DYNAMIC_HDR_PLUS": "HDR10+",
    "DYNAMIC_HDR_VIVID": "HDR Vivid",
}
# Encoders that can be told: the option, and the parameters in it.
_PARAMETERS = {
    "libx264": ("x264-params", "mastering-display", "cll"),
    "libx265": ("x265-params", "master-display", "max-cll"),
    "libsvtav1": ("svtav1-params", "mastering-display", "content-light"),
}


@dataclass(frozen=True)
class HdrMetadata:
    """Of the whole video."""

    display: tuple[float, ...] | None
    """x and y of red, green, blue and white, then least and greatest luminance in cd/m2: of the
    display that the video was made on (SMPTE ST 2086)."""
    light: tuple[int, int] | None
    """Greatest luminance of a pixel, and of the mean of a frame, in cd/m2 (CTA-861.3)."""


def hdr_metadata(frame: VideoFrame) -> HdrMetadata | None:
    """Of a decoded frame; ``None`` where it tells nothing."""
    display = light = None
    data = _side_data(frame, "MASTERING_DISPLAY_METADATA")
    if data is not None:
        # FFmpeg's AVMasteringDisplayMetadata: ten fractions, and whether colours and luminance
        # are told.
        numbers = np.frombuffer(data, np.int32)
        if numbers[20] and numbers[21]:
            display = tuple(float(n) for n in numbers[0:20:2] / numbers[1:20:2])
    data = _side_data(frame, "CONTENT_LIGHT_LEVEL")
    if data is not None:
        most, mean = np.frombuffer(data, np.uint32)[:2]
        light = int(most), int(mean)
    return HdrMetadata(display, light) if display or light else None


def dynamic_metadata(frame: VideoFrame) -> str | None:
    """What a decoded frame has that is told for every frame anew, for people."""
    kinds = {text for name, text in _DYNAMIC.items() if _side_data(frame, name) is not None}
    return " and ".join(sorted(kinds)) or None


def options_for(codec: str, metadata: HdrMetadata) -> dict[str, str]:
    """Options that make an encoder tell the same; none where it cannot."""
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
    """As these encoders read it: in 1/50000 and 1/10000 cd/m2 where in whole numbers."""

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
        # PyAV knows no name for some newer kinds of side data and gives up on all of them.
        return None
    return None if data is None else bytes(cast("SideData", data))
