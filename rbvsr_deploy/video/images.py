"""Reads images and image folders, and writes images."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.pixels import Image, eight_bits, sixteen_bits
from rbvsr_deploy.video.base import Frame, Source
from rbvsr_deploy.video.colour.colour import (
    BT601,
    FULL,
    RGB_COLOUR,
    Colour,
    colour_of,
)
from rbvsr_deploy.video.colour.conversion import from_rgb, opacity_of, to_rgb
from rbvsr_deploy.video.colour.opacity import keeps_opacity
from rbvsr_deploy.video.colour.orientation import exif_orientation, upright
from rbvsr_deploy.video.excerpts import cut_out
from rbvsr_deploy.video.options import ReadOptions
from rbvsr_deploy.video.pyav import DECODER_LIMITS, MAX_PIXELS, media_errors

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_DEFAULT_READING = ReadOptions()

FOLDER_RATE = Fraction(25)
"""Default frames per second of a video made from an image folder."""

# Maps the first bytes of a file to its decoder: file names are too often wrong.
_SIGNATURES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "png"),
    (re.compile(rb"\xff\xd8\xff"), "mjpeg"),
    (re.compile(rb"II\*\0|MM\0\*"), "tiff"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "webp"),
    (re.compile(rb"BM.{4}\0{4}", re.DOTALL), "bmp"),
)
_SUPPORTED = "PNG, JPEG, TIFF, WebP and BMP are supported"
_FINEST_QUANTISER = {"flags": "+qscale", "qmin": "1", "global_quality": "118"}  # FF_QP2LAMBDA
_FINE_QUANTISER = {"flags": "+qscale", "global_quality": str(3 * 118)}


@dataclass(frozen=True)
class _Format:
    """An image format for writing: FFmpeg's encoder and its pixel formats."""

    encoder: str
    pix_fmt: str
    deep: str | None = None
    """For more than 8 bits; ``None``: rounded to 8."""
    alpha: str | None = None
    """With alpha; ``None``: not supported."""
    deep_alpha: str | None = None
    options: dict[str, str] = field(default_factory=dict)


_JPEG = _Format("mjpeg", "yuvj444p", options=_FINEST_QUANTISER)
_TIFF = _Format(
    "tiff", "rgb24", "rgb48le", "rgba", "rgba64le", options={"compression_algo": "deflate"}
)
_FORMATS = {
    ".png": _Format("png", "rgb24", "rgb48be", "rgba", "rgba64be"),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".webp": _Format("libwebp", "bgra", alpha="bgra", options={"lossless": "1"}),
    ".bmp": _Format("bmp", "bgr24"),
}
IMAGE_SUFFIXES = frozenset(_FORMATS)
"""Suffixes of the image formats that can be written, in lower case."""
ALPHA_SUFFIXES = frozenset(suffix for suffix, choice in _FORMATS.items() if choice.alpha)
"""Suffixes of the image formats that can hold an alpha channel."""

_JPEG_COLOUR = Colour(matrix=BT601, range=FULL, primaries=2, transfer=2)


class ImageSource(Source):
    """Reads one image, or the images of a folder in natural order of their names.

    Other files in a folder are ignored, unless they have an image suffix. All images must have the
    size of the first one, and are converted to its bit depth.

    Args:
        path: an existing file or folder.
        options: how to read the images.

    Raises:
        MediaError: there is no image, the first one cannot be read, or none is in the requested
            excerpt.
    """

    is_folder: bool
    """True if ``path`` is a folder."""

    def __init__(self, path: Path, options: ReadOptions = _DEFAULT_READING) -> None:
        self.path = path
        self.is_folder = path.is_dir()
        self._files = _image_files(path) if self.is_folder else [path]
        if not self._files:
            raise MediaError(f"the folder {path} contains no images: {_SUPPORTED}")
        self.rate = options.fps or FOLDER_RATE
        self.time_base = 1 / self.rate
        if options.is_excerpt:
            period = self.time_base
            timed = ((file, i * period, period) for i, file in enumerate(self._files))
            self._files = list(cut_out(timed, options, path=path))
        self._alpha = options.alpha
        self._kept: bool | None = None  # until an image has alpha
        first, opacity = self._read(self._files[0])
        # In a folder, any later image may have alpha.
        self.keeps_opacity = options.alpha == "keep" and (self.is_folder or opacity is not None)
        self.height, self.width = first.shape[:2]
        self.depth = 8 * first.itemsize
        self.frame_count = len(self._files)
        self.sample_aspect = None
        self.colour = RGB_COLOUR

    def __iter__(self) -> Iterator[Frame]:
        for number, file in enumerate(self._files):
            image, opacity = self._read(file)
            in_depth = eight_bits if self.depth == 8 else sixteen_bits
            height, width = image.shape[:2]
            if (width, height) != (self.width, self.height):
                raise MediaError(
                    f"{file} is {width}x{height}, but the images before it are "
                    f"{self.width}x{self.height}: all images in a folder must have the same size"
                )
            yield Frame(
                image=in_depth(image),
                pts=number,
                duration=1,
                name=file.name,
                opacity=None if opacity is None else in_depth(opacity),
            )

    def _read(self, file: Path) -> tuple[Image, Image | None]:
        image, opacity = read_with_opacity(file)
        if opacity is None or opacity.min() == np.iinfo(opacity.dtype).max:
            return image, None
        if self._kept is None:
            self._kept = keeps_opacity(file, self._alpha)
        return image, opacity if self._kept else None


def is_image(path: Path) -> bool:
    """Return whether a file starts with the signature of a supported image format."""
    return _decoder_name(path) is not None


