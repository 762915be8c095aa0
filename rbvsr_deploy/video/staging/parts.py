"""What the disk keeps of a finished part of an output."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rbvsr_deploy.files import sha256
from rbvsr_deploy.video.staging.job_folder import is_stored_name

__all__ = ["PartRecord", "StoredFile"]


@dataclass(frozen=True)
class StoredFile:
    """A file of a job folder, with what it takes to find it damaged."""

    name: str
    """Relative to the job folder."""
    size: int
    """Bytes."""
    sha256: str | None = None
    """Hexadecimal; ``None``: the size is all that is checked."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StoredFile:
        """Reads what ``dataclasses.asdict`` made.

        Raises:
            KeyError, TypeError, ValueError: the data is something else, or names a file that is
                not one of a part, such as one outside of the job folder.
        """
        name, size, digest = str(data["name"]), data["size"], data["sha256"]
        if not is_stored_name(name):
            raise ValueError(f"a part with a file {name!r}")
        if type(size) is not int or not isinstance(digest, str | None):
            raise TypeError(f"a file of {size!r} bytes with checksum {digest!r}")
        return cls(name, size, digest)

    def is_whole(self, folder: Path) -> bool:
        """Whether the file is there as it was written."""
        path = folder / self.name
        try:
            if path.stat().st_size != self.size:
                return False
            if self.sha256 is None:
                return True
            return sha256(path) == self.sha256
        except OSError:
            return False


@dataclass(frozen=True)
class PartRecord:
    """A run of frames that is encoded and on the disk."""

    frames: int
    """How many, at least 1."""
    note: dict[str, Any]
    """What the caller of ``Sink.end_part`` wants to read again, as JSON holds it."""
    media: dict[str, Any] = field(default_factory=dict)
    """What the sink needs to go on behind the part, as JSON holds it."""
    files: tuple[StoredFile, ...] = ()
    attachment: StoredFile | None = None
    """The caller's own data; the file is there for the last part only."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PartRecord:
        """Reads what ``dataclasses.asdict`` made.

        Raises:
            KeyError, TypeError, ValueError: the data is something else.
        """
        attachment = data["attachment"]
        frames = int(data["frames"])
        if frames < 1:
            raise ValueError(f"a part of {frames} frames")
        return cls(
            frames=frames,
            note=dict(data["note"]),
            media=dict(data["media"]),
            files=tuple(StoredFile.from_json(file) for file in data["files"]),
            attachment=None if attachment is None else StoredFile.from_json(attachment),
        )
