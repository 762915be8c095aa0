"""Pictures: single files and folders of them."""

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
    RGB_PICTURE,
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


@dataclass(frozen=True)
class _Format:
    """How a picture is written: the encoder of FFmpeg's and its pixel formats."""

    encoder: str
    pix_fmt: str
    deep: str | None = None
    """For more than 8 bits; ``None``: they are rounded to 8."""
    alpha: str | None = None
    """With opacity; ``None``: it can hold none."""
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
"""Suffixes of the picture files that can be written, in lower case."""
ALPHA_SUFFIXES = frozenset(suffix for suffix, choice in _FORMATS.items() if choice.alpha)
"""Those of pictures that can hold opacity."""

_JPEG_COLOUR = Colour(matrix=BT601, range=FULL, primaries=2, transfer=2)


class ImageSource(Source):
    """One picture, or the pictures of a folder in natural order of their names.

    Files that neither are pictures nor called so are ignored. All pictures must have the size of
    the first, and are given in its bits.

    Args:
        path: an existing file or folder.
        options: how they are read.

    Raises:
        MediaError: there is no picture, the first one cannot be read, or none is in the excerpt
            that is asked for.
    """

    is_folder: bool
    """Whether ``path`` is a folder."""

    def __init__(self, path: Path, options: ReadOptions = _DEFAULT_READING) -> None:
        self.path = path
        self.is_folder = path.is_dir()
        self._files = _picture_files(path) if self.is_folder else [path]
        if not self._files:
            raise MediaError(
                f"the folder {path} holds no pictures: PNG, JPEG, TIFF, WebP and BMP can be read"
            )
        self.rate = options.fps or FOLDER_RATE
        self.time_base = 1 / self.rate
        if options.is_excerpt:
            period = self.time_base
            timed = ((file, i * period, period) for i, file in enumerate(self._files))
            self._files = list(cut_out(timed, options, path=path))
        self._alpha = options.alpha
        self._kept: bool | None = None  # until a picture has opacity
        first, opacity = self._read(self._files[0])
        # Of a folder, any other picture may have some.
        self.keeps_opacity = options.alpha == "keep" and (self.is_folder or opacity is not None)
        self.height, self.width = first.shape[:2]
        self.depth = 8 * first.itemsize
        self.frame_count = len(self._files)
        self.sample_aspect = None
        self.colour = RGB_PICTURE

    def __iter__(self) -> Iterator[Frame]:
        for number, file in enumerate(self._files):
            image, opacity = self._read(file)
            in_depth = eight_bits if self.depth == 8 else sixteen_bits
            height, width = image.shape[:2]
            if (width, height) != (self.width, self.height):
                raise MediaError(
                    f"{file} is {width}x{height}, the pictures before it are "
                    f"{self.width}x{self.height}: put pictures of one size into a folder"
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
    """Whether the first bytes of a file are those of a picture format that can be read."""
    return _decoder_name(path) is not None


def read_image(path: Path) -> Image:
    """Reads a picture, upright and without opacity.

    Returns:
        ``(H, W, 3)`` RGB, contiguous: uint8, or uint16 where the file has more than 8 bits.

    Raises:
        MediaError: the file is no picture, or a damaged one.
    """
    return read_with_opacity(path)[0]


def read_with_opacity(path: Path) -> tuple[Image, Image | None]:
    """As :func:`read_image`, with the opacity, ``(H, W, 1)`` of the same dtype, if there is any."""
    import av

    name = _decoder_name(path)
    if name is None:
        raise MediaError(f"{path} is no picture: PNG, JPEG, TIFF, WebP and BMP can be read")
    with media_errors(f"cannot read the picture {path}"), _size_errors(path):
        data = path.read_bytes()
        context: VideoCodecContext = av.CodecContext.create(name, "r")  # type: ignore[assignment]
        context.options = dict(DECODER_LIMITS)
        if name != "tiff":  # where FFmpeg finds fault with its own files
            context.options |= {"err_detect": "explode"}
        frames = context.decode(av.Packet(data)) or context.decode(None)
        if not frames:
            raise MediaError(f"cannot read the picture {path}: it is damaged or incomplete")
        frame, orientation = frames[0], exif_orientation(data)
        colour = colour_of(frame, matrix_if_unknown=BT601)
        image, opacity = to_rgb(frame, colour=colour, is_picture=True), opacity_of(frame)
        return upright(image, orientation), (
            None if opacity is None else upright(opacity, orientation)
        )


def write_image(path: Path, *, image: Image, opacity: Image | None = None) -> None:
    """Writes a picture in the format of the path's suffix; see ``encode_image``.

    Raises:
        MediaError: the suffix is not known, or the file cannot be written.
    """
    data = encode_image(image, path.suffix, opacity=opacity)
    with media_errors(f"cannot write the picture {path.name}"):
        path.write_bytes(data)


def encode_image(image: Image, suffix: str, *, opacity: Image | None = None) -> bytes:
    """A picture in the format of a suffix, without loss except for JPEG and for more than 8 bits in
    WebP and BMP, which are rounded.

    Args:
        image: ``(H, W, 3)`` RGB, uint8 or uint16.
        suffix: one of ``IMAGE_SUFFIXES``.
        opacity: ``(H, W, 1)`` of the same dtype, where the format is one of ``ALPHA_SUFFIXES``.

    Raises:
        MediaError: the suffix is not known, or the format cannot hold a picture of this size.
    """
    choice = _FORMATS.get(suffix.lower())
    if choice is None:
        raise MediaError(
            f"pictures cannot be written as {suffix!r}: use " + ", ".join(sorted(IMAGE_SUFFIXES))
        )
    pix_fmt = choice.pix_fmt if opacity is None else choice.alpha
    if image.dtype == np.uint16:
        pix_fmt = (choice.deep if opacity is None else choice.deep_alpha) or pix_fmt
    if pix_fmt is None:
        raise ValueError(f"{suffix} holds no opacity")
    with media_errors(f"cannot write a picture as {suffix}"):
        return _encode(image, choice.encoder, pix_fmt, choice.options, opacity=opacity)


def encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    """A JPEG with full chroma for looking at, smaller than ``write_image`` makes it.

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
    """Encodes a picture with an encoder of FFmpeg's."""
    import av

    context: VideoCodecContext = av.CodecContext.create(name, "w")  # type: ignore[assignment]
    context.height, context.width = image.shape[:2]
    context.pix_fmt = pix_fmt
    context.time_base = 1 / FOLDER_RATE
    context.options = options
    if name == "mjpeg":
        context.color_range = FULL
    colour = _JPEG_COLOUR if name == "mjpeg" else RGB_PICTURE
    frame = from_rgb(image, pix_fmt=pix_fmt, colour=colour, opacity=opacity)
    frame.pts = 0
    return b"".join(bytes(p) for p in [*context.encode(frame), *context.encode()])


def _picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder in natural order. What is no picture, and is not called one, is
    ignored; a frame that has become unreadable must not be missing in silence.
    """
    try:
        # Names with a dot in front are what systems leave beside files of other systems.
        files = [f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".")]
    except OSError as error:
        raise MediaError(f"cannot read the folder {folder}: {error.strerror}") from error
    pictures = [file for file in files if is_image(file)]
    for file in sorted(set(files) - set(pictures)):
        if pictures and file.suffix.lower() in IMAGE_SUFFIXES:
            raise MediaError(
                f"{file} is called a picture and is none, or an incomplete one: repair or remove it"
            )
    return sorted(pictures, key=lambda file: _natural_key(file.name))


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    """Orders "2.png" before "10.png"."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part.lower()) for part in parts]


@contextlib.contextmanager
def _size_errors(path: Path) -> Iterator[None]:
    """What decoders say of pictures that are too large, in words."""
    import av

    try:
        yield
    except av.ArgumentError as error:
        raise MediaError(
            f"cannot read the picture {path}: it is damaged, or has more than {MAX_PIXELS:,} pixels"
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