def read_image(path: Path) -> Image:
    """Read an image, upright and without alpha.

    Returns:
        ``(H, W, 3)`` RGB, contiguous: uint8, or uint16 if the file has more than 8 bits.

    Raises:
        MediaError: the file is not an image, or is damaged.
    """
    return read_with_opacity(path)[0]


def read_with_opacity(path: Path) -> tuple[Image, Image | None]:
    """Read an image and its alpha channel, if any, as ``(H, W, 1)`` of the image's dtype.

    See :func:`read_image`.
    """
    import av

    name = _decoder_name(path)
    if name is None:
        raise MediaError(f"{path} is not an image: {_SUPPORTED}")
    with media_errors(f"cannot read the image {path}"), _size_errors(path):
        data = path.read_bytes()
        context: VideoCodecContext = av.CodecContext.create(name, "r")  # type: ignore[assignment]
        context.options = dict(DECODER_LIMITS)
        if name != "tiff":  # FFmpeg reports errors in its own TIFF files
            context.options |= {"err_detect": "explode"}
        frames = context.decode(av.Packet(data)) or context.decode(None)
        if not frames:
            raise MediaError(f"cannot read the image {path}: it is damaged or incomplete")
        frame, orientation = frames[0], exif_orientation(data)
        colour = colour_of(frame, matrix_if_unknown=BT601)
        image, opacity = to_rgb(frame, colour=colour, is_image=True), opacity_of(frame)
        return upright(image, orientation), (
            None if opacity is None else upright(opacity, orientation)
        )


def write_image(path: Path, *, image: Image, opacity: Image | None = None) -> None:
    """Write an image in the format of the path's suffix; see ``encode_image``.

    Raises:
        MediaError: the suffix is not supported, or the file cannot be written.
    """
    data = encode_image(image, path.suffix, opacity=opacity)
    with media_errors(f"cannot write the image {path.name}"):
        path.write_bytes(data)


def encode_image(image: Image, suffix: str, *, opacity: Image | None = None) -> bytes:
    """Encode an image in the format of a suffix.

    Encoding is lossless except for JPEG. WebP and BMP round to 8 bits.

    Args:
        image: ``(H, W, 3)`` RGB, uint8 or uint16.
        suffix: one of ``IMAGE_SUFFIXES``.
        opacity: alpha channel, ``(H, W, 1)`` of the same dtype, for one of ``ALPHA_SUFFIXES``.

    Raises:
        MediaError: the suffix is not supported, or the format cannot hold an image of this size.
    """
    choice = _FORMATS.get(suffix.lower())
    if choice is None:
        raise MediaError(
            f"images cannot be written as {suffix!r}: use " + ", ".join(sorted(IMAGE_SUFFIXES))
        )
    pix_fmt = choice.pix_fmt if opacity is None else choice.alpha
    if image.dtype == np.uint16:
        pix_fmt = (choice.deep if opacity is None else choice.deep_alpha) or pix_fmt
    if pix_fmt is None:
        raise ValueError(f"{suffix} cannot hold an alpha channel")
    with media_errors(f"cannot write an image as {suffix}"):
        return _encode(image, choice.encoder, pix_fmt, choice.options, opacity=opacity)


def encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encode a JPEG for viewing, with full chroma and smaller than ``write_image`` makes it.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
    """
    return _encode(image, "mjpeg", "yuvj444p", _FINE_QUANTISER)


def _encode(
    image: Image,
    name: str,
    pix_fmt: str,
    options: dict[str, str],
    *,
    opacity: Image | None = None,
) -> bytes:
    """Encode an image with an FFmpeg encoder."""
    import av

    context: VideoCodecContext = av.CodecContext.create(name, "w")  # type: ignore[assignment]
    context.height, context.width = image.shape[:2]
    context.pix_fmt = pix_fmt
    context.time_base = 1 / FOLDER_RATE
    context.options = options
    if name == "mjpeg":
        context.color_range = FULL
    colour = _JPEG_COLOUR if name == "mjpeg" else RGB_COLOUR
    frame = from_rgb(image, pix_fmt=pix_fmt, colour=colour, opacity=opacity)
    frame.pts = 0
    return b"".join(bytes(p) for p in [*context.encode(frame), *context.encode()])


def _image_files(folder: Path) -> list[Path]:
    """Return the images of a folder in natural order.

    Other files are ignored, unless they have an image suffix: an unreadable frame must not be
    skipped silently.
    """
    try:
        # Hidden files are skipped: macOS, for example, stores metadata of "1.png" in "._1.png".
        files = [f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".")]
    except OSError as error:
        raise MediaError(f"cannot read the folder {folder}: {error.strerror}") from error
    images = [file for file in files if is_image(file)]
    for file in sorted(set(files) - set(images)):
        if images and file.suffix.lower() in IMAGE_SUFFIXES:
            raise MediaError(
                f"{file} has an image extension but is not a complete image: repair or remove it"
            )
    return sorted(images, key=lambda file: _natural_key(file.name))


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that orders "2.png" before "10.png"."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part.lower()) for part in parts]


@contextlib.contextmanager
def _size_errors(path: Path) -> Iterator[None]:
    """Reword the error that decoders raise for images that are too large."""
    import av

    try:
        yield
    except av.ArgumentError as error:
        raise MediaError(
            f"cannot read the image {path}: it is damaged, or has more than {MAX_PIXELS:,} pixels"
        ) from error


def _decoder_name(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise MediaError(f"cannot read {path}: {error.strerror}") from error
    for signature, name in _SIGNATURES:
        if signature.match(start):
            return name
    return None
