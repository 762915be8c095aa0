"""Reads and writes video through pipes, uncompressed as YUV4MPEG2 (y4m).

The format has size, frame rate, sample aspect ratio and range, but neither colour matrix nor
timestamps nor audio. Pipes cannot be rewound: every frame is read and written once, in order.
"""

from __future__ import annotations

import logging
import os
import re
import select
import sys
import threading
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.base import Frame, Sink, Source
from rbvsr_deploy.video.colour.colour import FULL
from rbvsr_deploy.video.colour.conversion import from_rgb
from rbvsr_deploy.video.colour.opacity import no_room_for_opacity
from rbvsr_deploy.video.colour.planes import planes_of
from rbvsr_deploy.video.image_metadata import report_metadata
from rbvsr_deploy.video.options import ReadOptions
from rbvsr_deploy.video.pyav import media_errors, open_input
from rbvsr_deploy.video.timing.timestamps import NOTABLE_SHIFT
from rbvsr_deploy.video.video_source import VideoSource

if TYPE_CHECKING:
    from av.container import InputContainer

    from rbvsr_deploy.video.staging.parts import SegmentRecord

__all__ = ["PipeSink", "PipeSource", "is_pipe", "piped_frame_size", "piped_pix_fmt"]

logger = logging.getLogger(__name__)

_NAME_IN, _NAME_OUT = Path("standard input"), Path("standard output")
_DEFAULT_READING = ReadOptions()
_POLL = 0.1  # seconds between checks for an interrupt while waiting for the other program
_CAN_WAIT = hasattr(select, "poll")
"""True if the system can wait until a pipe is ready. On Windows, which cannot, an interrupt takes
effect when the other program reads, writes or ends; Ctrl-C ends that one too.
"""
_WRITABLE = getattr(select, "PIPE_BUF", 2**16)
"""Bytes that a pipe which is ready takes without blocking."""
_LONGEST_HEADER = 4096
_HOW = "pipe in the output of 'ffmpeg -i FILE -f yuv4mpegpipe -'"
# Pixel formats that every y4m reader supports, and their y4m names. Chroma is sited on the left.
_CHROMA = {
    "yuv420p": "420mpeg2",
    "yuv422p": "422",
    "yuv444p": "444",
    "yuv420p10le": "420p10 XYSCSS=420P10",
    "yuv422p10le": "422p10 XYSCSS=422P10",
    "yuv444p10le": "444p10 XYSCSS=444P10",
}


def is_pipe(path: Path) -> bool:
    """Return whether a path is "-", for standard input or output."""
    return str(path) == "-"


def piped_frame_size() -> tuple[int, int]:
    """Return the height and width in the header of standard input in pixels, without consuming it.

    Raises:
        MediaError: standard input is not y4m.
    """
    header = _standard_input().header()
    sizes = [re.search(rb" %s(\d+)" % letter, header) for letter in (b"H", b"W")]
    height, width = (int(size[1]) if size else 0 for size in sizes)
    if not height or not width:
        raise MediaError(f"the y4m header of {_NAME_IN} has no frame size: {_HOW}")
    return height, width


def piped_pix_fmt(requested: str | None) -> str:
    """Return the pixel format that y4m is written in.

    Raises:
        MediaError: y4m cannot have the one that is requested.
    """
    if requested is not None and requested not in _CHROMA:
        raise MediaError(
            f"pixel format {requested!r} cannot be piped as y4m: use one of {', '.join(_CHROMA)}"
        )
    return requested or "yuv420p"


class PipeSource(VideoSource):
    """Reads y4m from standard input, once per process.

    Raises:
        MediaError: standard input is empty, is not y4m, or ends in the middle of a frame.
    """

    reopenable = False

    def __init__(self, options: ReadOptions = _DEFAULT_READING) -> None:
        self._input = _standard_input()
        super().__init__(_NAME_IN, options)

    def interrupt(self) -> None:
        self._input.stop()

    def open_container(self) -> InputContainer:
        self._input.header()
        return open_input(self._input, container="yuv4mpegpipe")

    def _check_end(self) -> None:
        if self._pass.read_to != self._input.taken:
            raise MediaError(
                f"{self.path} ends in the middle of a frame: the program that writes it must have "
                "failed"
            )


