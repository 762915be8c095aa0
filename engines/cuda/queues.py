"""Work on several streams that runs at once wherever the data allow, and waits where they do not.

Every piece of memory (:class:`Block`) remembers what was given to the GPU that reads or writes it,
byte range by byte range. What is given to a stream next waits, on the GPU, for the writes to what
it reads and for all uses of what it writes, as far as these are on other streams: within a stream
things happen in order anyway. So a launch is right wherever it is put, parts of one array may be
worked on by different streams, and memory that is used again waits for what is still in flight on
it. The host waits for nothing.
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
    """A stream, and how far it and what it waited for are known to be."""

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.given = 0
        """Operations it was given."""
        self.finished = 0
        """So many of them are known to be done."""
        self.after: dict[Queue, int] = {}
        """So many operations of another queue are done before what this one is given next."""


class Mark:
    """The end of one operation on a queue. Its event is used again when nobody knows the mark."""

    __slots__ = ("_idle_events", "event", "number", "queue")

    def __init__(self, queue: Queue, idle_events: deque[int]) -> None:
        queue.given += 1
        self.queue = queue
        self.number = queue.given
        self.event: int | None = None
        """``None`` until the operation is on the stream: for good, if giving it failed half-way."""
        self._idle_events = idle_events

    @property
    def is_past(self) -> bool:
        """Whether the host knows the operation to be done."""
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
    """Memory that the GPU reads and writes, its own or pinned memory of the host.

    Args:
        address: of the first byte.
        size: in bytes.
    """

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self.size = size
        self._accesses: list[_Access] = []

    def marks(self, start: int = 0, stop: int | None = None, *, writes: bool) -> Iterator[Mark]:
        """What a use of some bytes has to wait for: writes to them, or all uses if it writes."""
        stop = self.size if stop is None else stop
        for access in self._accesses:
            if access.start < stop and start < access.stop and (writes or access.writes):
                yield access.mark

    def note(self, start: int, stop: int, mark: Mark, *, writes: bool) -> None:
        """Remember a use that waits for :meth:`marks`, in place of those that it makes
        superfluous: a write comes after all others, a read after those on its own queue.
        """
        kept = [_Access(start, stop, mark, writes)]
        for access in self._accesses:
            if access.mark.is_past:
                continue
            if writes or (not access.writes and access.mark.queue is mark.queue):
                # What is left of it on both sides.
                for a, b in ((access.start, start), (stop, access.stop)):
                    left = max(a, access.start), min(b, access.stop)
                    if left[0] < left[1]:
                        kept.append(access._replace(start=left[0], stop=left[1]))
            else:
                kept.append(access)
        self._accesses = kept


Span = tuple[Block, int, int]
"""Bytes of a block: from the second up to, not including, the third."""


class Queues:
    """Some streams of a GPU.

    Args:
        driver: of the GPU.

    Raises:
        EngineError: as the driver does, here and everywhere below.
    """

    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver
        self._queues: list[Queue] = []
        self._events: list[int] = []
        self._idle_events: deque[int] = deque()

    def open(self) -> Queue:
        """One more."""
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
        """Give a queue some work, after all that it depends on.

        Args:
            queue: where to.
            work: is called with the stream, puts the work onto it and returns without waiting.
            reads, writes: the bytes it reads and writes; what it writes it may also read.
        """
        uses = [(span, False) for span in reads] + [(span, True) for span in writes]
        for (block, start, stop), is_write in uses:
            for mark in block.marks(start, stop, writes=is_write):
                self._wait(queue, mark)
        # Noted before it is given: if giving it fails half-way, or the user stops the program just
        # there, others still find the mark, see that it has no event and wait for all of the queue.
        mark = Mark(queue, self._idle_events)
        for (block, start, stop), is_write in uses:
            block.note(start, stop, mark, writes=is_write)
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
        """Wait on the host until operations are done."""
        for mark in marks:
            if mark.is_past:
                continue
            if mark.event is None:
                self._finish_queue(mark.queue)
            else:
                self._driver.synchronise(mark.event)
                mark.queue.finished = max(mark.queue.finished, mark.number)

    def are_done(self, marks: Iterable[Mark]) -> bool:
        """Whether operations are done, without waiting for them."""
        for mark in marks:
            if mark.is_past:
                continue
            if mark.event is None or not self._driver.is_done(mark.event):
                return False
            mark.queue.finished = max(mark.queue.finished, mark.number)
        return True

    def finish_all(self) -> None:
        """Wait on the host until all that was given to all queues is done."""
        for queue in self._queues:
            self._finish_queue(queue)

    def close(self) -> None:
        """Free streams and events; nothing may be in flight, and nothing is submitted any more."""
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
        given = queue.given
        self._driver.synchronise_stream(queue.stream)
        queue.finished = max(queue.finished, given)

    def _event(self) -> int:
        # Marks may be let go of in any thread: taking from a deque needs no lock.
        with suppress(IndexError):
            return self._idle_events.popleft()
        event = self._driver.create_event()
        self._events.append(event)
        return event


def free_each(items: list[Item], free: Callable[[Item], None]) -> None:
    """Free what is in a list, from its end. A GPU that fails does so at every call: one that cannot
    be freed does not keep the others, and went with the GPU's context.
    """
    while items:
        try:
            free(items[-1])
        except EngineError as error:
            logger.debug("not freed: %s", error)
        items.pop()
