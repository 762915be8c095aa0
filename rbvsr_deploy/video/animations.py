"""Detects animated PNG and WebP files, and reads animated WebP."""

from __future__ import annotations

import itertools
import os
import struct
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.pixels import Image
from rbvsr_deploy.video.base import Frame, Source
from rbvsr_deploy.video.colour.colour import RGB_COLOUR
from rbvsr_deploy.video.colour.opacity import keeps_opacity
from rbvsr_deploy.video.excerpts import count, cut_out
from rbvsr_deploy.video.image_metadata import read_metadata
from rbvsr_deploy.video.input_files import InputFiles
from rbvsr_deploy.video.options import ReadOptions
from rbvsr_deploy.video.pyav import MAX_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

__all__ = ["WebPAnimation", "is_animated", "is_webp", "refuse_heif"]

_PNG = b"\x89PNG\r\n\x1a\n"
_WEBP_ANIMATION = 0x02  # bit of the flags in the VP8X chunk
_AVIF_SEQUENCE = b"ftypavis"
# Brands of files whose main content is an image; sequences ("msf1", "hevc") are videos.
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"mif2", b"avci", b"jpeg", b"1pic")
_SHORTEST = 10  # milliseconds, the same minimum as in browsers


class WebPAnimation(Source):
    """Reads an animated WebP with Pillow, as FFmpeg only reads still ones.

    Args:
        path: an existing file.
        options: how to read the file.

    Raises:
        MediaError: the file cannot be read, or has no frame in the requested excerpt.
    """

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path = path
        self.files = InputFiles(path, [path], whole=False)
        self.files.opened()
        self._options = options
        self.time_base = Fraction(1, 1000)
        self.sample_aspect = None
        self.colour = RGB_COLOUR
        self.depth = 8
        animation = _open_webp(path)
        self._metadata = read_metadata(animation)
        for kind, why in self._metadata.lost.items():
            self.changes.drop(kind, why)
        self.keeps_opacity = options.alpha == "keep" and animation.mode == "RGBA"
        self._frames = self._decoded(animation)
        self._first = next(self._frames)
        self.height, self.width = self._first[0].shape[:2]
        self.rate = 1 / (self._first[1] * self.time_base)
        self.frame_count = count(_count(animation), options, rate=self.rate)

    def __iter__(self) -> Iterator[Frame]:
        begin: int | None = None
        for image, stamp, duration in cut_out(self._timed(), self._options, path=self.path):
            begin = stamp if begin is None else begin
            yield Frame(
                image=np.ascontiguousarray(image[..., :3]),
                pts=stamp - begin,
                duration=duration,
                opacity=np.ascontiguousarray(image[..., 3:]) if self.keeps_opacity else None,
                metadata=self._metadata,
            )

    def _timed(self) -> Iterator[tuple[tuple[Image, int, int], Fraction, Fraction]]:
        """Yield frames with timestamp and duration in milliseconds, then both in seconds."""
        stamp = 0
        for image, duration in itertools.chain((self._first,), self._frames):
            yield (image, stamp, duration), stamp * self.time_base, duration * self.time_base
            stamp += duration

    def _decoded(self, animation: PillowImage) -> Iterator[tuple[Image, int]]:
        """Yield every frame as RGB or RGBA with its duration in milliseconds; one is in memory.

        Raises:
            MediaError: it is damaged, or has an alpha channel, which is to be refused.
        """
        reported = self.keeps_opacity
        for number in range(_count(animation)):
            try:
                animation.seek(number)
                animation.load()
            except (EOFError, OSError, ValueError) as error:
                raise MediaError(
                    f"cannot read {self.path} from frame {number + 1} onwards: it is damaged"
                ) from error
            has_alpha = not reported and animation.mode == "RGBA"
            if has_alpha and animation.getchannel("A").getextrema() != (255, 255):
                reported = True
                keeps_opacity(self.path, self._options.alpha, changes=self.changes)
            # Large frames: no copy that is not needed.
            mode = "RGBA" if self.keeps_opacity else "RGB"
            image = np.asarray(animation if animation.mode == mode else animation.convert(mode))
            yield image, max(int(animation.info["duration"]), _SHORTEST)


def _open_webp(path: Path) -> PillowImage:
    """Open an animation without decoding a frame.

    Raises:
        MediaError: it is damaged, or its frames are too large.
    """
    from PIL import Image as Pillow

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, far from the limit below
            image = Pillow.open(path, formats=("WEBP",))
    except Exception as error:  # Pillow raises nearly anything on foreign bytes
        raise MediaError(f"cannot read {path}: it is damaged, or its frames are huge") from error
    if image.width * image.height > MAX_PIXELS:
        raise MediaError(f"cannot read {path}: its frames have more than {MAX_PIXELS:,} pixels")
    return image


def _count(image: PillowImage) -> int:
    return int(getattr(image, "n_frames", 1))


def refuse_heif(path: Path) -> None:
    """Refuse a HEIF image such as HEIC: FFmpeg would read only one of its tiles.

    Raises:
        MediaError: it is a HEIF image, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError as error:
        raise MediaError(f"cannot read {path}: {error.strerror}") from error
    if start[4:8] == b"ftyp" and start[8:] in _HEIF_BRANDS:
        raise MediaError(
            f"{path} is a HEIF image ({start[8:].decode()}), which is not supported: convert it to "
            "PNG or JPEG"
        )


def is_animated(path: Path) -> bool:
    """Return whether a file is a PNG, WebP or AVIF with several frames, which is handled as a
    video.

    Raises:
        MediaError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(21)
            if start.startswith(_PNG):
                file.seek(len(_PNG))
                return _png_is_animated(file)
            return _webp_is_animated(start) or start[4:12] == _AVIF_SEQUENCE
    except OSError as error:
        raise MediaError(f"cannot read {path}: {error.strerror}") from error


def is_webp(path: Path) -> bool:
    """Return whether a file starts with a WebP signature."""
    with path.open("rb") as file:
        start = file.read(12)
    return start[:4] + start[8:] == b"RIFFWEBP"


def _png_is_animated(file: BinaryIO) -> bool:
    """Return whether an animation control chunk precedes the image data."""
    while header := file.read(8):
        if len(header) < 8 or header[4:] == b"IDAT":
            return False
        if header[4:] == b"acTL":
            return True
        (length,) = struct.unpack(">I", header[:4])
        file.seek(length + 4, os.SEEK_CUR)  # the content and its checksum
    return False


def _webp_is_animated(start: bytes) -> bool:
    chunk = start[:4] + start[8:16]
    return chunk == b"RIFFWEBPVP8X" and len(start) > 20 and bool(start[20] & _WEBP_ANIMATION)
