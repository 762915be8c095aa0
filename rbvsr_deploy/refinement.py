"""Dynamic refinement: clean a scene until the cleaning changes little (paper, section 3.2).

The published code takes one decision for everything it is given at once, so chunking and batching
change its result. Here the decision belongs to the scene, which is the same whatever the engine,
the window or the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rbvsr_deploy.engines.base import Array, Engine
from rbvsr_deploy.graphs import MAX_CLEANINGS

__all__ = ["Refinement", "clean_scene"]


@dataclass(frozen=True)
class Refinement:
    """What was decided for one scene."""

    cleanings: int
    residues: list[float] = field(default_factory=list)
    """Mean absolute change of each pass over the whole scene, on the 0-255 scale."""


def clean_scene(
    engine: Engine,
    frames: Sequence[Array],
    *,
    threshold: float,
    cleanings: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Array], Refinement]:
    """Clean all frames of a scene, one to three times.

    Args:
        engine: runs ``clean``; a network without that graph (BasicVSR) leaves the frames as they
            are.
        frames: (1, 3, H, W) each, on the engine's device; at least one.
        threshold: on the 0-255 scale: cleaning goes on while the mean absolute change is at or
            above it.
        cleanings: fixed number of passes instead of a decision, 0 or more.
        progress: called with the number of frames done in the running pass.

    Returns:
        The cleaned frames, and what was decided.
    """
    cleaned = list(frames)
    residues: list[float] = []
    if not engine.network.has_cleaning:
        return cleaned, Refinement(0)
    for _ in range(MAX_CLEANINGS if cleanings is None else cleanings):
        changes = []
        for i, frame in enumerate(cleaned):
            cleaned[i], residue = engine.run("clean", frame=frame)
            changes.append(residue)
            progress(i + 1)
        per_frame = [float(engine.download(change)[0]) for change in changes]
        residues.append(255.0 * sum(per_frame) / len(per_frame))
        if cleanings is None and residues[-1] < threshold:
            break
    return cleaned, Refinement(len(residues), residues)
