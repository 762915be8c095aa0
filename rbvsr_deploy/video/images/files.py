"""Recognises, reads and writes image files."""

from __future__ import annotations

import io
import re
import zlib
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.pixels import Image, eight_bits
from rbvsr_deploy.video.colour.colour import RGB_COLOUR
from rbvsr_deploy.video.colour.conversion import from_rgb
from rbvsr_deploy.video.image_metadata import (
    EXIF_IFD,
    GPS_IFD,
    ImageMetadata,
    exif_for,
    held_by,
    png_with,
)
from rbvsr_deploy.video.images.decoding import decode_image
from rbvsr_deploy.video.pyav import media_errors

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext
    from numpy.typing import NDArray
    from PIL.Image import Exif

__all__ = [
    "ALPHA_SUFFIXES",
    "FORMATS",
    "IMAGE_SUFFIXES",
    "SUPPORTED",
    "encode_image",
    "encode_jpeg",
    "format_of",
    "image_format",
    "image_size",
    "is_image",
    "read_image",
    "write_image",
]

# Maps the first bytes of a file to Pillow's name of its format: file names are too often wrong.
_SIGNATURES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WEBP"),
    (re.compile(rb"BM.{4}\0{4}", re.DOTALL), "BMP"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"), "JPEG2000"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "AVIF"),
    (re.compile(rb"P[1-6]\s"), "PPM"),
)
_TGA_SUFFIX = ".tga"  # has no signature
SUPPORTED = "PNG, JPEG, TIFF, WebP, BMP, GIF, AVIF, JPEG 2000, PPM and TGA are supported"

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".bmp": "BMP",
}
"""Pillow's name of each format that can be written, by suffix in lower case."""
IMAGE_SUFFIXES = frozenset(FORMATS)
"""Suffixes of the image formats that can be written, in lower case."""
ALPHA_SUFFIXES = IMAGE_SUFFIXES - {".jpg", ".jpeg", ".bmp"}
"""Suffixes of the image formats that can hold an alpha channel."""

_JPEG_QUALITY, _JPEG_QUALITY_FOR_VIEWING = 98, 92


def format_of(data: bytes, path: Path) -> str | None:
    """Return Pillow's name of the format of a file that begins with these bytes, at least 16."""
    for signature, name in _SIGNATURES:
        if signature.match(data):
            return name
    return "TGA" if path.suffix.lower() == _TGA_SUFFIX and data else None


def image_format(path: Path) -> str | None:
    """Return Pillow's name of a file's format; ``None`` if it is not a supported image.

    Raises:
        MediaError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise MediaError(f"cannot read {path}: {error.strerror}") from error
    return format_of(start, path)


def is_image(path: Path) -> bool:
    """Return whether a file is a supported image; GIFs count as videos.

    Raises:
        MediaError: the file cannot be read.
    """
    return image_format(path) not in (None, "GIF")


def image_size(path: Path) -> tuple[int, int] | None:
    """Return width and height of an image as stored, in pixels, from its header; ``None`` if it
    cannot be read.
    """
    from PIL import Image as Pillow

    try:
        with Pillow.open(path) as image:
            return image.size
    except Exception:  # Pillow raises nearly anything on foreign bytes
        return None


def read_image(path: Path) -> Image:
    """Read an image, upright and without alpha.

    Returns:
        ``(H, W, 3)`` RGB, contiguous: uint8, or uint16 if the file has more than 8 bits.

    Raises:
        MediaError: the file is not an image, or is damaged.
    """
    with media_errors(f"cannot read the image {path}"):
        data = path.read_bytes()
    if (name := format_of(data, path)) is None:
        raise MediaError(f"{path} is not an image: {SUPPORTED}")
    return decode_image(data, name, path).image


def write_image(path: Path, *, image: Image, opacity: Image | None = None) -> None:
    """Write an image in the format of the path's suffix; see ``encode_image``.

    Raises:
        MediaError: the suffix is not supported, or the file cannot be written.
    """
    data = encode_image(image, path.suffix, opacity=opacity)
    with media_errors(f"cannot write the image {path.name}"):
        path.write_bytes(data)


def encode_image(
    image: Image,
    suffix: str,
    *,
    opacity: Image | None = None,
    metadata: ImageMetadata | None = None,
) -> bytes:
    """Encode an image in the format of a suffix.

    Encoding is lossless except for JPEG. JPEG, WebP and BMP round to 8 bits.

    Args:
        image: ``(H, W, 3)`` RGB, uint8 or uint16.
        suffix: one of ``IMAGE_SUFFIXES``.
        opacity: alpha channel, ``(H, W, 1)`` of the same dtype, for one of ``ALPHA_SUFFIXES``.
        metadata: what else to write, as far as the format can hold it.

    Raises:
        MediaError: the suffix is not supported, or the format cannot hold an image of this size.
    """
    name = FORMATS.get(suffix.lower())
    if name is None:
        raise MediaError(
            f"images cannot be written as {suffix!r}: use " + ", ".join(sorted(IMAGE_SUFFIXES))
        )
    if opacity is not None:
        if suffix.lower() not in ALPHA_SUFFIXES:
            raise ValueError(f"{suffix} cannot hold an alpha channel")
        image = np.concatenate((image, opacity), axis=2)
    held = held_by(metadata or ImageMetadata(), name)
    with media_errors(f"cannot write an image as {suffix}"):
        exif = exif_for(held, width=image.shape[1], height=image.shape[0])
        if name == "PNG":
            return png_with(_encoded_png(image), held, exif=exif)
        if name == "TIFF":
            return _encoded_tiff(image, held, exif=exif)
        return _encoded_by_pillow(eight_bits(image), name, held, exif=exif)


def encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encode a JPEG for viewing, with full chroma and smaller than ``write_image`` makes it.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
    """
    from PIL import Image as Pillow

    file = io.BytesIO()
    Pillow.fromarray(image).save(file, "JPEG", quality=_JPEG_QUALITY_FOR_VIEWING, subsampling=0)
    return file.getvalue()


