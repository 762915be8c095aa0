"""Gives random access to the frames of videos and of sequences of image files.

Frames come as *planes*: flat byte arrays as decoded, RGB for image files and YUV 4:2:0 for videos.
They are cropped as planes and only the crop is converted, so frames read from a cache of planes are
bit-identical to frames read from the decoder.
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
from av.container import InputContainer
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError, first_line
from rbvsr_deploy.video.colour.colour import colour_of
from rbvsr_deploy.video.playlists import SINGLE_IMAGE, demuxers, refuse_playlist

__all__ = ["DamagedSourceError", "Footage", "ImageFiles", "Region", "VideoFile"]

Frame = NDArray[np.uint8]
"""(H, W, 3) uint8, RGB."""
Planes = NDArray[np.uint8]
"""(N,) uint8: one frame as decoded."""


_SKIPPING_DECODERS = ("h264", "hevc", "mpeg4")
"""Decoders that can skip frames without damaging others; libdav1d cannot."""


class DamagedSourceError(Exception):
    """Raised when a file cannot be decoded at the requested position."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"'{path}' is damaged ({reason})")
        self.path = str(path)


@dataclass(frozen=True)
class Region:
    """A rectangle within a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Footage(ABC):
    """A sequence of frames of one size."""

    name: str
    """Path of the file or folder."""
    stamp: int
    """Latest modification time in nanoseconds; changes when the content does."""
    count: int
    """Number of frames."""
    height: int
    width: int
    frame_bytes: int
    """Size of the planes of one frame, in bytes."""

    @abstractmethod
    def decode(self, start: int, count: int) -> Iterator[Planes]:
        """Yield the planes of ``count`` consecutive frames, beginning with frame ``start``.

        Raises:
            DamagedSourceError: one of them cannot be decoded.
        """

    @abstractmethod
    def cut(self, planes: Planes, region: Region) -> Frame:
        """Crop a frame and convert the crop to RGB."""


def _open(path: Path) -> InputContainer:
    """Open footage; files that name further files are refused.

    Raises:
        DamagedSourceError: the file is a playlist, or missing.
        av.error.FFmpegError: the file is not readable as media.
    """
    try:
        refuse_playlist(path, playlists=False)
    except (MediaError, OSError) as error:
        raise DamagedSourceError(path, first_line(error)) from None
    return av.open(
        f"file:{path}", options=SINGLE_IMAGE | {"format_whitelist": demuxers(playlists=False)}
    )


class ImageFiles(Footage):
    """A sequence of image files, one per frame.

    Raises:
        DamagedSourceError: the first file cannot be read as an image.
    """

    def __init__(self, name: str, files: Sequence[Path]) -> None:
        self.name, self.files, self.count = name, list(files), len(files)
        self.stamp = max(file.stat().st_mtime_ns for file in files)
        try:
            with _open(files[0]) as container:
                stream = container.streams.video[0]
                self.height, self.width = stream.height, stream.width
        except (av.error.FFmpegError, IndexError) as error:
            raise DamagedSourceError(files[0], first_line(error)) from None
        self.frame_bytes = self.height * self.width * 3
        if not self.frame_bytes:
            raise DamagedSourceError(files[0], "not a readable image")

    def decode(self, start: int, count: int) -> Iterator[Planes]:
        for file in self.files[start : start + count]:
            image = _read_image(file)
            if image is None or image.shape != (self.height, self.width, 3):
                raise DamagedSourceError(
                    file,
                    f"not an image of {self.width}x{self.height}"
                    if image is not None
                    else "not a readable image",
                )
            yield image.reshape(-1).astype(np.uint8, copy=False)

    def cut(self, planes: Planes, region: Region) -> Frame:
        image = planes.reshape(self.height, self.width, 3)
        return np.ascontiguousarray(
            image[region.top : region.top + region.height, region.left : region.left + region.width]
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
    """A video file, indexed by the timestamps of its packets; frames are read as 8-bit 4:2:0.

    Raises:
        DamagedSourceError: the file has no video stream, or its first frame cannot be decoded.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.path, self.stamp = str(path), path, path.stat().st_mtime_ns
        times, keys = [], []
        frame = None
        try:
            with _open(path) as container:
                if not container.streams.video:
                    raise DamagedSourceError(path, "no video stream")
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
            raise DamagedSourceError(path, "no frames with timestamps")
        # An odd last row or column has no chroma sample of its own.
        self.height, self.width = frame.height // 2 * 2, frame.width // 2 * 2
        self.frame_bytes = self.height * self.width * 3 // 2
        self.times = np.unique(np.array(times, np.int64))
        self.count = len(self.times)
        self.keys = np.searchsorted(self.times, np.unique(np.array(keys, np.int64)))
        self.colour = colour_of(frame)
        if not self.frame_bytes:
            raise DamagedSourceError(path, f"frames of {frame.width}x{frame.height}")

    def frames_ahead(self, count: int) -> float:
        """Return the mean number of frames from the preceding key frame to the start of a clip of
        ``count`` frames.
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
        """Yield the times to seek to, in the order to try until all frames are found; ``None`` is
        the beginning of the file. A decoder cannot start at some key frames (open GOPs, gradual
        refresh), and some containers seek to a later one.
        """
        yield int(self.times[start])
        before = self.keys[self.keys <= start]
        if len(before) > 1:
            yield int(self.times[before[-2]])
        yield None

    def _decode_from(self, entry: int | None, wanted: Sequence[int]) -> Iterator[Planes]:
        """Yield the wanted frames up to the first one that cannot be decoded."""
        found = 0
        with _open(self.path) as container:
            stream = container.streams.video[0]
            context: Any = stream.codec_context
            context.thread_count = 1  # the workers share the processors
            context.options = {"err_detect": "explode"}
            if entry is not None:
                container.seek(entry, stream=stream)
            for packet in container.demux(stream):
                # Skip the earlier frames that no other frame refers to.
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
            raise DamagedSourceError(
                self.path, f"its frame size changes to {frame.width}x{frame.height}"
            )
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
        # Chroma is sampled at every other pixel: crop at even coordinates first, then to size.
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
