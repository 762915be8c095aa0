"""Cuts an input into units of work, exactly where a single process would cut its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.jobs.segments import segment_ends
from rbvsr_deploy.runtime.stream import Settings

__all__ = ["Unit", "units_of"]


@dataclass(frozen=True, order=True)
class Unit:
    """A run of whole scenes whose segments do not depend on the frames around it."""

    first: int
    """Number of its first frame."""
    stop: int
    """Number of the frame after it."""

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.stop - self.first


def units_of(frames: int, cuts: Sequence[int], *, settings: Settings, done: int = 0) -> list[Unit]:
    """Return the units of an input, as small as possible: one ends wherever a scene and a segment
    end together.

    Args:
        frames: number of frames of the input.
        cuts: first frame of every scene but the first one.
        settings: of the stream.
        done: number of frames at its beginning that are finished; the first unit begins there, even
            within a scene.

    Raises:
        RbvsrError: a single process would not have ended a segment there.
    """
    # With no lookahead, the last frame of a scene is upscaled before its end is known.
    marked = [] if settings.lookahead == 0 else [cut for cut in cuts if 0 < cut < frames]
    ends = list(segment_ends([*marked, frames]))
    if done not in (0, frames) and done not in {end for end, _ in ends}:
        raise RbvsrError(
            f"the unfinished work ends with frame {done}, where no part of this input ends: start "
            "over without it"
        )
    borders = [end for end, ends_scene in ends if ends_scene and done < end < frames]
    edges = [done, *borders, frames]
    return [Unit(a, b) for a, b in pairwise(edges) if a < b]
