"""Takes stock of the side data of a video: what comes with a stream, its packets and its frames.

Every kind is one of three: handled elsewhere in this package; about the coding of the input, which
ends with it; or lost, which is reported. Kinds that nobody thought of are lost.
"""

from __future__ import annotations

import logging
import re
import threading
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rbvsr_deploy.video.changes import Changes

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.sidedata.sidedata import SideData

__all__ = ["SideDataWatch", "captions_of", "describe_streams", "stream_side_data"]

logger = logging.getLogger(__name__)

# By the names of PyAV for side data of frames and of packets, and of FFmpeg for that of streams.
_HANDLED = frozenset(
    {
        *("DISPLAYMATRIX", "display_matrix", "Display Matrix"),  # applied
        "A53_CC",  # see captions_of
        *("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL"),  # written by the encoder
        *("mastering_display_metadata", "content_light_level"),
        *("Mastering display metadata", "Content light level metadata"),
        *("frame_cropping", "Frame Cropping"),  # applied
        *("matroska_block_additional", "Matroska BlockAdditional"),  # alpha
    }
)
_OF_THE_CODING = frozenset(
    {
        *("MOTION_VECTORS", "VIDEO_ENC_PARAMS", "VIDEO_HINT", "SKIP_SAMPLES", "VIEW_ID"),
        *("REGIONS_OF_INTEREST", "DETECTION_BBOXES", "FILM_GRAIN_PARAMS"),  # grain is decoded
        *("palette", "new_extradata", "param_change", "h263_mb_info", "quality_stats"),
        *("fallback_track", "cpb_properties", "skip_samples", "strings_metadata", "rtcp_sr"),
        *("metadata_update", "mpegts_stream_id", "encryption_init_info", "encryption_info"),
        *("Palette", "New Extradata", "Param Change", "H263 MB Info", "Quality stats"),
        *("Fallback track", "CPB properties", "Skip Samples", "Strings Metadata"),
        *("Metadata Update", "MPEGTS Stream ID"),
        *("Encryption initialization data", "Encryption info"),
    }
)
_NAMES = {
    "a53_cc": "closed captions",
    "A53 Closed Captions": "closed captions",
    "AFD": "active format description",
    "afd": "active format description",
    "Active Format Description data": "active format description",
    "AMBIENT_VIEWING_ENVIRONMENT": "ambient viewing environment",
    "ambient_viewing_environment": "ambient viewing environment",
    "Ambient viewing environment": "ambient viewing environment",
    "DOVI_METADATA": "Dolby Vision metadata",
    "DOVI_RPU_BUFFER": "Dolby Vision metadata",
    "dovi_conf": "Dolby Vision metadata",
    "DOVI configuration record": "Dolby Vision metadata",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "dynamic_hdr10_plus": "HDR10+ metadata",
    "HDR Dynamic Metadata SMPTE2094-40 (HDR10+)": "HDR10+ metadata",
    "DYNAMIC_HDR_VIVID": "HDR Vivid metadata",
    "GOP_TIMECODE": "time codes of groups of frames",
    "ICC_PROFILE": "ICC profile of the video",
    "icc_profile": "ICC profile of the video",
    "ICC Profile": "ICC profile of the video",
    "PANSCAN": "pan and scan window",
    "PRFT": "producer reference times",
    "prft": "producer reference times",
    "Producer Reference Time": "producer reference times",
    "S12M_TIMECODE": "time code of every frame",
    "s12m_timecode": "time code of every frame",
    "SMPTE ST 12-1:2014 timecode": "time code of every frame",
    "SEI_UNREGISTERED": "user data in the video stream",
    "SPHERICAL": "spherical projection",
    "spherical": "spherical projection",
    "Spherical Mapping": "spherical projection",
    "STEREO3D": "stereoscopic layout",
    "stereo_3d": "stereoscopic layout",
    "Stereo 3D": "stereoscopic layout",
}
_ENCODERS = (
    bytes.fromhex("dc45e9bde6d948b7962cd820d923eeef"),  # x264
    bytes.fromhex("2ca2de09b51747dbbb55a4fe7fc2fc4e"),  # x265
)
"""UUIDs of user data in which encoders note their own settings."""
_LEVEL = threading.Lock()