class PipeSink(Sink):
    """Writes y4m to standard output. Other output of the process is redirected to standard error.

    The output cannot be resumed: after a failure it is incomplete.

    Args:
        source: the source of the output's frame rate, matrix and range.
        width, height: size of the frames that will be written, in pixels.
        sample_aspect: width of a pixel divided by its height; ``None``: unknown.
        pix_fmt: "yuv420p" (the default), "yuv422p", "yuv444p", or one of these in 10 bits.

    Raises:
        MediaError: the pixel format is not supported, or standard output is a terminal.
    """

    def __init__(
        self,
        *,
        source: Source,
        width: int,
        height: int,
        sample_aspect: Fraction | None = None,
        pix_fmt: str | None = None,
    ) -> None:
        self.path = _NAME_OUT
        self._source = source
        self._shape = (height, width, 3)
        self._aspect = sample_aspect or Fraction(0)
        self._pix_fmt = piped_pix_fmt(pix_fmt)
        if source.keeps_opacity:
            raise no_room_for_opacity("y4m")
        if source.depth > 8 and pix_fmt is None:
            source.changes.convert(
                f"{source.depth} bits per sample", "rounded to 8 bits, as y4m is written in yuv420p"
            )
        if os.isatty(1):
            raise MediaError(
                "standard output is a terminal: pipe it into a program, or choose a file as output"
            )
        self._frames = 0
        self._first: Fraction | None = None
        self._warned = False
        self._stop = threading.Event()
        logger.info(
            "y4m has no tag for the colour matrix: %s uses matrix %d of ITU-T H.273",
            self.path,
            source.colour.matrix,
        )
        # C libraries print to the file descriptor itself. Python has set the descriptors of the
        # standard streams to binary mode, on Windows too.
        sys.stdout.flush()
        self._handle = os.dup(1)
        os.dup2(2, 1)

    @property
    def finished_segments(self) -> list[SegmentRecord]:
        return []

    @property
    def folder(self) -> None:
        return None

    def attachment(self) -> None:
        return None

    def write(self, frame: Frame) -> None:
        self._check(frame, shape=self._shape)
        with self._writing():
            if not self._frames:
                self._send(self._header())
            self._check_time(frame)
            if frame.metadata is not None:
                report_metadata(self._source.changes, frame.metadata, name=None)
            converted = from_rgb(frame.image, pix_fmt=self._pix_fmt, colour=self._source.colour)
            self._send(b"FRAME\n")
            # Sizes suit the pixel format, so chroma planes have whole sizes.
            self._send(b"".join(plane.tobytes() for plane in planes_of(converted)))
        self._frames += 1

    def end_segment(self, note: dict[str, Any], attachment: bytes | None = None) -> None:
        """Do nothing: frames in a pipe are final."""

    def finish(self) -> None:
        with self._writing():
            if not self._frames:
                raise MediaError(f"{self.path} was not written: there was no frame to write")
        self.close()

    def interrupt(self) -> None:
        self._stop.set()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            sys.stdout.flush()
            os.dup2(self._handle, 1)
            os.close(self._handle)

    def _header(self) -> bytes:
        height, width, _ = self._shape
        rate, aspect = self._source.rate, self._aspect
        # 0:0 means unknown.
        shape = f"{aspect.numerator}:{aspect.denominator if aspect else 0}"
        extent = "FULL" if self._source.colour.range == FULL else "LIMITED"
        return (
            f"YUV4MPEG2 W{width} H{height} F{rate.numerator}:{rate.denominator} Ip A{shape} "
            f"C{_CHROMA[self._pix_fmt]} XCOLORRANGE={extent}\n"
        ).encode()

    def _check_time(self, frame: Frame) -> None:
        if frame.pts is None or self._warned:
            return
        time = frame.pts * self._source.time_base
        if self._first is None:
            self._first = time
        if abs(time - self._first - self._frames / self._source.rate) > NOTABLE_SHIFT:
            logger.warning(
                "%s supports only a constant frame rate, but the timestamps of %s vary: "
                "frames move in time",
                self.path,
                self._source.path,
            )
            self._warned = True

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            if not _CAN_WAIT or select.select([], [self._handle], [], _POLL)[1]:
                rest = rest[os.write(self._handle, rest[:_WRITABLE]) :]
            elif self._stop.is_set():
                raise MediaError(f"{self.path} was not read to the end: interrupted")


class _StandardInput:
    """Reads standard input through the file interface that PyAV expects."""

    def __init__(self) -> None:
        self._head = b""
        self._stop = threading.Event()
        self.taken = 0
        """Number of bytes consumed, without those that were only peeked at."""

    def header(self) -> bytes:
        """Return the first line without consuming it.

        Raises:
            MediaError: it is not a y4m header.
        """
        if self.taken:
            raise MediaError(f"{_NAME_IN} can be read only once: give a file")
        with media_errors(f"cannot read {_NAME_IN}"):
            if os.isatty(0):
                raise MediaError(f"{_NAME_IN} is a terminal: {_HOW}")
            while b"\n" not in self._head and len(self._head) < _LONGEST_HEADER:
                more = self._next(_LONGEST_HEADER)
                if not more:
                    break
                self._head += more
        line, end, _ = self._head.partition(b"\n")
        if not line.startswith(b"YUV4MPEG2 ") or not end:
            state = "is not y4m video" if self._head else "is empty"
            raise MediaError(f"{_NAME_IN} {state}: {_HOW}")
        return line

    def read(self, size: int) -> bytes:
        """Return the available bytes, up to ``size``; none at the end or after ``stop``."""
        data, self._head = self._head[:size], self._head[size:]
        data = data or self._next(size)
        self.taken += len(data)
        return data

    def stop(self) -> None:
        """End a wait for more bytes, also in another thread."""
        self._stop.set()

    def _next(self, size: int) -> bytes:
        while _CAN_WAIT and not select.select([0], [], [], _POLL)[0]:
            if self._stop.is_set():
                return b""
        return os.read(0, size)


@cache
def _standard_input() -> _StandardInput:
    return _StandardInput()
