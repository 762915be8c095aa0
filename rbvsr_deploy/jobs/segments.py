"""Decides where the segments of an output end; the output's bytes depend on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["LONGEST", "SHORTEST", "ends_segment", "segment_ends"]

LONGEST = 120
"""Frames of a segment, which begins with a key frame: as far apart as in streamed video."""
SHORTEST = 48
"""Frames from which on a segment ends with its scene, where a key frame is due anyway."""


def ends_segment(length: int, *, ends_scene: bool) -> bool:
    """Return whether a segment ends after a number of frames.

    Args:
        length: frames of the segment so far.
        ends_scene: whether the last of them is the last of its scene.
    """
    return length >= (SHORTEST if ends_scene else LONGEST)


def segment_ends(scene_ends: Iterable[int]) -> Iterator[tuple[int, bool]]:
    """Yield where the segments of a whole output end, without its last one if that is short.

    Args:
        scene_ends: number of the frame after each scene, increasing.

    Yields:
        Number of the frame after each segment, and whether a scene ends there too.
    """
    start = 0
    for scene_end in scene_ends:
        while scene_end - start > LONGEST:
            start += LONGEST
            yield start, False
        if ends_segment(scene_end - start, ends_scene=True):
            start = scene_end
            yield start, True
