"""Seeks to the key frame before a time, so that earlier packets need not be decoded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from rbvsr_deploy.video.timing.file_clock import FileClock

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = ["has_index", "packets_around"]

# Formats with an index of key frames and their times.
_INDEXED = ("mp4", "matroska", "avi")
# Seconds between consecutive packets; a longer gap counts as a jump of the clock.
_LONGEST_GAP = 10
# Maximum number of frames that can be stored before one that is shown earlier, in H.264 and HEVC.
_REORDERED = 16
# Maximum number of packets between two key frames to keep in memory.
_LONGEST_HELD = 2000


def has_index(container: InputContainer) -> bool:
    """Return whether the format has an index of times, so that seeking is reliable.

    In other formats, FFmpeg estimates the position from the length of the file.
    """
    return any(name in container.format.name for name in _INDEXED)


def packets_around(
    clock: FileClock, stream: VideoStream, *, target: Fraction, period: Fraction
) -> Iterator[Packet[VideoStream]]:
    """Yield the packets from the last key frame that is shown at or before a time.

    If packet times are missing or jump, the packets start at an earlier key frame.

    Args:
        clock: the clock of a newly opened file.
        stream: its video stream.
        target: the time in ticks of the stream.
        period: average duration of a frame, in the same ticks.

    Raises:
        av.FFmpegError: the file cannot be read.
    """
    margin = _REORDERED * period
    gap = _LONGEST_GAP / (stream.time_base or 1)
    held: list[Packet[VideoStream]] = []
    last: int | None = None
    packets = _seek(clock, stream, to=target - margin)
    for packet in packets:
        stamp = _stamp(packet)
        # If only decoding times are known, frames are shown some packets later.
        limit = target if packet.pts is not None else target - margin
        if packet.is_keyframe and stamp is not None and stamp <= limit:
            held.clear()
        held.append(packet)
        jumps = stamp is None or (last is not None and abs(stamp - last) > gap)
        if jumps or (stamp is not None and stamp > target) or len(held) == _LONGEST_HELD:
            break
        last = stamp
    yield from held
    yield from packets


def _seek(clock: FileClock, stream: VideoStream, *, to: Fraction) -> Iterator[Packet[VideoStream]]:
    """Return the packets from a key frame at or before a time.

    Without an index, all packets are returned, which is fast as they are not decoded.
    """
    start = stream.start_time or 0
    container = clock.container
    if to > start and has_index(container):
        container.seek(math.floor(to), stream=stream)
        packets = clock.packets([stream])
        first = next(packets)
        stamp = _stamp(first)
        if first.is_keyframe and stamp is not None and stamp <= to:
            return itertools.chain((first,), packets)
        container.seek(start, stream=stream)
    return clock.packets([stream])


def _stamp(packet: Packet[VideoStream]) -> int | None:
    return packet.pts if packet.pts is not None else packet.dts
