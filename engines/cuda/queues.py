"""Orders work on several streams by the data it reads and writes.

Every piece of memory (:class:`Block`) remembers which submitted operations read or write it, byte
range by byte range. An operation waits, on the GPU, for earlier writes to the bytes it reads and
for all earlier uses of the bytes it writes, if these are on other streams; within a stream,
operations run in order anyway. So an operation may be submitted to any stream, different streams
may work on different slices of one array, and reused memory waits for operations still in flight
on it. The host does not wait.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple, TypeVar

from rbvsr_deploy.engines.cuda.driver import CudaDriver
from rbvsr_deploy.errors import EngineError

__all__ = ["Block", "Mark", "Queue", "Queues", "Span", "free_each"]

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


class Queue:
    """A stream, with the known progress of the stream itself and of those it waited for."""

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.submitted = 0
        """Number of operations submitted."""
        self.finished = 0
        """Number of these operations known to have completed."""
        self.after: dict[Queue, int] = {}
        """Number of operations of another queue that this queue's next operation waits for."""


class Mark:
    """The end of one operation on a queue. Its event is reused once the mark is garbage."""

    __slots__ = ("_idle_events", "event", "number", "queue")

    def __init__(self, queue: Queue, idle_events: deque[int]) -> None:
        queue.submitted += 1
        self.queue = queue
        self.number = queue.submitted
        self.event: int | None = None
        """``None`` until the operation is on the stream; it stays ``None`` if submitting failed."""
        self._idle_events = idle_events

    @property
    def is_past(self) -> bool:
        """True if the host knows that the operation has completed."""
        return self.number <= self.queue.finished

    def __del__(self) -> None:
        if self.event is not None:
            self._idle_events.append(self.event)


class _Access(NamedTuple):
    start: int
    stop: int
    mark: Mark
    writes: bool


class Block:
    """Memory that the GPU reads and writes: GPU memory or pinned host memory.

    Args:
        address: of the first byte.
        size: in bytes.
    """

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self.size = size
        self._accesses: list[_Access] = []

    def marks(self, start: int = 0, stop: int | None = None, *, writes: bool) -> Iterator[Mark]:
        """Yield the marks a use of some bytes must wait for: writes, or all uses if it writes."""
        stop = self.size if stop is None else stop
        for access in self._accesses:
            if access.start < stop and start < access.stop and (writes or access.writes):
                yield access.mark

    def remember(self, start: int, stop: int, mark: Mark, *, writes: bool) -> None:
        """Remember a use that waits for :meth:`marks`, and forget the uses it supersedes.

        A write supersedes all earlier uses; a read supersedes earlier reads on its own queue.
        """
        kept = [_Access(start, stop, mark, writes)]
        for access in self._accesses:
            if access.mark.is_past:
                continue
            if writes or (not access.writes and access.mark.queue is mark.queue):
                # Keep the rest of it on both sides.
                for a, b in ((access.start, start), (stop, access.stop)):
                    left = max(a, access.start), min(b, access.stop)
                    if left[0] < left[1]:
                        kept.append(access._replace(start=left[0], stop=left[1]))
            else:
                kept.append(access)
        self._accesses = kept


Span = tuple[Block, int, int]
"""Bytes of a block: start (inclusive) and stop (exclusive)."""


class Queues:
    """Creates the streams of a GPU and submits work to them.

    Args:
        driver: of the GPU.

    Raises:
        EngineError: the driver failed; every method may raise it.
    """

    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver
        self._queues: list[Queue] = []
        self._events: list[int] = []
        self._idle_events: deque[int] = deque()

    def open(self) -> Queue:
        """Create a queue."""
        queue = Queue(self._driver.create_stream())
        self._queues.append(queue)
        return queue

    def submit(
        self,
        queue: Queue,
        work: Callable[[int], None],
        *,
        reads: Iterable[Span] = (),
        writes: Iterable[Span] = (),
    ) -> Mark:
        """Submit work to a queue, after everything it depends on.

        Args:
            queue: to submit to.
            work: called with the stream; submits the work to it and returns without waiting.
            reads, writes: the bytes it reads and writes; bytes it writes may also be read.
        """
        uses = [(span, False) for span in reads] + [(span, True) for span in writes]
        for (block, start, stop), is_write in uses:
            for mark in block.marks(start, stop, writes=is_write):
                self._wait(queue, mark)
        # Remembered before it is submitted: if submitting fails or the user interrupts the program
        # here, others still find the mark, see that it has no event and wait for the whole queue.
        mark = Mark(queue, self._idle_events)
        for (block, start, stop), is_write in uses:
            block.remember(start, stop, mark, writes=is_write)
        work(queue.stream)
        event = self._event()
        try:
            self._driver.record(event, queue.stream)
        except BaseException:
            self._idle_events.append(event)
            raise
        mark.event = event
        return mark

    def finish(self, *marks: Mark) -> None:
        """Block the host until operations have completed."""
        for mark in marks:
            if mark.is_past:
                continue
            if mark.event is None:
                self._finish_queue(mark.queue)
            else:
                self._driver.synchronise(mark.event)
                mark.queue.finished = max(mark.queue.finished, mark.number)

    def are_done(self, marks: Iterable[Mark]) -> bool:
        """Return whether operations have completed, without waiting for them."""
        for mark in marks:
            if mark.is_past:
                continue
            if mark.event is None or not self._driver.is_done(mark.event):
                return False
            mark.queue.finished = max(mark.queue.finished, mark.number)
        return True

    def finish_all(self) -> None:
        """Block the host until all operations of all queues have completed."""
        for queue in self._queues:
            self._finish_queue(queue)

    def close(self) -> None:
        """Free streams and events; no operation may be in flight or be submitted later."""
        free_each(self._events, self._driver.destroy_event)
        free_each(self._queues, lambda queue: self._driver.destroy_stream(queue.stream))

    def _wait(self, queue: Queue, mark: Mark) -> None:
        if mark.queue is queue or mark.is_past:
            return
        if mark.event is None:
            self._finish_queue(mark.queue)
        elif queue.after.get(mark.queue, 0) < mark.number:
            self._driver.wait(queue.stream, mark.event)
            queue.after[mark.queue] = mark.number

    def _finish_queue(self, queue: Queue) -> None:
        submitted = queue.submitted
        self._driver.synchronise_stream(queue.stream)
        queue.finished = max(queue.finished, submitted)

    def _event(self) -> int:
        # Marks may be garbage collected in any thread: taking from a deque needs no lock.
        with suppress(IndexError):
            return self._idle_events.popleft()
        event = self._driver.create_event()
        self._events.append(event)
        return event


def free_each(items: list[Item], free: Callable[[Item], None]) -> None:
    """Free the items of a list, last first, and continue after failures.

    A GPU that has failed does so at every call; its resources are gone with its context.
    """
    while items:
        try:
            free(items[-1])
        except EngineError as error:
            logger.debug("not freed: %s", error)
        items.pop()
