"""Packets of a video from shortly before a time on, without decoding what comes before."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = ["has_index", "packets_around"]

# Formats with an index of key frames and their times.
_INDEXED = ("mp4", "matroska", "avi")
# Seconds between packets in a row that no clock jumps.
_LONGEST_GAP = 10
# Pictures that can be stored before one that is shown earlier; H.264 and HEVC allow no more.
_REORDERED = 16
# Packets between two key frames that are kept in memory at most.
_LONGEST_HELD = 2000


def has_index(container: InputContainer) -> bool:
    """Whether the format tells where in the file a time is, so that seeking to it can be trusted.

    In others FFmpeg guesses it from the length of the file.
    """
    return any(name in container.format.name for name in _INDEXED)


def packets_around(
    container: InputContainer, stream: VideoStream, *, target: Fraction, period: Fraction
) -> Iterator[Packet[VideoStream]]:
    """Yields the packets from the last key frame that is shown at or before a time.

    Where the times of packets are missing or jump, more packets come: from a key frame before on.

    Args:
        container: newly opened.
        stream: its video.
        target: in ticks of the stream.
        period: average duration of a frame, in the same ticks.

    Raises:
        av.FFmpegError: the file cannot be read.
    """
    margin = _REORDERED * period
    gap = _LONGEST_GAP / (stream.time_base or 1)
    held: list[Packet[VideoStream]] = []
    last: int | None = None
    packets = _seek(container, stream, to=target - margin)
    for packet in packets:
        stamp = _stamp(packet)
        # Where only decoding times are told, frames are shown later by some packets.
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


def _seek(
    container: InputContainer, stream: VideoStream, *, to: Fraction
) -> Iterator[Packet[VideoStream]]:
    """The packets from a key frame on, at or before a time; where the format has no index, all,
    which is quick without decoding.
    """
    start = stream.start_time or 0
    if to > start and has_index(container):
        container.seek(math.floor(to), stream=stream)
        packets = container.demux(stream)
        first = next(packets)
        stamp = _stamp(first)
        if first.is_keyframe and stamp is not None and stamp <= to:
            return itertools.chain((first,), packets)
        container.seek(start, stream=stream)
    return container.demux(stream)


def _stamp(packet: Packet[VideoStream]) -> int | None:
    return packet.pts if packet.pts is not None else packet.dts
