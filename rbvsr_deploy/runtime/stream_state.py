"""What outlives a stream: the scenes that have ended, and what it takes to go on after a frame.

Both are stored with the finished parts of an output, and read again from files that may have been
changed since.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines.base import Network
from rbvsr_deploy.errors import first_line
from rbvsr_deploy.runtime.refinement import Refinement

__all__ = ["SceneRecord", "StreamState"]


@dataclass(frozen=True)
class SceneRecord:
    """A scene and what dynamic refinement decided for it."""

    first_frame: int
    frames: int
    cleanings: int
    residues: list[float]
    """Mean absolute change of each cleaning pass, on the 0-255 scale."""

    @classmethod
    def from_json(cls, data: dict[str, Any], *, after: SceneRecord | None) -> SceneRecord:
        """The record that ``dataclasses.asdict`` made.

        Args:
            data: as JSON gives it back.
            after: the scene before.

        Raises:
            KeyError, TypeError, ValueError: the data is something else, or does not begin where the
                scene before ends.
        """
        first, frames, cleanings = (data[k] for k in ("first_frame", "frames", "cleanings"))
        residues = [float(residue) for residue in data["residues"]]
        if not all(type(n) is int and n >= 0 for n in (first, frames, cleanings)):
            raise TypeError(f"a scene with {data}")
        if first != (after.first_frame + after.frames if after is not None else 0):
            raise ValueError(f"a scene that begins with frame {first}")
        return cls(first, frames, cleanings, residues)


@dataclass(frozen=True, eq=False)
class StreamState:
    """All that a stream carries from one frame to the next, as a value on the host: a new stream
    that is given it goes on with the next frame as if nothing had happened. Backward states are no
    part of it: they come from the frames that follow.
    """

    frames: int
    """Frames whose pictures are made: the number of the next one."""
    scene: int
    """Number of the first frame of the scene that goes on; ``frames`` where none does."""
    part: int
    """Number of the first frame of the part that goes on; ``frames`` where one has just ended."""
    refinement: Refinement | None = None
    """What was decided for the scene that goes on."""
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Of the scene that goes on: ``forward_state`` (1, C, H, W) and ``previous``, the last cleaned
    frame (1, 3, H, W).
    """

    def to_bytes(self) -> bytes:
        """For a file; see :meth:`from_bytes`."""
        file = io.BytesIO()
        refinement = self.refinement or Refinement(0)
        arrays: dict[str, Any] = {
            "position": np.array([self.frames, self.scene, self.part, refinement.cleanings]),
            "residues": np.array(refinement.residues),
            **self.arrays,
        }
        np.savez(file, **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> StreamState:
        """The state that :meth:`to_bytes` wrote.

        Raises:
            ValueError: the bytes hold no state.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                # Arrays are stored as they are; compressed ones could be of any size.
                if sum(member.file_size for member in archive.infolist()) > len(data):
                    raise ValueError("a state claims to be larger than its file")
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            frames, scene, part, cleanings = (int(n) for n in arrays.pop("position"))
            residues = [float(r) for r in arrays.pop("residues")]
        except Exception as error:  # damaged files make NumPy raise a dozen kinds
            raise ValueError(f"no state of a stream: {first_line(error)}") from error
        refinement = Refinement(cleanings, residues) if arrays else None
        return cls(frames, scene, part, refinement, arrays)

    def fits(self, *, frames: int, network: Network, size: tuple[int, int]) -> bool:
        """Whether a stream can go on from it.

        Args:
            frames: whose pictures are made.
            network: of the stream's engine.
            size: H and W of the frames.
        """
        if self.frames != frames or not 0 <= self.scene <= self.part <= frames:
            return False
        if not self.arrays:
            return self.scene == frames
        shapes = {name: array.shape for name, array in self.arrays.items()}
        return (
            shapes == {"forward_state": (1, network.channels, *size), "previous": (1, 3, *size)}
            and all(array.dtype == network.precision for array in self.arrays.values())
            and self.scene < frames
            and self.refinement is not None
            and self.refinement.cleanings >= 0
        )
