"""Text of files and their names, made fit for a terminal."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """The text with what is not shown as a character written out, such as ``\\x1b`` for an escape:
    terminals obey escapes, which may set the clipboard or hide what follows. Line ends and tabs
    stay.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )
