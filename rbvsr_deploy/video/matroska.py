"""Reads and edits details of Matroska and WebM files that PyAV does not expose.

The format is EBML (RFC 8794): nested elements, each with an ID, a length and its content.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

__all__ = ["segment_end", "write_sample_aspect"]

_EBML_HEADER, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_TRACKS, _TRACK_ENTRY, _VIDEO, _CRC32 = 0x1654AE6B, 0xAE, 0xE0, 0xBF
_PIXEL_WIDTH, _DISPLAY_WIDTH, _DISPLAY_UNIT = 0xB0, 0x54B0, 0x54B2
_HEAD = 1 << 16  # bytes; in files written by FFmpeg, this includes the tracks


@dataclass(frozen=True)
class _Element:
    number: int
    start: int
    content: int
    """Position of the first byte of the content."""
    end: int | None
    """Position after the content; ``None``: unknown, as in live streams."""


def segment_end(path: Path) -> int | None:
    """Return the length in bytes that a file declares; ``None`` if it declares none."""
    with path.open("rb") as file:
        start = file.read(4096)
    header = _element(start, 0)
    if header is None or header.number != _EBML_HEADER or header.end is None:
        return None
    segment = _element(start, header.end)
    return segment.end if segment is not None and segment.number == _SEGMENT else None


def write_sample_aspect(path: Path, aspect: Fraction) -> bool:
    """Write the pixel aspect ratio of the first video track, for which PyAV has no field.

    FFmpeg writes the length of the track entry in eight bytes although fewer are enough. The bytes
    saved there are used for the display width, so that nothing else in the file moves.

    Args:
        path: a complete file written by FFmpeg.
        aspect: width of a pixel divided by its height.

    Returns:
        Whether the file has such a track with enough room.

    Raises:
        OSError: the file cannot be read or written.
    """
    with path.open("r+b") as file:
        data = bytearray(file.read(_HEAD))
        for entry, video, tracks in _video_entries(data):
            settings = {child.number: child for child in _children(data, video)}
            if (pixels := settings.get(_PIXEL_WIDTH)) is None:
                return False
            width = round(int.from_bytes(data[pixels.content : pixels.end], "big") * aspect)
            if not 0 < width < 2**32:
                return False
            shown = width.to_bytes(4, "big").lstrip(b"\0")
            new = _DISPLAY_WIDTH.to_bytes(2, "big") + bytes([0x80 | len(shown)]) + shown
            assert entry.end is not None
            assert video.end is not None
            room = entry.content - entry.start - 1  # size of the length field of the entry
            length = room - len(new)
            size, inner = entry.end - entry.content + len(new), video.end - video.content + len(new)
            if length < 1 or size >= 1 << 7 * length or inner > 126:
                return False
            if _DISPLAY_UNIT in settings:
                data[settings[_DISPLAY_UNIT].content] = 0  # pixels, not "unknown"
            data[video.start + 1 : video.end] = (
                bytes([0x80 | inner]) + data[video.content : video.end] + new
            )
            data[entry.start + 1 : entry.content] = (size | 1 << 7 * length).to_bytes(length, "big")
            _update_checksum(data, tracks)
            file.seek(0)
            file.write(data)
            return True
    return False


def _video_entries(data: bytearray) -> Iterator[tuple[_Element, _Element, _Element]]:
    """Yield the entry and video settings of every video track, and the track list."""
    header = _element(data, 0)
    if header is None or header.end is None:
        return
    segment = _element(data, header.end)
    if segment is None:
        return
    for tracks in _children(data, segment):
        if tracks.number != _TRACKS:
            continue
        for entry in _children(data, tracks):
            for video in _children(data, entry):
                # FFmpeg writes a length of one byte.
                if video.number == _VIDEO and video.content == video.start + 2:
                    yield entry, video, tracks


def _update_checksum(data: bytearray, tracks: _Element) -> None:
    """Update the checksum of the track list, which is its first element if there is one."""
    first = next(iter(_children(data, tracks)), None)
    if first is not None and first.number == _CRC32 and first.end is not None:
        checksum = zlib.crc32(data[first.end : tracks.end])
        data[first.content : first.end] = checksum.to_bytes(4, "little")


def _children(data: bytes | bytearray, parent: _Element) -> Iterator[_Element]:
    """Yield the children of an element that are completely within the data."""
    at, end = parent.content, len(data) if parent.end is None else min(parent.end, len(data))
    while at < end:
        child = _element(data, at)
        if child is None or child.end is None or child.end > end or child.number == _CLUSTER:
            return
        yield child
        at = child.end


def _element(data: bytes | bytearray, at: int) -> _Element | None:
    """Return the element at a position; ``None`` if there is none, or it is truncated."""
    if at + 12 > len(data) or not data[at]:
        return None
    id_length = 9 - data[at].bit_length()
    first = data[at + id_length]
    if not first:
        return None
    size_length = 9 - first.bit_length()
    content = at + id_length + size_length
    number = int.from_bytes(data[at : at + id_length], "big")
    mask = (1 << 7 * size_length) - 1
    size = int.from_bytes(data[at + id_length : content], "big") & mask
    return _Element(number, at, content, None if size == mask else content + size)
