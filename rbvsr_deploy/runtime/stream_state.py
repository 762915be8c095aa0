"""Defines the part of a stream that is stored: finished scenes, and the state to continue from.

Both are stored with the finished segments of an output, and read again from files that may have
been changed since.
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
    def from_json(cls, data: dict[str, Any], *, first: int) -> SceneRecord:
        """Return the record that ``dataclasses.asdict`` made.

        Args:
            data: as JSON returns it.
            first: number of the scene's first frame.

        Raises:
            KeyError, TypeError, ValueError: the data is something else, or does not begin there.
        """
        found, frames, cleanings = (data[k] for k in ("first_frame", "frames", "cleanings"))
        residues = [float(residue) for residue in data["residues"]]
        if not all(type(n) is int and n >= 0 for n in (found, frames, cleanings)):
            raise TypeError(f"a scene with {data}")
        if found != first:
            raise ValueError(f"a scene that begins with frame {found}")
        return cls(first, frames, cleanings, residues)


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
            ValueError: the bytes do not hold a state.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                # Arrays are stored as they are; compressed ones could be of any size.
                if sum(member.file_size for member in archive.infolist()) > len(data):
                    raise ValueError("a state claims to be larger than its file")
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            frames, scene, chunk, cleanings = (int(n) for n in arrays.pop("position"))
            residues = [float(r) for r in arrays.pop("residues")]
        except Exception as error:  # damaged files make NumPy raise a dozen kinds
            raise ValueError(f"not a stream state: {first_line(error)}") from error
        refinement = Refinement(cleanings, residues) if arrays else None
        return cls(frames, scene, chunk, refinement, arrays)

    def fits(self, *, frames: int, network: Network, size: tuple[int, int]) -> bool:
        """Return whether a stream can continue from this state.

        Args:
            frames: number of finished frames.
            network: of the stream's engine.
            size: H and W of the frames.
        """
        if self.frames != frames or not 0 <= self.scene <= self.chunk <= frames:
            return False
        if not self.arrays:
            return self.scene == frames
        shapes = {name: array.shape for name, array in self.arrays.items()}
        return (
            shapes == {"forward_state": (1, network.channels, *size), "previous": (1, 3, *size)}
            and all(array.dtype == network.precision for array in self.arrays.values())
            and all(np.isfinite(array).all() for array in self.arrays.values())
            and self.scene < frames
            and self.refinement is not None
            and self.refinement.cleanings >= 0
        )
