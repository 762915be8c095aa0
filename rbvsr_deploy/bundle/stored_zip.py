"""Reads a zip whose members are stored one after the other, like a bundle, and refuses others.

A general zip may expand a kilobyte to gigabytes, share bytes between members, repeat a name, or
hide content between members. Here members are uncompressed and follow each other without a gap,
from the first byte to the directory, so together they are no larger than the file; local headers
and directory must agree.
"""

from __future__ import annotations

import struct

__all__ = ["ZipFormatError", "read_stored"]

_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


class ZipFormatError(ValueError):
    """The bytes are not such a zip; the message is a clause that says why."""


def read_stored(data: bytes, *, comment: int, most: int) -> dict[str, memoryview]:
    """Return the members of a zip by name, in file order.

    Args:
        data: the whole file.
        comment: length of the zip's comment in bytes.
        most: largest number of members allowed.

    Returns:
        Views of ``data``, not copies. Their CRCs are not checked.

    Raises:
        ZipFormatError: ``data`` is not a zip of this kind.
    """
    view = memoryview(data)
    end = len(data) - comment - _END.size
    if end < 0:
        raise ZipFormatError("it is cut off")
    magic, disk, first_disk, here, count, size, start, _ = _END.unpack_from(data, end)
    if magic != b"PK\x05\x06" or start + size != end or (disk, first_disk) != (0, 0):
        raise ZipFormatError("its directory is not where it belongs")
    if here != count or count > most:
        raise ZipFormatError(f"it has {count} members; at most {most} are allowed")
    members: dict[str, memoryview] = {}
    position = 0  # of the next member
    entry = start
    for _ in range(count):
        name, stored, entry = _read_entry(view, entry, end, offset=position)
        if name in members:
            raise ZipFormatError(f"it has the member '{name}' twice")
        position = _content(view, position, start, name=name, size=stored)
        members[name] = view[position - stored : position]
    if entry != end or position != start:
        raise ZipFormatError("it has bytes outside its members")
    return members


def _read_entry(view: memoryview, at: int, end: int, *, offset: int) -> tuple[str, int, int]:
    """Read the directory entry of the member at ``offset``: name, size, end of the entry."""
    if at + _ENTRY.size > end:
        raise ZipFormatError("its directory is cut off")
    fields = _ENTRY.unpack_from(view, at)
    (magic, _, _, flags, method, _, _, _, packed, size) = fields[:10]
    (name_size, extra, note, disk, _, _, header) = fields[10:]
    name = _name(view[at + _ENTRY.size : at + _ENTRY.size + name_size])
    if magic != b"PK\x01\x02" or (flags, method, extra, note, disk) != (0,) * 5 or packed != size:
        raise ZipFormatError(f"its member '{name}' is compressed, encrypted or annotated")
    if header != offset:
        raise ZipFormatError(f"its member '{name}' does not follow the one before it")
    return name, size, at + _ENTRY.size + name_size


def _content(view: memoryview, at: int, start: int, *, name: str, size: int) -> int:
    """Check a member's local header against its entry; return the end of the member."""
    if at + _LOCAL.size <= start:
        fields = _LOCAL.unpack_from(view, at)
        magic, _, flags, method, _, _, _, packed, full, name_size, extra = fields
        begin: int = at + _LOCAL.size + name_size
        is_same = (flags, method, packed, full, extra) == (0, 0, size, size, 0)
        is_named = magic == b"PK\x03\x04" and _name(view[at + _LOCAL.size : begin]) == name
        if is_named and is_same and begin + size <= start:
            return begin + size
    raise ZipFormatError(f"its member '{name}' is not where the directory says")


def _name(data: memoryview) -> str:
    try:
        return str(data, "ascii")
    except UnicodeDecodeError:
        raise ZipFormatError("it has a member whose name is not ASCII") from None
