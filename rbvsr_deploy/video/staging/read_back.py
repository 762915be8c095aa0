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
    from av.container import InputContainer, OutputContainer

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
# Tags that containers write in another form, or that say how they are written.
_ADAPTED_TAGS = frozenset(
    {"language", "handler_name", "encoder", "alpha_mode", "stereo_mode", "filename", "mimetype"}
)
_MOST_NAMES = 10  # in a message
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
        self._tags: dict[str, str] = {}
        self._chapters = self._attachments = 0

    def expect(self, output: OutputContainer) -> None:
        """Record tags, chapters and attachments, right before the header is written."""
        for tags in (output.metadata, *(stream.metadata for stream in output.streams)):
            self._tags |= {k: v for k, v in tags.items() if v and k.lower() not in _ADAPTED_TAGS}
        self._chapters = len(output.chapters())
        self._attachments = _attachments(output)

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
            found, end = self._read(path, changes)
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
        self._check_duration(end, changes)

    def _read(self, path: Path, changes: Changes) -> tuple[dict[str, list[_Record]], int | None]:
        """Return the records of a file by kind, and when it ends; compare its header."""
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
            self._check_header(file, changes)
            # Some formats count from 0, and others from the first packet.
            end = None if file.duration is None else file.duration + max(file.start_time or 0, 0)
            return found, end

    def _check_header(self, file: InputContainer, changes: Changes) -> None:
        why = f"{self._container} has no place for them"
        held = {
            value.strip()
            for tags in (file.metadata, *(stream.metadata for stream in file.streams))
            for value in tags.values()
        }
        lost = [name for name, value in self._tags.items() if value.strip() not in held]
        if lost:
            listed = ", ".join(lost[:_MOST_NAMES])
            more = f" and {len(lost) - _MOST_NAMES} more" if len(lost) > _MOST_NAMES else ""
            changes.drop(f"tags {listed}{more}", why)
        if (count := len(file.chapters())) < self._chapters:
            changes.drop(f"{self._chapters - count} of {self._chapters} chapters", why)
        if _attachments(file) < self._attachments:
            changes.drop("attachments", why)

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

    def _check_duration(self, end: int | None, changes: Changes) -> None:
        played = [r for k in ("video", "audio") for r in self._meant[k].values() if r.stamps]
        texts = [r for r in self._meant["subtitle"].values() if r.stamps]
        if end is None or self._container not in _EXACT or not played:
            return
        tolerance = 2 * _LOOSE + _longest_step((*played, *texts))
        least = max(record.end for record in played)
        most = max(record.end for record in (*played, *texts))  # some formats count texts
        if not least - tolerance <= end <= most + tolerance:
            changes.convert(
                "duration of the output",
                f"the file says {end / _MICRO:.3f} s instead of {least / _MICRO:.3f} s",
            )


def _longest_step(records: Iterable[_Record]) -> int:
    """Return the longest average distance between the packets of a stream."""
    return max(
        (max(r.stamps) - min(r.stamps)) // max(1, len(r.stamps) - 1) if r.stamps else 0
        for r in records
    )


def _attachments(file: InputContainer | OutputContainer) -> int:
    return sum(1 for stream in file.streams if stream.type == "attachment" or is_cover(stream))


def _padded(records: list[_Record], length: int) -> list[_Record]:
    return records[:length] + [_Record() for _ in range(length - len(records))]
