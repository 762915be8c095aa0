"""Reads and writes a job folder's ``job.json``: what the work is, and whether it was published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rbvsr_deploy.video.staging.job_folder import JOURNAL, JobFolder
from rbvsr_deploy.video.staging.parts import sealed, unsealed

__all__ = ["LARGEST_RECORD", "difference", "inode", "read_journal", "write_journal"]

_SCHEMA = 1
LARGEST_RECORD = 2**24
"""Maximum size in bytes of a segment's JSON record; one scene takes about a hundred."""
_LARGEST_JOURNAL = 2**20  # bytes of job.json
_LONGEST = 200  # characters of a name or value of an identity in a message
_SHOWN = {"picture size": "image size"}
"""Key of an identity, as in job folders since the first version -> its name in messages."""


def read_journal(storage: JobFolder) -> dict[str, Any]:
    """Read ``job.json``; empty if it is missing or damaged."""
    try:
        return unsealed(storage.read(JOURNAL, at_most=_LARGEST_JOURNAL))
    except (OSError, ValueError, RecursionError):
        return {}


def write_journal(
    storage: JobFolder, identity: dict[str, str], *, published: list[int] | None = None
) -> None:
    """Write ``job.json``.

    Args:
        storage: the job folder.
        identity: what the output depends on, by readable names.
        published: inode of the file that is about to be published.

    Raises:
        OSError: the folder cannot be written to.
    """
    data = {"schema": _SCHEMA, "identity": identity, "published": published}
    storage.write(JOURNAL, sealed(data))


def difference(journal: dict[str, Any], identity: dict[str, str]) -> str | None:
    """Return why the work of a journal cannot be continued, as a clause; ``None`` if it can."""
    if journal.get("schema", _SCHEMA) != _SCHEMA:
        return "the unfinished work is from another version of this program"
    stored = journal.get("identity")
    if not isinstance(stored, dict) or not all(isinstance(v, str) for v in stored.values()):
        return "the record of the unfinished work is damaged"
    for key in [*identity, *stored]:
        old, new = stored.get(key, "not known"), identity.get(key, "not known")
        if old != new:
            name = _SHOWN.get(key, key)
            return f"the {name[:_LONGEST]} was {old[:_LONGEST]} and is {new[:_LONGEST]}"
    return None


def inode(path: Path) -> list[int]:
    """Return what identifies a file even after it is renamed."""
    status = path.stat()
    return [status.st_dev, status.st_ino]
