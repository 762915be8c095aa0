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
    from rbvsr_deploy.video.colour.colour import Colour

__all__ = [
    "EXIF_IFD",
    "GPS_IFD",
    "ICC",
    "PNG",
    "ImageMetadata",
    "coding_chunk",
    "exif_for",
    "held_by",
    "metadata_of_colour",
    "metadata_of_png",
    "png_animation_length",
    "png_is_bounded",
    "png_pixels",
    "png_size",
    "png_with",
    "png_without_profile",
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
_SRGB = "sRGB tag"
_PNG_COPIED = {
    b"cICP": "colour coding (cICP)",
    b"gAMA": "gamma (gAMA)",
    b"cHRM": "primaries (cHRM)",
    b"sRGB": _SRGB,
    b"mDCV": "mastering display (mDCV)",
    b"cLLI": "content light level (cLLI)",
    b"pHYs": "shape of pixels (pHYs)",  # where it is no resolution
    b"sTER": "stereoscopic layout (sTER)",
}
# Chunks of a PNG that are not reported: they describe how it is stored, or when it was.
_PNG_STORAGE = frozenset(
    (b"sBIT", b"sPLT", b"hIST", b"tIME", b"iDOT", b"vpAg", b"acTL", b"fcTL", b"fdAT")
)
# Beginnings of JPEG segments that are read, or that describe how it is stored.
_JPEG_KNOWN = (
    *(b"JFIF", b"JFXX", b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0", b"MPF\0"),
    *(b"Adobe", b"Ducky"),
)
_JPEG_OTHERS = {
    b"Photoshop 3.0": "Photoshop and IPTC data",
    b"http://ns.adobe.com/xmp/extension/": "extended XMP data",
    b"JP": "content credentials (JUMBF)",
}
_NOT_COPIED = "it is not copied to upscaled images"
_PNG_GREY = (0, 4)  # types of colour, without and with alpha
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"
_USUAL_PRIMARIES, _USUAL_TRANSFERS = (1, 2, 5, 6), (1, 2, 6, 13)  # H.273 codes
_INCHES = 0.0254  # in a metre


@dataclass(frozen=True)
class ImageMetadata:
    """Holds what belongs to an image besides its pixels."""

    icc: bytes | None = None
    """ICC profile of RGB samples."""
    grey_icc: bytes | None = None
    """ICC profile of grey samples, which has to be applied, as all outputs are RGB."""
    exif: bytes | None = None
    """EXIF data in TIFF format, without an orientation."""
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    """Pixels per inch, across and down."""
    png_copied: Mapping[bytes, bytes] = field(default_factory=dict)
    """Chunks of a PNG that are copied as they are, such as those that describe its colours."""
    png_texts: tuple[tuple[bytes, bytes], ...] = ()
    """Names and contents of the chunks of a PNG with text."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """Kinds that the file holds but that cannot be read or copied, and why."""


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
        elif name is not None or kind != _SRGB:  # which describes a video as it is
            changes.drop(kind, f"{name or 'a video'} cannot hold it")


def _kinds(metadata: ImageMetadata) -> list[str]:
    found = {
        ICC: metadata.icc,
        _EXIF: metadata.exif,
        _XMP: metadata.xmp,
        "resolution": metadata.dpi,
        "text": metadata.png_texts,
        **{_PNG_COPIED[name]: data for name, data in metadata.png_copied.items()},
    }
    return [kind for kind, value in found.items() if value]


def metadata_of_colour(colour: Colour) -> ImageMetadata:
    """Return the metadata of an image with the colours of a video."""
    return ImageMetadata(png_copied=coding_chunk(colour.primaries, colour.transfer))


def coding_chunk(primaries: int, transfer: int) -> dict[bytes, bytes]:
    """Return the chunk of a PNG that describes colours; none for those that are usual in images.

    Args:
        primaries, transfer: H.273 codes.
    """
    usual = primaries in _USUAL_PRIMARIES and transfer in _USUAL_TRANSFERS
    return {} if usual else {b"cICP": bytes((primaries, transfer, 0, 1))}


def read_metadata(image: PillowImage) -> ImageMetadata:
    """Return the metadata of an image that is opened with Pillow; not for PNG."""
    info, exif, xmp = image.info, None, image.info.get("xmp")
    lost = _lost_of_jpeg(image)
    copied = {}
    try:
        exif = _described(image.getexif())
    except Exception:  # Pillow raises nearly anything on foreign bytes
        lost[_EXIF] = "it is damaged"
    across, down = info.get("jfif_density", (1, 1))
    if info.get("jfif_unit") == 0 and across != down:
        copied[b"pHYs"] = struct.pack(">IIB", down, across, 0)
    if info.get("comment") and image.format in ("JPEG", "MPO", "GIF"):
        lost["comment"] = _NOT_COPIED
    grey = image.mode in ("1", "L", "LA", "F", "I") or image.mode.startswith("I;16")
    icc, grey_icc = _profile(info.get("icc_profile"), grey=grey, mode=image.mode, lost=lost)
    return ImageMetadata(
        icc=icc,
        grey_icc=grey_icc,
        exif=exif,
        xmp=xmp.encode() if isinstance(xmp, str) else xmp,
        dpi=_resolution(info.get("dpi")),
        png_copied=copied,
        lost=lost,
    )


def _lost_of_jpeg(image: PillowImage) -> dict[str, str]:
    """Return what segments of a JPEG hold that is not read."""
    lost = {}
    for marker, content in getattr(image, "applist", ()):
        if not content.startswith(_JPEG_KNOWN) and marker != "COM":
            named = (kind for start, kind in _JPEG_OTHERS.items() if content.startswith(start))
            lost[next(named, f"application data ({marker})")] = _NOT_COPIED
    return lost


def metadata_of_png(data: bytes) -> ImageMetadata:
    """Return the metadata of a PNG file, leaving out damaged chunks."""
    from PIL import Image

    found: dict[str, Any] = {}
    copied, texts = {}, []
    lost: dict[str, str] = {}
    for name, content in _png_chunks(data):
        try:
            if name == b"iCCP":
                icc = _inflated(content.partition(b"\0")[2][1:])
                grey = data[25] in _PNG_GREY
                found["icc"], found["grey_icc"] = _profile(
                    icc, grey=grey, mode="L" if grey else "RGB", lost=lost
                )
            elif name == b"eXIf":
                exif = Image.Exif()
                exif.load(content)
                found["exif"] = _described(exif)
            elif name == b"pHYs":
                *density, unit = struct.unpack(">IIB", content)
                if unit == 1:
                    found["dpi"] = _resolution(tuple(side * _INCHES for side in density))
                elif density[0] != density[1]:
                    copied[name] = content
            elif name in _PNG_COPIED:
                copied[name] = content
            elif name == b"iTXt" and content.startswith(_PNG_XMP):
                found["xmp"] = content.removeprefix(_PNG_XMP)
            elif name in _PNG_TEXTS:
                texts.append((name, content))
            elif name not in _PNG_STORAGE:
                lost[f"'{name.decode('latin-1')}' chunk"] = _NOT_COPIED
        except Exception:  # Pillow raises nearly anything on foreign bytes
            kind = {b"iCCP": ("icc", ICC), b"eXIf": ("exif", _EXIF)}.get(name, ("dpi", ""))
            found.pop(kind[0], None)
            lost |= {kind[1]: "it is damaged"} if kind[1] else {}
    return ImageMetadata(**found, png_copied=copied, png_texts=tuple(texts), lost=lost)


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
        data[at + 8 : at + 8 + length] for at, length, name in png_layout(data) if name == b"IDAT"
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
        data[at : at + 12 + length] for at, length, name in png_layout(data) if name in _PNG_PIXELS
    )


def png_without_profile(data: bytes) -> bytes:
    """Return a PNG, animated or not, without its colour profile."""
    parts, begin = [], 0
    for at, length, name in png_layout(data):
        if name == b"iCCP":
            parts.append(data[begin:at])
            begin = at + 12 + length
    return b"".join([*parts, data[begin:]])


def png_with(data: bytes, metadata: ImageMetadata, *, exif: Exif | None = None) -> bytes:
    """Return a PNG with all its pixels, and with metadata in place of its own."""
    extra = [(name, content) for name, content in metadata.png_copied.items() if content]
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


def png_layout(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield position, length of the content, and name of every chunk."""
    at = len(PNG)
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        yield at, length, name
        at += 12 + length


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of every undamaged chunk that is not for the pixels."""
    for at, length, name in png_layout(data):
        if name not in _PNG_PIXELS:
            chunk = data[at : at + 12 + length]
            if chunk == _png_chunk(name, chunk[8:-4]):
                yield name, chunk[8:-4]


def _png_chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def _profile(
    icc: bytes | None, *, grey: bool, mode: str, lost: dict[str, str]
) -> tuple[bytes | None, bytes | None]:
    """Return an ICC profile as that of RGB samples, or of grey ones, or as neither of them.

    Args:
        icc: what the file holds.
        grey: whether its pixels are grey.
        mode: Pillow's name for its pixels.
        lost: gets the reason if it is useless.
    """
    if not icc:
        return None, None
    if not (128 <= len(icc) <= _LARGEST and icc[36:40] == b"acsp"):
        lost[ICC] = "it is damaged"
        return None, None
    space = icc[16:20]
    if space == b"RGB " and mode not in ("CMYK", "LAB"):
        return icc, None
    if space == b"GRAY" and grey:
        return None, icc
    if (space, mode) not in ((b"CMYK", "CMYK"), (b"Lab ", "LAB")):  # these are applied by Pillow
        name = space.decode("latin-1").strip()
        lost[ICC] = (
            f"it is for pixels in {name}, and those of the image are not"
            if name.isalnum()
            else "it is damaged"
        )
    return None, None


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