def _encoded_png(image: Image) -> bytes:
    import av

    deep, alpha = image.dtype == np.uint16, image.shape[2] == 4
    pix_fmt = ("rgba64be" if alpha else "rgb48be") if deep else ("rgba" if alpha else "rgb24")
    context: VideoCodecContext = av.CodecContext.create("png", "w")
    context.height, context.width = image.shape[:2]
    context.pix_fmt = pix_fmt
    context.time_base = Fraction(1)
    opacity = np.ascontiguousarray(image[..., 3:]) if alpha else None
    rgb = np.ascontiguousarray(image[..., :3])
    frame = from_rgb(rgb, pix_fmt=pix_fmt, colour=RGB_COLOUR, opacity=opacity)
    frame.pts = 0
    return b"".join(bytes(p) for p in [*context.encode(frame), *context.encode()])


def _encoded_by_pillow(
    image: NDArray[np.uint8], name: str, metadata: ImageMetadata, *, exif: Exif | None
) -> bytes:
    from PIL import Image as Pillow

    options: dict[str, Any] = {}
    if name == "JPEG":
        options = {"quality": _JPEG_QUALITY, "subsampling": 0}
    elif name == "WEBP":
        options = {"lossless": True, "exact": True}
    given = {
        "icc_profile": metadata.icc,
        "exif": exif,
        "xmp": metadata.xmp,
        "dpi": metadata.dpi,
    }
    options |= {key: value for key, value in given.items() if value is not None}
    file = io.BytesIO()
    Pillow.fromarray(image).save(file, name, **options)
    return file.getvalue()


def _encoded_tiff(image: Image, metadata: ImageMetadata, *, exif: Exif | None) -> bytes:
    """Encode a TIFF as one strip; Pillow writes none of 16-bit RGB."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    height, width, channels = image.shape
    strip = zlib.compress(
        np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("<")).tobytes()
    )
    tags: dict[int, Any] = {}
    if exif is not None:
        tags = {tag: exif[tag] for tag in exif}
        tags |= {tag: dict(exif.get_ifd(tag)) for tag in (EXIF_IFD, GPS_IFD) if tag in tags}
    tags |= {
        256: width,
        257: height,
        258: (8 * image.itemsize,) * channels,
        259: 8,  # deflate
        262: 2,  # RGB
        273: 0,  # where the strip begins, after the tags
        277: channels,
        278: height,
        279: len(strip),
        284: 1,  # the channels of a pixel follow each other
    }
    if channels == 4:
        tags[338] = 2  # the fourth is alpha, and colours are not multiplied by it
    if metadata.dpi is not None:
        tags |= {282: metadata.dpi[0], 283: metadata.dpi[1], 296: 2}  # in pixels per inch
    if metadata.icc is not None:
        tags[34675] = metadata.icc
    if metadata.xmp is not None:
        tags[700] = metadata.xmp
    directory = ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[tag] = value
    file = io.BytesIO()
    directory.save(file)
    return file.getvalue() + strip
