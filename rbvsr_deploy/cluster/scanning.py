"""Finds the scenes of an input with several workers, each of which reads a piece of it.

A piece begins some frames before the last one ends. Where both give the same frames there, what
follows is the same as in one pass: a decoder knows nothing but the frames it has given, and a cut
depends on the four frames before it. Anything unusual is left to a single pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from rbvsr_deploy.cluster.index import FrameIndex
from rbvsr_deploy.cluster.messages import Scanned, ScanTask
from rbvsr_deploy.cluster.scheduler import Scheduler
from rbvsr_deploy.cluster.work import WorkItem
from rbvsr_deploy.runtime.scenes import SceneCuts
from rbvsr_deploy.video import ReadOptions, Source, VideoSource

__all__ = ["scan_together"]

PIECE = 1500
"""Frames of a piece, by which even a short wait for the last one pays."""
OVERLAP = 32
"""Frames that a piece has in common with the one before; a decoder refers to 16 at most."""


def scan_together(
    source: Source, cuts: SceneCuts, *, path: Path, reading: ReadOptions, scheduler: Scheduler
) -> FrameIndex | None:
    """Return the index of an input, or ``None`` if it has to be read in a single pass.

    Args:
        source: the opened input, which is not read.
        cuts: says how scenes are found.
        path: path of the input for the workers.
        reading: how they read it.
        scheduler: hands the pieces out.
    """
    count = source.frame_count
    if not isinstance(source, VideoSource) or not source.is_seekable or not count:
        return None
    if count < 2 * PIECE:
        return None
    period = 1 / (source.rate * source.time_base)  # ticks per frame
    borders = [round(number * period) for number in range(PIECE, count - PIECE // 2, PIECE)]
    edges: list[int | None] = [None, *borders, None]
    items = []
    for begin, stop in pairwise(edges):
        task = ScanTask(
            next(scheduler.numbers),
            path=path,
            reading=reading,
            begin=None if begin is None else begin - round(OVERLAP * period),
            stop=stop,
            detect=cuts.given is None,
            keeps_captions=source.keeps_captions,
        )
        items.append(WorkItem(task, PIECE, name=f"scenes from {_time(begin, source.time_base)}"))
    pieces: dict[int, Scanned] = {}

    def done(number: int, scanned: Scanned | None) -> None:
        if scanned is not None:
            pieces[number] = scanned

    scheduler.run(
        items,
        done=lambda item, answer: done(item.task.number, answer.scanned),
        failed=lambda item, why: None,  # a single pass gives the error, or does not
        what="scenes",
    )
    if len(pieces) < len(items):
        return None
    index = joined([pieces[item.task.number] for item in items], given=cuts.given)
    return index if index is not None and index.frames == count else None


def joined(pieces: Sequence[Scanned], *, given: Sequence[int] | None) -> FrameIndex | None:
    """Return the index of consecutive pieces; ``None`` unless they overlap as they should.

    Args:
        pieces: each but the first begins within the one before.
        given: cuts, if they are not detected.
    """
    stamps, sums = bytearray(), bytearray()
    cuts: list[int] = []
    changes: dict[tuple[str, str, str], None] = {}
    for piece in pieces:
        if not piece.is_regular:
            return None
        changes.update(dict.fromkeys(piece.changes))
        begins = len(stamps) // 8
        overlap = 0
        if begins:
            first = piece.stamps[:8]
            overlap = begins - _find(stamps, first)
            if overlap < OVERLAP // 2 or 8 * overlap > len(piece.stamps):
                return None
            same = stamps[-8 * overlap :] == piece.stamps[: 8 * overlap]
            if not same or sums[-4 * overlap :] != piece.sums[: 4 * overlap]:
                return None
        stamps += piece.stamps[8 * overlap :]
        sums += piece.sums[4 * overlap :]
        cuts += [begins + cut - overlap for cut in piece.cuts if cut >= overlap]
    frames = len(sums) // 4
    if given is not None:
        cuts = [cut for cut in given if cut < frames]
    return FrameIndex(
        stamps=bytes(stamps),
        sums=bytes(sums),
        cuts=[cut for cut in cuts if cut > 0],
        lost=0,
        damaged=0,
        changes=list(changes),
    )


def _find(stamps: bytearray, stamp: bytes) -> int:
    """Return the place of a timestamp near the end, or the number of timestamps if it is not
    there.
    """
    count = len(stamps) // 8
    for place in range(count - 1, max(-1, count - 4 * OVERLAP), -1):
        if stamps[8 * place : 8 * place + 8] == stamp:
            return place
    return count


def _time(begin: int | None, time_base: Fraction) -> str:
    return f"{float((begin or 0) * time_base):.0f} s"