class SideDataWatch:
    """Reports side data that does not reach the output.

    Args:
        changes: the source's list.
        ignored: names of kinds that the caller takes care of.
    """

    def __init__(self, changes: Changes, *, ignored: frozenset[str] = frozenset()) -> None:
        self._changes = changes
        self._ignored = set(ignored)
        self._frames = 0

    def stream(self, found: dict[str, str]) -> None:
        """Look at the side data of a stream, see :func:`stream_side_data`."""
        for name, detail in found.items():
            self._look(name, detail)

    def packet(self, packet: Packet[Any]) -> None:
        """Look at a packet of the video."""
        for data in packet.iter_sidedata():
            self._look(data.data_type)

    def frame(self, frame: VideoFrame) -> None:
        """Look at a decoded frame."""
        try:
            found = list(cast("list[SideData]", frame.side_data))
        except ValueError:
            self._lose("side data of the frames of a new kind")
            return
        for data in found:
            if data.type.name == "GOP_TIMECODE" and not self._frames and not _timecode(data):
                self._ignored.add(_NAMES["GOP_TIMECODE"])  # in every MPEG-2 file, from zero
            if not _is_empty(data, frame):
                self._look(data.type.name)
        self._frames += 1

    def _look(self, name: str, detail: str = "") -> None:
        if name not in _HANDLED and name not in _OF_THE_CODING:
            self._lose(_NAMES.get(name, f"side data of the kind '{name}'"), detail)

    def _lose(self, what: str, detail: str = "") -> None:
        if what not in self._ignored:
            found = f"{detail.strip()}; " if detail.strip() else ""
            self._changes.drop(what, f"{found}there is no way to write it to the output")


def captions_of(frame: VideoFrame) -> bytes | None:
    """Return the closed captions of a decoded frame, if it has any."""
    try:
        data = frame.side_data.get("A53_CC")
    except ValueError:  # side data of a kind for which PyAV has no name
        return None
    return None if data is None else bytes(cast("SideData", data))


def stream_side_data(dump: str, index: int) -> dict[str, str]:
    """Return the side data of a stream: FFmpeg's names for it, and its descriptions.

    Args:
        dump: the description of the file, see :func:`describe_streams`.
        index: index of the stream.
    """
    match = re.search(rf"^  Stream #0:{index}\D.*\n((?:    .*\n?)*)", dump, re.MULTILINE)
    found = match and re.search(r"^    Side data:\n((?:      .*\n?)*)", match[1], re.MULTILINE)
    if not found:
        return {}
    lines = (line.partition(":") for line in found[1].splitlines())
    return {name.strip(): detail.strip() for name, _, detail in lines}


def describe_streams(container: InputContainer) -> str:
    """Return FFmpeg's description of an open file, as the ffmpeg program prints it.

    It is the only place where PyAV shows the side data of streams. It is empty unless messages of
    that level are let through.
    """
    import av.logging

    with _LEVEL:
        level = av.logging.get_level()
        av.logging.set_level(av.logging.INFO)
        try:
            dumped: str = container.dumps_format()  # type: ignore[attr-defined]
            return dumped
        finally:
            av.logging.set_level(level)


def _is_empty(data: SideData, frame: VideoFrame) -> bool:
    """Return whether side data says nothing that is worth reporting."""
    content = bytes(data)
    match data.type.name:
        case "SEI_UNREGISTERED":
            return content.startswith(_ENCODERS)
        case "PANSCAN":  # in every MPEG-2 file with a display size, and mostly the whole frame
            numbers = np.frombuffer(content, np.int32)[1:3] // 16
            positions = np.frombuffer(content, np.int16)[6:]
            whole = numbers[0] >= frame.width and numbers[1] >= frame.height
            return not positions.any() and (whole or not numbers.all())
    return False


def _timecode(data: SideData) -> int:
    """Return the time code of a group of frames (ISO/IEC 13818-2) without its marker bit."""
    return int.from_bytes(bytes(data)[:4], "little") & 0xFFEFFF
