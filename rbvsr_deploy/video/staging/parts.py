"""Records of the finished segments of an output, as stored in a job folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rbvsr_deploy.files import sha256
from rbvsr_deploy.video.staging.job_folder import is_stored_name

__all__ = ["SegmentRecord", "StoredFile", "read_records", "sealed", "unsealed"]

_SEAL = "checksum of this record"


@dataclass(frozen=True)
class StoredFile:
    """Describes a file in a job folder, with size and checksum to detect damage."""

    name: str
    """Path relative to the job folder."""
    size: int
    """Size in bytes."""
    sha256: str | None = None
    """Checksum in hexadecimal; ``None`` if only the size is checked."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StoredFile:
        """Restore a file description from the output of ``dataclasses.asdict``.

        Raises:
            KeyError, TypeError, ValueError: the data is malformed, or names a file that cannot
                belong to a segment, such as one outside the job folder.
        """
        name, size, digest = str(data["name"]), data["size"], data["sha256"]
        if not is_stored_name(name):
            raise ValueError(f"{name!r} cannot be a file of a segment")
        if type(size) is not int or not isinstance(digest, str | None):
            raise TypeError(f"a file of {size!r} bytes with checksum {digest!r}")
        return cls(name, size, digest)

    def is_whole(self, folder: Path) -> bool:
        """Return whether the file exists and is undamaged."""
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
class SegmentRecord:
    """Describes a finished segment: consecutive frames that are encoded and on disk."""

    frames: int
    """Number of frames, at least 1."""
    note: dict[str, Any]
    """Data of the caller of ``Sink.end_segment``, JSON-serialisable."""
    media: dict[str, Any] = field(default_factory=dict)
    """Data the sink needs to continue after the segment, JSON-serialisable."""
    files: tuple[StoredFile, ...] = ()
    attachment: StoredFile | None = None
    """Binary data of the caller; its file exists for the last segment only."""

    def to_bytes(self) -> bytes:
        """Serialise the record as JSON with a checksum.

        Raises:
            TypeError: the note is not JSON-serialisable.
        """
        return sealed(dataclasses.asdict(self))

    @classmethod
    def from_bytes(cls, content: bytes) -> SegmentRecord:
        """Restore a record from :meth:`to_bytes`, or from an earlier version without a checksum.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, RecursionError: the bytes are not a
                valid record, or their checksum does not match.
        """
        data = unsealed(content)
        frames, attachment = data["frames"], data["attachment"]
        if type(frames) is not int or frames < 1:
            raise ValueError(f"a segment must have at least 1 frame, got {frames!r}")
        return cls(
            frames=frames,
            note=dict(data["note"]),
            media=dict(data["media"]),
            files=tuple(StoredFile.from_json(file) for file in data["files"]),
            attachment=None if attachment is None else StoredFile.from_json(attachment),
        )


def read_records(folder: Path) -> list[SegmentRecord]:
    """Read the records of all finished segments of a job folder, whose files have to be there.

    Raises:
        OSError, KeyError, TypeError, ValueError, AttributeError: a record is missing or damaged.
    """
    names = sorted(path.name for path in folder.glob("part-*.json"))
    if names != [f"part-{number:06d}.json" for number in range(1, len(names) + 1)] or not names:
        raise ValueError(f"{folder} has segments {', '.join(names)}")
    records = [SegmentRecord.from_bytes((folder / name).read_bytes()) for name in names]
    for file in (file for record in records for file in record.files):
        if (folder / file.name).stat().st_size != file.size:
            raise ValueError(f"{folder / file.name} has another size than recorded")
    return records


def sealed(data: dict[str, Any]) -> bytes:
    """Serialise a record as JSON with a checksum.

    Raises:
        TypeError: it is not JSON-serialisable.
    """
    data = json.loads(json.dumps(data))
    return json.dumps({**data, _SEAL: _checksum(data)}, indent=1).encode()


def unsealed(content: bytes) -> dict[str, Any]:
    """Restore a record from :func:`sealed`, or from an earlier version without a checksum.

    Raises:
        ValueError, RecursionError: it is not a record, or its checksum does not match.
    """
    data = json.loads(content)
    if not isinstance(data, dict):
        raise ValueError("not a record")
    seal = data.pop(_SEAL, None)
    if seal is not None and seal != _checksum(data):
        raise ValueError("the checksum of the record does not match")
    return data


def _checksum(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
