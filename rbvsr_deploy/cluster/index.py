"""Reads an input once before it is shared out: finds its scenes, and identifies its frames.

Workers seek to their part of the input. What a decoder gives after seeking is not always what it
gives in a whole pass, so every frame is compared with its checksum here.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable

import msgspec

from rbvsr_deploy.runtime.scenes import SceneCuts
from rbvsr_deploy.video import Frame, Source
from rbvsr_deploy.video.changes import Changes

__all__ = ["FrameIndex", "checksum", "listed", "scan"]

_SCHEMA = 1


class FrameIndex(msgspec.Struct, frozen=True):
    """Lists the frames of an input, and what a whole pass finds out about it."""

    stamps: bytes
    """Timestamp of each frame as a signed 64-bit integer, in the machine's byte order."""
    sums: bytes
    """Checksum of each frame as an unsigned 32-bit integer."""
    cuts: list[int]
    """First frame of every scene but the first one."""
    lost: int
    """Frames that could not be decoded."""
    damaged: int
    """Frames that were decoded with damage."""
    changes: list[tuple[str, str, str]]
    """Kind, thing and reason of what the output keeps, converts and drops."""
    schema: int = _SCHEMA
    check: int = 0
    """Checksum of stamps and sums."""

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.sums) // 4

    def to_bytes(self) -> bytes:
        """Serialise the index for a file."""
        return msgspec.msgpack.encode(msgspec.structs.replace(self, check=self._sum()))

    @classmethod
    def from_bytes(cls, data: bytes) -> FrameIndex:
        """Return the index that :meth:`to_bytes` wrote.

        Raises:
            ValueError: the bytes do not hold an index.
        """
        try:
            index = msgspec.msgpack.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise ValueError(f"not a frame index: {error}") from error
        if index.schema != _SCHEMA or index.check != index._sum() or not index.frames:
            raise ValueError("not a frame index of this version")
        if len(index.stamps) != 2 * len(index.sums) or index.cuts != sorted(set(index.cuts)):
            raise ValueError("a damaged frame index")
        return index

    def part(self, first: int, stop: int) -> tuple[bytes, bytes]:
        """Return stamps and sums of the frames from ``first`` to before ``stop``."""
        return self.stamps[8 * first : 8 * stop], self.sums[4 * first : 4 * stop]

    def restore(self, changes: Changes) -> None:
        """Add what was found out to the changes of a source that is not read."""
        actions = {"kept": changes.keep, "converted": changes.convert, "dropped": changes.drop}
        for kind, what, reason in self.changes:
            actions[kind](what, reason)

    def _sum(self) -> int:
        return zlib.crc32(self.sums, zlib.crc32(self.stamps))


def scan(
    source: Source,
    cuts: SceneCuts,
    *,
    progress: Callable[[int], None],
    note: Callable[[Frame], object] = lambda frame: None,
) -> FrameIndex:
    """Read a whole input.

    Args:
        source: a newly opened source.
        cuts: finds the scenes.
        progress: called with the number of frames read.
        note: called with every frame; see ``Sink.note``.

    Raises:
        MediaError: the input cannot be read.
    """
    stamps, sums, found = array("q"), array("I"), []
    for number, (frame, cut) in enumerate(cuts.mark(source, skip=0)):
        if cut and number:
            found.append(number)
        stamps.append(number if frame.pts is None else frame.pts)
        sums.append(checksum(frame))
        note(frame)
        progress(number + 1)
    return FrameIndex(
        stamps=stamps.tobytes(),
        sums=sums.tobytes(),
        cuts=found,
        lost=source.lost_frames,
        damaged=source.damaged_frames,
        changes=listed(source.changes),
    )


def listed(changes: Changes) -> list[tuple[str, str, str]]:
    """Return kind, thing and reason of every change."""
    lists = {"kept": changes.kept, "converted": changes.converted, "dropped": changes.dropped}
    return [(kind, item.what, item.reason) for kind, of in lists.items() for item in of]


def checksum(frame: Frame) -> int:
    """Return a checksum of everything of a frame that the output depends on."""
    meta = (frame.pts, frame.duration, frame.name, frame.image.shape, str(frame.image.dtype))
    total = zlib.crc32(repr(meta).encode())
    for data in (frame.captions, frame.opacity, frame.image):
        if data is not None:
            total = zlib.crc32(data, total)  # type: ignore[arg-type]
    return total
