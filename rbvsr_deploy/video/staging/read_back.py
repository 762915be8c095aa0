"""Reads a written file back and compares it with what was meant, before it is published.

Only packets are read, nothing is decoded. Muxers may move, merge or drop packets without an error.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.changes import Changes
from rbvsr_deploy.video.pyav import media_errors, open_input
from rbvsr_deploy.video.stream_choice import is_cover

if TYPE_CHECKING:
    from av import Packet
    from av.stream import Stream

__all__ = ["Ledger"]

_MICRO = 1_000_000  # all times here are in microseconds
# Largest difference of a timestamp: twice the tick of the coarsest containers.
_TOLERANCE = 2_500
# Largest difference of the beginning and end of audio: the packets of some formats are regrouped.
_LOOSE = 150_000
# Containers whose times begin at 0, and those of them that keep every packet and its time.
_FROM_ZERO = ("mp4", "mov", "matroska", "webm", "avi")
_EXACT = ("mp4", "mov", "matroska", "webm")
_COMPARED = ("video", "audio", "subtitle")
_EMPTY_TEXT = 2  # bytes: MP4 has a text of this size for every pause


class _Record:
    """Collects the packets of one stream."""

    def __init__(self) -> None:
        self.stamps = array("q")
        self.end = 0

    def add(self, packet: Packet[Any], *, use_dts: bool = False) -> None:
        stamp = packet.pts if packet.pts is not None and not use_dts else packet.dts
        if stamp is None:
            return
        time = round(stamp * packet.time_base * _MICRO)
        self.stamps.append(time)
        self.end = max(self.end, time + round((packet.duration or 0) * packet.time_base * _MICRO))


class Ledger:
    """Records the packets that are passed to a muxer, and finds out whether they arrived.

    Args:
        container: FFmpeg's name of the output's format.
    """

    def __init__(self, container: str) -> None:
        self._container = container
        self._meant: dict[str, dict[int, _Record]] = {kind: {} for kind in _COMPARED}

    def expect(self, stream: Stream) -> None:
        """Record that a stream is to be in the file."""
        if stream.type in _COMPARED and not is_cover(stream):
            self._meant[stream.type].setdefault(stream.index, _Record())

    def note(self, packet: Packet[Any]) -> None:
        """Record a packet right before it is written."""
        stream = packet.stream
        if stream.type in _COMPARED and not is_cover(stream):
            self._meant[stream.type].setdefault(stream.index, _Record()).add(packet)

    def check(self, path: Path, *, name: Path, changes: Changes) -> None:
        """Compare the finished file with the record.

        Args:
            path: the file.
            name: the output's final path, for messages.
            changes: the source's list, for differences in what is not the video.

        Raises:
            MediaError: the file cannot be read, or its video is not what was written.
        """
        with media_errors(f"cannot read {name} back"):
            found, duration = self._read(path)
        offset = 0
        for kind, meant in self._meant.items():
            expected = [meant[index] for index in sorted(meant)]
            for number, (given, read) in enumerate(
                zip(expected, _padded(found[kind], len(expected)), strict=True), start=1
            ):
                problem = self._difference(kind, given, read, offset=offset)
                if kind == "video" and given.stamps:
                    if problem is not None:
                        raise MediaError(
                            f"{name} is not written correctly: {problem}; choose another format, "
                            "such as .mkv"
                        )
                    if self._container not in _FROM_ZERO:
                        offset = min(read.stamps) - min(given.stamps)
                elif problem is not None:
                    changes.convert(f"{kind} track {number} of the output", problem)
        self._check_duration(duration, changes)

    def _read(self, path: Path) -> tuple[dict[str, list[_Record]], int | None]:
        """Return the records of a file by kind, and its duration."""
        use_dts = self._container == "avi"  # FFmpeg guesses presentation times there
        records: defaultdict[int, _Record] = defaultdict(_Record)
        with open_input(path) as file:
            streams = [s for s in file.streams if s.type in _COMPARED and not is_cover(s)]
            for packet in file.demux(streams) if streams else ():
                empty = packet.stream.type == "subtitle" and packet.size <= _EMPTY_TEXT
                if packet.size and not empty:
                    records[packet.stream.index].add(packet, use_dts=use_dts)
            found: dict[str, list[_Record]] = {
                kind: [records[s.index] for s in streams if s.type == kind] for kind in _COMPARED
            }
            return found, file.duration

    def _difference(self, kind: str, given: _Record, read: _Record, *, offset: int) -> str | None:
        """Return how a stream differs, as the end of a sentence; ``None`` if it does not."""
        if not given.stamps:
            return None
        count, number = len(given.stamps), len(read.stamps)
        if not number:
            return f"none of its {count} packets can be read back"
        exact = self._container in _EXACT or kind == "video"
        regrouped = kind == "audio" and not exact
        if count != number and not regrouped and not self._splits(kind, given, read):
            return f"{number} of its {count} packets can be read back"
        if self._container not in _FROM_ZERO and kind == "video":
            offset = min(read.stamps) - min(given.stamps)
        limit = _LOOSE if kind == "audio" else _TOLERANCE
        if count == number and kind != "audio":
            pairs = list(zip(sorted(given.stamps), sorted(read.stamps), strict=True))
            if self._container == "avi":  # always shows the first frame from 0 on
                del pairs[0]
            worst = max((abs(b - offset - a) for a, b in pairs), default=0)
        else:
            worst = abs(min(read.stamps) - offset - min(given.stamps))
        if worst > limit:
            return f"its times are up to {worst / _MICRO:.3f} s off"
        late = abs(read.end - offset - given.end)
        if kind != "video" and late > _LOOSE:
            return f"it ends {late / _MICRO:.3f} s too early or too late"
        return None

    def _splits(self, kind: str, given: _Record, read: _Record) -> bool:
        """Return whether a reader only groups the samples of audio in another way, as of PCM."""
        return kind == "audio" and abs(read.end - given.end) <= _LOOSE

    def _check_duration(self, duration: int | None, changes: Changes) -> None:
        records = [r for meant in self._meant.values() for r in meant.values() if r.stamps]
        if duration is None or self._container not in _EXACT or not records:
            return
        end = max(record.end for record in records)
        if abs(duration - end) > 2 * _LOOSE + _longest_step(records):
            changes.convert(
                "duration of the output",
                f"the file says {duration / _MICRO:.3f} s instead of {end / _MICRO:.3f} s",
            )


def _longest_step(records: Iterable[_Record]) -> int:
    """Return the longest average distance between the packets of a stream."""
    return max(
        (max(r.stamps) - min(r.stamps)) // max(1, len(r.stamps) - 1) if r.stamps else 0
        for r in records
    )


def _padded(records: list[_Record], length: int) -> list[_Record]:
    return records[:length] + [_Record() for _ in range(length - len(records))]
