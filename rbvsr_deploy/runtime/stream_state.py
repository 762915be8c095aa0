"""Defines what outlives a stream: records of finished scenes, and the state to continue from."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.runtime.refinement import Refinement

__all__ = ["SceneRecord", "StreamState"]


@dataclass(frozen=True)
class SceneRecord:
    """Records a scene and what dynamic refinement decided for it."""

    first_frame: int
    frames: int
    cleanings: int
    residues: list[float]
    """Mean absolute change of each cleaning pass, on the 0-255 scale."""


@dataclass(frozen=True, eq=False)
class StreamState:
    """Holds everything a stream carries from one frame to the next, as a value on the host: a new
    stream given this state continues with the next frame as if nothing had happened. Backward
    states are not included: they come from the frames that follow.
    """

    frames: int
    """Number of finished frames, which is the number of the next one."""
    scene: int
    """Number of the first frame of the current scene; ``frames`` between scenes."""
    chunk: int
    """Number of the first frame of the current chunk; ``frames`` between chunks."""
    refinement: Refinement | None = None
    """Decision for the current scene."""
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Arrays of the current scene: ``forward_state`` (1, C, H, W) and ``previous``, the last
    cleaned frame (1, 3, H, W).
    """

    @classmethod
    def between_scenes(cls, frames: int) -> StreamState:
        """Return the state after some frames where no scene continues."""
        return cls(frames, scene=frames, chunk=frames)

    def to_bytes(self) -> bytes:
        """Serialise the state for a file; see :meth:`from_bytes`."""
        file = io.BytesIO()
        refinement = self.refinement or Refinement(0)
        arrays: dict[str, Any] = {
            "position": np.array([self.frames, self.scene, self.chunk, refinement.cleanings]),
            "residues": np.array(refinement.residues),
            **self.arrays,
        }
        np.savez(file, **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> StreamState:
        """Return the state that :meth:`to_bytes` wrote.

        Raises:
            ValueError, KeyError: the bytes do not hold a state.
        """
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        frames, scene, chunk, cleanings = (int(n) for n in arrays.pop("position"))
        residues = [float(r) for r in arrays.pop("residues")]
        refinement = Refinement(cleanings, residues) if arrays else None
        return cls(frames, scene, chunk, refinement, arrays)
