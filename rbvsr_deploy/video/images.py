"""Pictures: single files and folders of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.base import Frame, Source
from rbvsr_deploy.video.colour import (
    BT601,
    FULL,
    RGB_PICTURE,
    Colour,
    colour_of,
    from_rgb,
    to_rgb,
    to_rgba,
)
from rbvsr_deploy.video.orientation import exif_orientation, upright
from rbvsr_deploy.video.pyav import media_errors

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

FOLDER_RATE = Fraction(25)
"""Frames per second of a video made of a folder of pictures, unless told otherwise."""

# First bytes of a file to the decoder for it: names lie too often.
_SIGNATURES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "png"),
    (re.compile(rb"\xff\xd8\xff"), "mjpeg"),
    (re.compile(rb"II\*\0|MM\0\*"), "tiff"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "webp"),
    (re.compile(rb"BM.{4}\0{4}", re.DOTALL), "bmp"),
)
_FINEST_QUANTISER = {"flags": "+qscale", "qmin": "1", "global_quality": "118"}  # FF_QP2LAMBDA
_FINE_QUANTISER = {"flags": "+qscale", "global_quality": str(3 * 118)}
# Suffix to encoder, its pixel format and its options.
_ENCODERS: dict[str, tuple[str, str, dict[str, str]]] = {
    ".png": ("png", "rgb24", {}),
    ".jpg": ("mjpeg", "yuvj444p", _FINEST_QUANTISER),
    ".jpeg": ("mjpeg", "yuvj444p", _FINEST_QUANTISER),
    ".tif": ("tiff", "rgb24", {"compression_algo": "deflate"}),
    ".tiff": ("tiff", "rgb24", {"compression_algo": "deflate"}),
    ".webp": ("libwebp", "bgra", {"lossless": "1"}),
    ".bmp": ("bmp", "bgr24", {}),
}
IMAGE_SUFFIXES = frozenset(_ENCODERS)
"""Suffixes of the picture files that can be written, in lower case."""

_JPEG_COLOUR = Colour(matrix=BT601, range=FULL, primaries=2, transfer=2)


class ImageSource(Source):
    """One picture, or the pictures of a folder in natural order of their names.

    Files that are no pictures are ignored. All pictures must have the size of the first.

    Args:
        path: an existing file or folder.
        rate: frames per second of a video made of them.

    Raises:
        MediaError: there is no picture, or the first one cannot be read.
    """

    is_folder: bool
    """Whether ``path`` is a folder."""

    def __init__(self, path: Path, *, rate: Fraction = FOLDER_RATE) -> None:
        self.path = path
        self.is_folder = path.is_dir()
        self._files = _picture_files(path) if self.is_folder else [path]
        if not self._files:
            raise MediaError(
                f"the folder {path} holds no pictures: PNG, JPEG, TIFF, WebP and BMP can be read"
            )
        self.height, self.width = read_image(self._files[0]).shape[:2]
        self.frame_count = len(self._files)
        self.time_base = 1 / rate
        self.rate = rate
        self.sample_aspect = None
        self.colour = RGB_PICTURE

    def __iter__(self) -> Iterator[Frame]:
        for number, file in enumerate(self._files):
            image = read_image(file)
            height, width = image.shape[:2]
            if (width, height) != (self.width, self.height):
                raise MediaError(
                    f"{file} is {width}x{height}, the pictures before it are "
                    f"{self.width}x{self.height}: put pictures of one size into a folder"
                )
            yield Frame(image=image, pts=number, duration=1, name=file.name)


def is_image(path: Path) -> bool:
    """Whether the first bytes of a file are those of a picture format that can be read."""
    return _decoder_name(path) is not None


def read_image(path: Path) -> NDArray[np.uint8]:
    """Reads a picture of 8 or 16 bits, upright; opacity is dropped with a warning.

    Returns:
        ``(H, W, 3)`` uint8 RGB, contiguous.

    Raises:
        MediaError: the file is no picture, or a damaged one.
    """
    import av

    name = _decoder_name(path)
    if name is None:
        raise MediaError(f"{path} is no picture: PNG, JPEG, TIFF, WebP and BMP can be read")
    with media_errors(f"cannot read the picture {path}"):
        data = path.read_bytes()
        context: VideoCodecContext = av.CodecContext.create(name, "r")  # type: ignore[assignment]
        if name != "tiff":  # where FFmpeg finds fault with its own files
            context.options = {"err_detect": "explode"}
        frames = context.decode(av.Packet(data)) or context.decode(None)
        if not frames:
            raise MediaError(f"cannot read the picture {path}: it is damaged or incomplete")
        frame = frames[0]
        colour = colour_of(frame, matrix_if_unknown=BT601)
        if not any(component.is_alpha for component in frame.format.components):
            return upright(to_rgb(frame, colour=colour), exif_orientation(data))
        rgba = upright(to_rgba(frame, colour=colour), exif_orientation(data))
    if rgba[..., 3].min() < 255:
        logger.warning("%s is transparent in parts; its opacity is dropped", path)
    return np.ascontiguousarray(rgba[..., :3])


def write_image(path: Path, *, image: NDArray[np.uint8]) -> None:
    """Writes a picture in the format of the path's suffix, without loss except for JPEG.

    Args:
        path: the file to write, ending in one of ``IMAGE_SUFFIXES``.
        image: ``(H, W, 3)`` uint8 RGB.

    Raises:
        MediaError: the suffix is not known, or the file cannot be written.
    """
    choice = _ENCODERS.get(path.suffix.lower())
    if choice is None:
        raise MediaError(
            f"pictures cannot be written as {path.suffix!r}: use "
            + ", ".join(sorted(IMAGE_SUFFIXES))
        )
    with media_errors(f"cannot write the picture {path.name}"):
        path.write_bytes(_encode(image, *choice))


def encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    """A JPEG with full chroma for looking at, smaller than ``write_image`` makes it.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
    """
    return _encode(image, "mjpeg", "yuvj444p", _FINE_QUANTISER)


def _encode(image: NDArray[np.uint8], name: str, pix_fmt: str, options: dict[str, str]) -> bytes:
    """Encodes a picture with an encoder of FFmpeg's."""
    import av

    context: VideoCodecContext = av.CodecContext.create(name, "w")  # type: ignore[assignment]
    context.height, context.width = image.shape[:2]
    context.pix_fmt = pix_fmt
    context.time_base = 1 / FOLDER_RATE
    context.options = options
    if name == "mjpeg":
        context.color_range = FULL
    frame = from_rgb(
        image, pix_fmt=pix_fmt, colour=_JPEG_COLOUR if name == "mjpeg" else RGB_PICTURE
    )
    frame.pts = 0
    return b"".join(bytes(p) for p in [*context.encode(frame), *context.encode()])


def _picture_files(folder: Path) -> list[Path]:
    try:
        files = [file for file in folder.iterdir() if file.is_file() and is_image(file)]
    except OSError as error:
        raise MediaError(f"cannot read the folder {folder}: {error.strerror}") from error
    return sorted(files, key=lambda file: _natural_key(file.name))


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    """Orders "2.png" before "10.png"."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part.lower()) for part in parts]


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
