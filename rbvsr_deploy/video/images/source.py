"""Reads an image, or the images of a folder as the frames of a video."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.pixels import Image, eight_bits, sixteen_bits
from rbvsr_deploy.video.base import Frame, Source
from rbvsr_deploy.video.colour.colour import RGB_COLOUR
from rbvsr_deploy.video.colour.opacity import keeps_opacity
from rbvsr_deploy.video.excerpts import cut_out
from rbvsr_deploy.video.image_metadata import ImageMetadata
from rbvsr_deploy.video.images.decoding import decode_image
from rbvsr_deploy.video.images.files import IMAGE_SUFFIXES, SUPPORTED, format_of, image_format
from rbvsr_deploy.video.images.trailing import trailing_data
from rbvsr_deploy.video.input_files import InputFiles
from rbvsr_deploy.video.options import ReadOptions

__all__ = ["FOLDER_RATE", "ImageSource"]

FOLDER_RATE = Fraction(25)
"""Default frames per second of a video made from an image folder."""

_DEFAULT_READING = ReadOptions()
_OF_THE_SYSTEM = frozenset(("thumbs.db", "desktop.ini"))
_MOST_NAMES = 3  # in a message


class ImageSource(Source):
    """Reads one image, or the images of a folder in natural order of their names.

    Other files in a folder are left out and reported; one with the suffix of an image that can be
    written is an error. All images must have the size of the first one, and are converted to its
    bit depth.

    Args:
        path: an existing file or folder.
        options: how to read the images.

    Raises:
        MediaError: there is no image, the first one cannot be read, or none is in the requested
            excerpt.
    """

    is_folder: bool
    """True if ``path`` is a folder."""
    files: InputFiles

    def __init__(self, path: Path, options: ReadOptions = _DEFAULT_READING) -> None:
        self.path = path
        self.is_folder = path.is_dir()
        self._images = self._in_folder() if self.is_folder else [path]
        self.rate = options.fps or FOLDER_RATE
        self.time_base = 1 / self.rate
        if options.is_excerpt:
            period = self.time_base
            timed = ((file, i * period, period) for i, file in enumerate(self._images))
            self._images = list(cut_out(timed, options, path=path))
        self.files = InputFiles(path, self._images, whole=True)
        self._alpha = options.alpha
        self._kept: bool | None = None  # until an image has alpha
        self._left_out: dict[str, int] = {}  # further images, by file name
        first, opacity, _ = self._read(0)
        # In a folder, any later image may have alpha.
        self.keeps_opacity = options.alpha == "keep" and (self.is_folder or opacity is not None)
        self.height, self.width = first.shape[:2]
        self.depth = 8 * first.itemsize
        self.frame_count = len(self._images)
        self.sample_aspect = None
        self.colour = RGB_COLOUR

    def __iter__(self) -> Iterator[Frame]:
        return self.frames_from(0, pts=0)

    def frames_from(self, number: int, *, pts: int | None) -> Iterator[Frame]:
        for place, file in enumerate(self._images[number:], number):
            image, opacity, metadata = self._read(place)
            in_depth = eight_bits if self.depth == 8 else sixteen_bits
            height, width = image.shape[:2]
            if (width, height) != (self.width, self.height):
                raise MediaError(
                    f"{file} is {width}x{height}, but the images before it are "
                    f"{self.width}x{self.height}: all images in a folder must have the same size"
                )
            yield Frame(
                image=in_depth(image),
                pts=place,
                duration=1,
                name=file.name,
                opacity=None if opacity is None else in_depth(opacity),
                metadata=metadata,
            )
        if self._left_out:
            count = sum(self._left_out.values())
            self.changes.drop(
                f"{count} further image{'s' * (count > 1)} in {_listed(sorted(self._left_out))}",
                "only the first image of a file is read; split it into files to read them all",
            )

    def _read(self, number: int) -> tuple[Image, Image | None, ImageMetadata]:
        file = self._images[number]
        data = self.files.read(number)
        if (name := format_of(data, file)) is None:
            raise MediaError(f"{file} is not an image: {SUPPORTED}")
        read = decode_image(data, name, file)
        if read.others:
            self._left_out[file.name] = read.others
        if rest := trailing_data(data, name, others=read.others):
            self.changes.drop(rest, "only the image is upscaled")
        for kind, change in read.conversions.items():
            self.changes.convert(kind, change)
        for kind, why in read.metadata.lost.items():
            self.changes.drop(kind, why)
        opacity = read.opacity
        if opacity is None or opacity.min() == np.iinfo(opacity.dtype).max:
            return read.image, None, read.metadata
        if self._kept is None:
            self._kept = keeps_opacity(file, self._alpha, changes=self.changes)
        return read.image, opacity if self._kept else None, read.metadata

    def _in_folder(self) -> list[Path]:
        """Return the images of a folder in natural order, and report other files.

        Files named like an image that cannot be read are an error: a frame must not be missing
        silently.
        """
        try:
            # Hidden files are skipped: macOS stores metadata of "1.png" in "._1.png".
            files = sorted(f for f in self.path.iterdir() if not f.name.startswith("."))
            files = [file for file in files if file.is_file()]
        except OSError as error:
            raise MediaError(f"cannot read the folder {self.path}: {error.strerror}") from error
        images = [file for file in files if image_format(file) is not None]
        if not images:
            raise MediaError(f"the folder {self.path} contains no images: {SUPPORTED}")
        known = set(images)
        others = [file for file in files if file not in known]
        for file in others:
            if file.suffix.lower() in IMAGE_SUFFIXES:
                raise MediaError(
                    f"{file} has an image extension but is not a complete image: repair or remove "
                    "it"
                )
        names = [file.name for file in others if file.name.lower() not in _OF_THE_SYSTEM]
        if names:
            self.changes.drop(
                f"{len(names)} file{'s' * (len(names) > 1)} in {self.path}: {_listed(names)}",
                f"not an image that can be read: {SUPPORTED}",
            )
        return sorted(images, key=lambda file: _natural_key(file.name))


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that orders "2.png" before "10.png"."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part.lower()) for part in parts]


def _listed(names: list[str]) -> str:
    """List names, shortened."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
