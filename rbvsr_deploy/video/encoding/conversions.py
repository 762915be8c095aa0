"""Converts upscaled frames for an encoder in threads of their own, a few ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.video.colour.conversion import from_rgb

if TYPE_CHECKING:
    from av import VideoFrame

    from rbvsr_deploy.pixels import Image
    from rbvsr_deploy.video.colour.colour import Colour

__all__ = ["Conversions"]

T = TypeVar("T")

# One thread converts about 160 frames of 1280x720 per second; encoders need the other cores.
_MOST_THREADS = 4
_MOST_WAITING = 256 * 2**20
"""Bytes of images that may be in conversion, at least one."""


class Conversions(Closing, Generic[T]):
    """Converts RGB to frames for an encoder; they come out in the order in which they went in.

    FFmpeg's and OpenCV's conversions run without Python's lock, so that threads help.

    Args:
        pix_fmt: FFmpeg name of the encoder's pixel format.
        colour: matrix and range to convert to, and the tags to set.
        threads: number of threads; by default one for every two processors, at most four.
    """

    def __init__(self, *, pix_fmt: str, colour: Colour, threads: int | None = None) -> None:
        self._pix_fmt, self._colour = pix_fmt, colour
        threads = threads or max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // 2))
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="converter")
        self._waiting: deque[tuple[Future[VideoFrame], T]] = deque()

    def add(
        self, image: Image, item: T, *, opacity: Image | None = None
    ) -> Iterator[tuple[VideoFrame, T]]:
        """Begin to convert an image, and yield earlier ones that more must not be held of.

        Args:
            image: ``(H, W, 3)`` RGB, uint8 or uint16; not changed until it comes out.
            item: comes out with the frame.
            opacity: ``(H, W, 1)`` alpha of the same dtype, for a pixel format with alpha.
        """
        future = self._pool.submit(
            from_rgb, image, pix_fmt=self._pix_fmt, colour=self._colour, opacity=opacity
        )
        self._waiting.append((future, item))
        most = max(1, min(self._threads, _MOST_WAITING // image.nbytes))
        while len(self._waiting) > most:
            yield self._next()

    def rest(self) -> Iterator[tuple[VideoFrame, T]]:
        """Yield all frames that have not come out yet."""
        while self._waiting:
            yield self._next()

    def clear(self) -> None:
        """Discard all frames that have not come out yet."""
        for future, _ in self._waiting:
            future.cancel()
        self._waiting.clear()

    def close(self) -> None:
        self.clear()
        self._pool.shutdown()

    def _next(self) -> tuple[VideoFrame, T]:
        future, item = self._waiting.popleft()
        return future.result(), item
