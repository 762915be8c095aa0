"""Lists what of an input the output keeps, converts or drops, besides the frames themselves.

Every source has one list, ``Source.changes``, to which everything that reads or writes adds::

    source.changes.keep("ICC profile", "copied into every image")
    source.changes.convert("audio stream 1 (flac)", "to aac, as mov cannot hold flac")
    source.changes.drop("closed captions", "libx265 cannot write them")

What is converted or dropped is logged as a warning, at its first mention only. The lists are the
``kept``, ``converted`` and ``dropped`` of the job's summary, of ``rbvsr-run --json`` and of the
report page. Damage of the input is not reported here but counted, see ``Source.lost_frames``.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

__all__ = ["Change", "Changes"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """Describes one thing of the input and what becomes of it."""

    what: str
    """The thing, without the name of the input, such as "audio stream 1 (flac)"."""
    reason: str
    """The end of a sentence: how it is kept, what it becomes, or why it is dropped."""


class Changes:
    """Collects changes, also from several threads.

    A thing has one entry: naming it again in the same list does nothing, and in another list moves
    it there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, tuple[str, Change]] = {}

    def keep(self, what: str, reason: str) -> None:
        """Record that something is kept as it is."""
        self._add("kept", what, reason)

    def convert(self, what: str, reason: str) -> None:
        """Record and report that something is kept in another form."""
        if self._add("converted", what, reason):
            logger.warning("Converted: %s: %s", what, reason)

    def drop(self, what: str, reason: str) -> None:
        """Record and report that something is not in the output."""
        if self._add("dropped", what, reason):
            logger.warning("Dropped: %s: %s", what, reason)

    @property
    def kept(self) -> list[Change]:
        """Return what is kept, in the order in which it was found."""
        return self._list("kept")

    @property
    def converted(self) -> list[Change]:
        """Return what is kept in another form."""
        return self._list("converted")

    @property
    def dropped(self) -> list[Change]:
        """Return what is not in the output."""
        return self._list("dropped")

    def _add(self, kind: str, what: str, reason: str) -> bool:
        """Add an entry; return whether it is new in its list."""
        with self._lock:
            known = self._entries.get(what)
            if known is not None and known[0] == kind:
                return False
            self._entries[what] = (kind, Change(what, reason))
            return True

    def _list(self, kind: str) -> list[Change]:
        with self._lock:
            return [change for found, change in self._entries.values() if found == kind]
