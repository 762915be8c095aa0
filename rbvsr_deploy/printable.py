"""Makes file names and texts from files safe to print in a terminal."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """Return the text with its unprintable characters escaped, such as ``\\x1b`` for ESC.

    Terminals obey escape sequences, which may set the clipboard or hide the text after them. Line
    ends and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )
