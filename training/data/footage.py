"""Frames of one clip of footage, any of them without those before it, as far as its coding allows.

Frames come as *planes*: flat arrays of bytes as they are decoded, RGB for picture files and YUV
4:2:0 for videos. They are cut while they are planes and only what is cut out is converted, so that
what comes from a cache of planes is bit for bit what comes from the decoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.errors import first_line
from rbvsr_deploy.video.colour.colour import colour_of

__all__ = ["DamagedSourceError", "Footage", "PictureFiles", "Region", "VideoFile"]

Frame = NDArray[np.uint8]
"""(H, W, 3) uint8, RGB."""
Planes = NDArray[np.uint8]
"""(N,) uint8: one frame as decoded."""


_SKIPPING_DECODERS = ("h264", "hevc", "mpeg4")
"""Decoders that can leave frames out without harm to the others; libdav1d cannot."""


class DamagedSourceError(Exception):
    """A file that cannot be decoded where it was asked to."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"'{path}' is damaged ({reason})")
        self.path = str(path)


@dataclass(frozen=True)
class Region:
    """Part of a frame, pixels."""

    top: int
    left: int
    height: int
    width: int


class Footage(ABC):
    """Frames of one size."""

    name: str
    """Path of the file or folder."""
    stamp: int
    """Changes when the content does: the youngest time of modification, nanoseconds."""
    count: int
    """Frames."""
    height: int
    width: int
    frame_bytes: int
    """Of the planes of one frame."""

    @abstractmethod
    def decode(self, start: int, count: int) -> Iterator[Planes]:
        """Consecutive frames.

        Raises:
            DamagedSourceError: one of them cannot be decoded.
        """

    @abstractmethod
    def cut(self, planes: Planes, region: Region) -> Frame:
        """Part of a frame, converted."""


class PictureFiles(Footage):
    """One picture file per frame.

    Raises:
        DamagedSourceError: the first file is no picture.
    """

    def __init__(self, name: str, files: Sequence[Path]) -> None:
        self.name, self.files, self.count = name, list(files), len(files)
        self.stamp = max(file.stat().st_mtime_ns for file in files)
        try:
            with av.open(str(files[0])) as container:
                stream = container.streams.video[0]
                self.height, self.width = stream.height, stream.width
        except (av.error.FFmpegError, IndexError) as error:
            raise DamagedSourceError(files[0], first_line(error)) from None
        self.frame_bytes = self.height * self.width * 3
        if not self.frame_bytes:
            raise DamagedSourceError(files[0], "not a readable picture")

    def decode(self, start: int, count: int) -> Iterator[Planes]:
        for file in self.files[start : start + count]:
            picture = _read_image(file)
            if picture is None or picture.shape != (self.height, self.width, 3):
                raise DamagedSourceError(
                    file,
                    f"not a picture of {self.width}x{self.height}"
                    if picture is not None
                    else "not a readable picture",
                )
            yield picture.reshape(-1).astype(np.uint8, copy=False)

    def cut(self, planes: Planes, region: Region) -> Frame:
        picture = planes.reshape(self.height, self.width, 3)
        return np.ascontiguousarray(
            picture[
                region.top : region.top + region.height, region.left : region.left + region.width
            ]
        )


def _read_image(file: Path) -> NDArray[Any] | None:
    """Decode an image file as RGB; return ``None`` if it cannot be read."""
    # On Windows, OpenCV's own reader does not open paths outside of ASCII.
    try:
        data = np.fromfile(file, np.uint8)
    except OSError:
        return None
    if not data.size:
        return None
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


class VideoFile(Footage):
    """A video file, indexed by the time stamps of its packets; 8 bits, 4:2:0.

    Raises:
        DamagedSourceError: the file has no video, or its first frame cannot be decoded.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.path, self.stamp = str(path), path, path.stat().st_mtime_ns
        times, keys = [], []
        frame = None
        try:
            with av.open(str(path)) as container:
                if not container.streams.video:
                    raise DamagedSourceError(path, "there is no video in it")
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1
                for packet in container.demux(stream):
                    if frame is None:
                        frame = next(iter(packet.decode()), None)
                    if packet.pts is not None and packet.size:
                        times.append(packet.pts)
                        if packet.is_keyframe:
                            keys.append(packet.pts)
        except av.error.FFmpegError as error:
            raise DamagedSourceError(path, first_line(error)) from None
        if frame is None or not times:
            raise DamagedSourceError(path, "no frames with time stamps")
        # An odd last row or column has no colour of its own.
        self.height, self.width = frame.height // 2 * 2, frame.width // 2 * 2
        self.frame_bytes = self.height * self.width * 3 // 2
        self.times = np.unique(np.array(times, np.int64))
        self.count = len(self.times)
        self.keys = np.searchsorted(self.times, np.unique(np.array(keys, np.int64)))
        self.colour = colour_of(frame)
        if not self.frame_bytes:
            raise DamagedSourceError(path, f"frames of {frame.width}x{frame.height}")

    def frames_ahead(self, count: int) -> float:
        """How many frames lie between a clip of ``count`` frames and the key frame before it, on
        average.
        """
        starts = np.arange(self.count - count + 1)
        before = np.searchsorted(self.keys, starts, side="right") - 1
        return float(np.mean(starts - np.where(before < 0, 0, self.keys[before])))

    def decode(self, start: int, count: int) -> Iterator[Planes]:
        wanted = [int(time) for time in self.times[start : start + count]]
        found, reason = 0, ""
        for entry in self._entries(start):
            try:
                for planes in self._decode_from(entry, wanted[found:]):
                    yield planes
                    found += 1
            except av.error.FFmpegError as error:
                reason = first_line(error)
            if found == count:
                return
        raise DamagedSourceError(self.path, reason or f"frame {start + found} is missing")

    def _entries(self, start: int) -> Iterator[int | None]:
        """Times to seek to, one after the other until all frames are found; ``None`` is the
        beginning of the file. Some key frames are none to a decoder that begins there (open groups
        of pictures, gradual refresh), and some containers go to a later one.
        """
        yield int(self.times[start])
        before = self.keys[self.keys <= start]
        if len(before) > 1:
            yield int(self.times[before[-2]])
        yield None

    def _decode_from(self, entry: int | None, wanted: Sequence[int]) -> Iterator[Planes]:
        """The first of the wanted frames, as many as can be decoded without a gap."""
        found = 0
        with av.open(str(self.path)) as container:
            stream = container.streams.video[0]
            context: Any = stream.codec_context
            context.thread_count = 1  # the workers share the processors
            context.options = {"err_detect": "explode"}
            if entry is not None:
                container.seek(entry, stream=stream)
            for packet in container.demux(stream):
                # Of what comes before, what no other frame refers to need not be decoded.
                early = packet.pts is not None and packet.pts < wanted[0]
                skip = early and context.name in _SKIPPING_DECODERS
                context.skip_frame = "NONREF" if skip else "DEFAULT"
                for frame in packet.decode():
                    if frame.pts == wanted[found]:
                        yield self._planes(frame)
                        found += 1
                    if found == len(wanted) or (frame.pts or 0) > wanted[found]:
                        return

    def _planes(self, frame: av.VideoFrame) -> Planes:
        height, width, colour_range = self.height, self.width, self.colour.range
        if (frame.height // 2 * 2, frame.width // 2 * 2) != (height, width):
            raise DamagedSourceError(self.path, f"frames of {frame.width}x{frame.height}, too")
        if frame.format.name not in ("yuv420p", "yuvj420p"):
            frame = frame.reformat(
                format="yuv420p",
                src_color_range=colour_range,
                dst_color_range=colour_range,
                threads=1,
            )
        parts = []
        for plane, divisor in zip(frame.planes, (1, 2, 2), strict=True):
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            parts.append(rows[: height // divisor, : width // divisor].ravel())
        return np.concatenate(parts)

    def cut(self, planes: Planes, region: Region) -> Frame:
        height, width = self.height, self.width
        luma, u, v = np.split(planes, [height * width, height * width * 5 // 4])
        # Colour lies on every other pixel: what is cut begins there and is cut to size afterwards.
        top, left = region.top // 2 * 2, region.left // 2 * 2
        bottom = min((region.top + region.height + 1) // 2 * 2, height)
        right = min((region.left + region.width + 1) // 2 * 2, width)
        parts = [luma.reshape(height, width)[top:bottom, left:right].ravel()]
        for plane in (u, v):
            half = plane.reshape(height // 2, width // 2)
            parts.append(half[top // 2 : bottom // 2, left // 2 : right // 2].ravel())
        yuv = np.concatenate(parts).reshape(-1, right - left)
        frame = av.VideoFrame.from_ndarray(yuv, format="yuv420p")
        frame.colorspace, frame.color_range = self.colour.matrix, self.colour.range
        rgb = frame.to_ndarray(format="rgb24")
        y, x = region.top - top, region.left - left
        return np.ascontiguousarray(rgb[y : y + region.height, x : x + region.width])
