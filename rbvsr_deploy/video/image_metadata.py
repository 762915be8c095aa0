"""Reads what an image file holds besides its pixels, such as a colour profile, for writing it into
the upscaled image.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Exif
    from PIL.Image import Image as PillowImage

    from rbvsr_deploy.video.changes import Changes

__all__ = [
    "EXIF_IFD",
    "GPS_IFD",
    "ICC",
    "ImageMetadata",
    "exif_for",
    "held_by",
    "metadata_of_png",
    "png_animation_length",
    "png_is_bounded",
    "png_pixels",
    "png_size",
    "png_with",
    "read_metadata",
    "report_metadata",
]

PNG = b"\x89PNG\r\n\x1a\n"

_LARGEST = 2**24
"""Maximum size of a profile or text in bytes; cameras' take less than a megabyte. A compressed
kilobyte can claim any size.
"""
_SMALL = 2**19  # bytes, which inflate to 0.5 GiB at most
_BLOCK = 2**20
_LARGEST_IN = {"JPEG": 65_000}
"""The same of EXIF and XMP data in a format."""
ICC, _EXIF, _XMP = "colour profile (ICC)", "EXIF data", "XMP data"
EXIF_IFD, GPS_IFD = 0x8769, 0x8825
_EXIF_WIDTH, _EXIF_HEIGHT = 0xA002, 0xA003
# Tags of TIFF that describe the file and its pixels, with the orientation, rather than the
# photograph.
_STRUCTURE = frozenset(
    (
        *(*range(254, 260), 262, 266, 273, 274, 277, 278, 279, 284, 317, 320),
        *(*range(322, 326), 330, 338, 339, 347, *range(513, 533), 700, 34675),
    )
)
_PNG_COLOUR = {
    b"cICP": "colour coding (cICP)",
    b"gAMA": "gamma (gAMA)",
    b"cHRM": "primaries (cHRM)",
    b"sRGB": "sRGB tag",
}
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"
_INCHES = 0.0254  # in a metre


@dataclass(frozen=True)
class ImageMetadata:
    """Holds what belongs to an image besides its pixels."""

    icc: bytes | None = None
    """ICC profile of RGB samples."""
    exif: bytes | None = None
    """EXIF data in TIFF format, without an orientation."""
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    """Pixels per inch, across and down."""
    png_colour: Mapping[bytes, bytes] = field(default_factory=dict)
    """Chunks of a PNG that describe its colours."""
    png_texts: tuple[tuple[bytes, bytes], ...] = ()
    """Names and contents of the chunks of a PNG with text."""
    damaged: tuple[str, ...] = ()
    """Kinds that the file holds but that cannot be read."""


def held_by(metadata: ImageMetadata, name: str) -> ImageMetadata:
    """Return the part of the metadata that a format (Pillow's name) can hold."""
    exif, xmp = (
        None if block is not None and len(block) > _LARGEST_IN.get(name, _LARGEST) else block
        for block in (metadata.exif, metadata.xmp)
    )
    if name == "PNG":
        return replace(metadata, exif=exif, xmp=xmp)
    if name == "BMP":
        return ImageMetadata(dpi=metadata.dpi)
    dpi = None if name == "WEBP" else metadata.dpi
    return ImageMetadata(icc=metadata.icc, exif=exif, xmp=xmp, dpi=dpi)


def report_metadata(changes: Changes, metadata: ImageMetadata, *, name: str | None) -> None:
    """Record what of an image's metadata is kept.

    Args:
        changes: the list to add to.
        metadata: all of it.
        name: Pillow's name of the format that is written; ``None`` for video.
    """
    held = _kinds(held_by(metadata, name)) if name is not None else []
    for kind in _kinds(metadata):
        if kind in held:
            changes.keep(kind, "copied from each image")
        else:
            changes.drop(kind, f"{name or 'a video'} cannot hold it")


def _kinds(metadata: ImageMetadata) -> list[str]:
    found = {
        ICC: metadata.icc,
        _EXIF: metadata.exif,
        _XMP: metadata.xmp,
        "resolution": metadata.dpi,
        "text": metadata.png_texts,
        **{_PNG_COLOUR[name]: data for name, data in metadata.png_colour.items()},
    }
    return [kind for kind, value in found.items() if value]


def read_metadata(image: PillowImage) -> ImageMetadata:
    """Return the metadata of an image that is opened with Pillow; not for PNG."""
    info, damaged = image.info, []
    icc, xmp, exif = info.get("icc_profile"), info.get("xmp"), None
    if icc and not _is_profile(icc):
        icc = None
        damaged.append(ICC)
    try:
        exif = _described(image.getexif())
    except Exception:  # Pillow raises nearly anything on foreign bytes
        damaged.append(_EXIF)
    return ImageMetadata(
        # Others are applied when the pixels are converted to RGB.
        icc=icc if icc and icc[16:20] == b"RGB " else None,
        exif=exif,
        xmp=xmp.encode() if isinstance(xmp, str) else xmp,
        dpi=_resolution(info.get("dpi")),
        damaged=tuple(damaged),
    )


def metadata_of_png(data: bytes) -> ImageMetadata:
    """Return the metadata of a PNG file, leaving out damaged chunks."""
    from PIL import Image

    found: dict[str, Any] = {}
    colour, texts, damaged = {}, [], []
    for name, content in _png_chunks(data):
        try:
            if name in _PNG_COLOUR:
                colour[name] = content
            elif name == b"iCCP":
                found["icc"] = _inflated(content.partition(b"\0")[2][1:])
                if not _is_profile(found["icc"]):
                    raise ValueError("not a profile")
            elif name == b"eXIf":
                exif = Image.Exif()
                exif.load(content)
                found["exif"] = _described(exif)
            elif name == b"pHYs":
                *density, unit = struct.unpack(">IIB", content)
                if unit == 1:
                    found["dpi"] = _resolution(tuple(side * _INCHES for side in density))
            elif name == b"iTXt" and content.startswith(_PNG_XMP):
                found["xmp"] = content.removeprefix(_PNG_XMP)
            elif name in _PNG_TEXTS:
                texts.append((name, content))
        except Exception:  # Pillow raises nearly anything on foreign bytes
            kind = {b"iCCP": ("icc", ICC), b"eXIf": ("exif", _EXIF)}.get(name, ("dpi", ""))
            found.pop(kind[0], None)
            damaged += [kind[1]] * bool(kind[1])
    if (icc := found.get("icc")) and icc[16:20] != b"RGB ":
        del found["icc"]
    return ImageMetadata(**found, png_colour=colour, png_texts=tuple(texts), damaged=tuple(damaged))


def exif_for(metadata: ImageMetadata, *, width: int, height: int) -> Exif | None:
    """Return the EXIF data for an image of another size."""
    from PIL import Image

    if metadata.exif is None:
        return None
    exif = Image.Exif()
    exif.load(metadata.exif)
    if EXIF_IFD in exif:
        details = exif.get_ifd(EXIF_IFD)
        for tag, size in ((_EXIF_WIDTH, width), (_EXIF_HEIGHT, height)):
            if tag in details:
                details[tag] = size
    return exif


def png_size(data: bytes) -> tuple[int, int]:
    """Return width and height of a PNG in pixels; 0 if its header is damaged."""
    return struct.unpack(">II", data[16:24]) if data[12:16] == b"IHDR" else (0, 0)


def png_animation_length(data: bytes) -> int:
    """Return the number of frames of an animated PNG, and 1 of others."""
    contents = dict(_png_chunks(data))
    return int.from_bytes(contents[b"acTL"][:4], "big") if b"acTL" in contents else 1


def png_is_bounded(data: bytes) -> bool:
    """Return whether the pixels of a PNG inflate to about what its size takes, or are so few bytes
    that they can be inflated within seconds in any case.
    """
    parts = [
        data[at + 8 : at + 8 + length] for at, length, name in _png_layout(data) if name == b"IDAT"
    ]
    if sum(map(len, parts)) < _SMALL:
        return True
    width, height = png_size(data)
    left = 2 * (height + 8) * (8 * width + 8)  # 8 bytes per pixel at most; interlacing adds rows
    stream = zlib.decompressobj()
    with contextlib.suppress(zlib.error):  # the decoder describes damage better
        for part in parts:
            while part and not stream.eof and left >= 0:
                left -= len(stream.decompress(part, _BLOCK))
                part = stream.unconsumed_tail
    return left >= 0


def png_pixels(data: bytes) -> bytes:
    """Return a PNG with nothing but its pixels, and with any damage to them."""
    return PNG + b"".join(
        data[at : at + 12 + length] for at, length, name in _png_layout(data) if name in _PNG_PIXELS
    )


def png_with(data: bytes, metadata: ImageMetadata, *, exif: Exif | None = None) -> bytes:
    """Return a PNG with all its pixels, and with metadata in place of its own."""
    extra = [(name, content) for name, content in metadata.png_colour.items() if content]
    if metadata.icc is not None:
        extra.append((b"iCCP", b"profile\0\0" + zlib.compress(metadata.icc)))
    if metadata.dpi is not None:
        density = (round(side / _INCHES) for side in metadata.dpi)
        extra.append((b"pHYs", struct.pack(">IIB", *density, 1)))
    if exif is not None:
        extra.append((b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    if metadata.xmp is not None:
        extra.append((b"iTXt", _PNG_XMP + metadata.xmp))
    extra += metadata.png_texts
    pixels = png_pixels(data)
    header = len(PNG) + 25
    return pixels[:header] + b"".join(_png_chunk(*chunk) for chunk in extra) + pixels[header:]


def _described(exif: Exif) -> bytes | None:
    """Return what EXIF data says about the photograph; ``None`` if it says nothing."""
    from PIL import Image

    kept = Image.Exif()
    for tag in exif:
        if tag in (EXIF_IFD, GPS_IFD):
            kept[tag] = dict(exif.get_ifd(tag))
        elif tag not in _STRUCTURE:
            kept[tag] = exif[tag]
    return kept.tobytes().removeprefix(b"Exif\0\0") if len(kept) else None


def _png_layout(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield position, length of the content, and name of every chunk."""
    at = len(PNG)
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        yield at, length, name
        at += 12 + length


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of every undamaged chunk that is not for the pixels."""
    for at, length, name in _png_layout(data):
        if name not in _PNG_PIXELS:
            chunk = data[at : at + 12 + length]
            if chunk == _png_chunk(name, chunk[8:-4]):
                yield name, chunk[8:-4]


def _png_chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def _is_profile(icc: bytes) -> bool:
    return 128 <= len(icc) <= _LARGEST and icc[36:40] == b"acsp"


def _resolution(dpi: object) -> tuple[float, float] | None:
    """Return a resolution in pixels per inch, unless it is missing or makes no sense."""
    if isinstance(dpi, tuple) and len(dpi) == 2 and all(1 < float(side) < 1e6 for side in dpi):
        return float(dpi[0]), float(dpi[1])
    return None


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    content = stream.decompress(data, _LARGEST)
    if not stream.eof:
        raise ValueError("too large or incomplete")
    return content
