"""Serves frames in any order from a recurrent network, which makes them in order, scene by scene.

Independent of VapourSynth, and of what the frames are.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

__all__ = ["FrameServer"]

Frame = TypeVar("Frame")

_BLOCK = 32
"""Frames that are read in order on the way back to a scene's beginning: sources seek slowly."""

_UNKNOWN, _CONTINUES, _BEGINS = 0, 1, 2


class FrameServer(Generic[Frame]):
    """Serves the upscaled frames of a clip; any thread may ask for any of them at any time.

    The network runs through one scene at a time. A frame further on in the scene is reached by
    running on; one that has been passed comes from the cache, or else the scene is run again from
    its beginning. Every frame is therefore the same in whatever order the frames are asked for.

    Args:
        read: returns an input frame, and whether a scene begins with it. It is called in a thread
            that asked for a frame.
        upscale: upscales the frames of one scene: one output per input, in order. Its generator is
            closed when the scene is abandoned. It is always called in the same thread.
        length: number of frames of the clip.
        cached: number of upscaled frames to keep: requests out of order by fewer frames than these
            cost nothing.
    """

    def __init__(
        self,
        read: Callable[[int], tuple[Frame, bool]],
        upscale: Callable[[Iterable[Frame]], Generator[Frame, None, None]],
        *,
        length: int,
        cached: int,
    ) -> None:
        self._thread = _OneThread(read)
        self._upscale = upscale
        self._length = length
        self._cached = cached
        self._lock = threading.Lock()
        self._cache: dict[int, Frame] = {}  # in the order they were made
        self._cuts = bytearray(length)  # what is known about each frame
        self._run: Generator[Frame, None, None] | None = None
        self._start = 0  # of the scene that is run
        self._next = 0  # frame that the run returns next

    def frame(self, number: int) -> Frame:
        """Return an upscaled frame.

        Raises:
            IndexError: the clip has no such frame.
            Exception: what ``read`` or ``upscale`` raise; the next call begins the scene again.
        """
        if not 0 <= number < self._length:
            raise IndexError(f"frame {number} of a clip of {self._length} frames")
        with self._lock:
            if number in self._cache:
                return self._cache[number]
            start = self._scene_of(number)
            if self._run is not None and self._next <= start:
                self._finish_scene(before=start)
            if self._run is None or start != self._start or number < self._next:
                self._begin(start)
            return self._advance(to=number)

    def _scene_of(self, number: int) -> int:
        """Return the first frame of a frame's scene."""
        while True:
            start = max(0, self._cuts.rfind(_BEGINS, 1, number + 1))
            unknown = self._cuts.rfind(_UNKNOWN, start + 1, number + 1)
            if unknown < 0:
                return start
            for earlier in range(max(start + 1, unknown - _BLOCK + 1), unknown + 1):
                self._mark(earlier, self._thread.read(earlier)[1])

    def _finish_scene(self, *, before: int) -> None:
        """Run to the end of the current scene, if its last few frames precede a requested one: they
        have been asked for as well, by threads that are late.
        """
        left = before - self._next
        if 0 < left < self._cached and self._scene_of(before - 1) == self._start:
            self._advance(to=before - 1)

    def _begin(self, start: int) -> None:
        self._stop()
        self._run, self._start, self._next = self._upscale(self._scene(start)), start, start

    def _stop(self) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            self._thread.call(run.close)

    def _advance(self, *, to: int) -> Frame:
        assert self._run is not None
        while True:
            try:
                frame: Frame = self._thread.call(self._run.__next__)
            except BaseException:
                self._stop()
                raise
            number, self._next = self._next, self._next + 1
            self._cache.pop(number, None)
            self._cache[number] = frame
            if len(self._cache) > self._cached:
                del self._cache[next(iter(self._cache))]
            if number == to:
                return frame

    def _scene(self, start: int) -> Iterator[Frame]:
        """Yield the input frames of a scene."""
        for number in range(start, self._length):
            frame, begins = self._thread.ask(number)
            self._mark(number, begins)
            if begins and number > start:
                return
            yield frame

    def _mark(self, number: int, begins: bool) -> None:
        self._cuts[number] = _BEGINS if begins else _CONTINUES


class _OneThread:
    """Runs the network in a thread of its own, while the thread that waits for it reads its input.

    Were the network run by whichever thread asks for a frame, each of these would keep memory of
    it: the allocator has an arena per thread. Were input read by the network's thread, threads that
    wait for it could be all that the host has for making that input.
    """

    def __init__(self, read: Callable[[int], Any]) -> None:
        self.read = read
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="realbasicvsr")
        self._asked: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a function in the thread, read what it asks for meanwhile, and return its result."""
        future = self._thread.submit(function)
        future.add_done_callback(lambda done: self._asked.put(None))
        while (number := self._asked.get()) is not None:
            try:
                self._answers.put((self.read(number), None))
            except BaseException as error:
                self._answers.put((None, error))
        return future.result()

    def ask(self, number: int) -> Any:
        """Return an input frame; called by a function that :meth:`call` runs."""
        self._asked.put(number)
        frame, error = self._answers.get()
        if error is not None:
            raise error
        return frame
