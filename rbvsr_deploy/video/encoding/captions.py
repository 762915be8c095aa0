"""Writes closed captions (ATSC A/53, CTA-708) into encoded H.264 and HEVC packets.

Captions are user data of frames, in a message (SEI) of its own in front of the coded frame: ITU-T
H.264 and H.265, annex D, and ATSC A/53 part 4, section 6.2.3. FFmpeg's encoders write them, too,
but PyAV cannot attach them to the frames that it encodes.
"""

from __future__ import annotations

import re

__all__ = ["CAPTIONED", "with_captions"]

CAPTIONED = frozenset({"libx264", "libx264rgb", "libx265"})
"""Encoders whose packets can take captions."""

_ATSC = b"\xb5\x00\x31GA94\x03"  # country, provider and kind of the user data
_REGISTERED = 4  # payload type: user data registered by ITU-T T.35
_MOST = 31  # triplets in one message
_START = re.compile(rb"\x00\x00\x01")


def with_captions(packet: bytes, captions: bytes, *, hevc: bool) -> bytes:
    """Return a packet with captions in front of its coded frame.

    Args:
        packet: an access unit in Annex B format.
        captions: triplets of bytes, as FFmpeg's decoders give them.
        hevc: whether it is HEVC rather than H.264.
    """
    for start in _START.finditer(packet):
        header = packet[start.end()]
        is_frame = (header >> 1 & 0x3F) < 32 if hevc else header & 0x1F in (1, 2, 5)
        if is_frame:
            at = start.start()
            at -= packet[at - 1 : at] == b"\0"  # start codes of four bytes
            return packet[:at] + _message(captions, hevc=hevc) + packet[at:]
    return packet


def _message(captions: bytes, *, hevc: bool) -> bytes:
    count = min(_MOST, len(captions) // 3)
    data = _ATSC + bytes([0x40 | count, 0xFF]) + captions[: 3 * count] + b"\xff"
    # Up to 31 triplets: the size fits into one byte.
    content = bytes([_REGISTERED, len(data)]) + data + b"\x80"
    # No start code may appear inside.
    content = re.sub(rb"\x00\x00(?=[\x00-\x03])", b"\x00\x00\x03", content)
    return b"\0\0\0\1" + (b"\x4e\x01" if hevc else b"\x06") + content
