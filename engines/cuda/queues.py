"""Orders work on several streams by the data it reads and writes.

Every piece of memory (:class:`Block`) remembers which submitted operations read or write it, byte
range by byte range. An operation waits, on the GPU, for earlier writes to the bytes it reads and
for all earlier uses of the bytes it writes, if these are on other streams; within a stream,
operations run in order anyway. So an operation may be submitted to any stream, different streams
may work on different slices of one array, and reused memory waits for operations still in flight
on it. The host does not wait.

Operations are numbered per stream. An event recorded after operation n also marks all earlier ones
of its stream, and everything that these waited for. So few events are recorded, and what the host
learns about one stream it learns about those that this stream waited for.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from rbvsr_deploy.engines.cuda.driver import CudaDriver
from rbvsr_deploy.errors import EngineError

__all__ = ["Block", "Mark", "Queue", "Queues", "Span", "free_each"]

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

_RECORD_EVERY = 4
"""Operations of a stream between two events that nobody has asked for. An operation may wait for up
to this many more than it needs."""


class Mark(NamedTuple):
    """The end of one operation on a queue."""

    queue: Queue
    number: int

    @property
    def is_past(self) -> bool:
        """True if the host knows that the operation has completed."""
        return self.number <= self.queue.finished


class _Recorded(NamedTuple):
    """An event, and what has completed when it has."""

    number: int
    """The last operation of its own queue."""
    event: int
    after: dict[Queue, int]
    """The last operation of every other queue."""


class Queue:
    """A stream, with the known progress of the stream itself and of those it waited for.

    Args:
        stream: the stream.
        every: number of operations after which an event is recorded.
    """

    def __init__(self, stream: int, *, every: int = _RECORD_EVERY) -> None:
        self.stream = stream
        self.every = every
        self.submitted = 0
        """Number of operations submitted."""
        self.finished = 0
        """Number of these operations known to have completed."""
        self.after: dict[Queue, int] = {}
        """Number of operations of another queue that this queue's next operation waits for."""
        self.recorded: list[_Recorded] = []
        """Events that are not known to have completed, in order."""


@dataclass
class _Range:
    """The last uses of some bytes, by the number of the operation."""

    write: Mark | None = None
    reads: dict[Queue, int] = field(default_factory=dict)
    """Reads since that write."""


class Block:
    """Memory that the GPU reads and writes: GPU memory or pinned host memory.

    Args:
        address: of the first byte.
        size: in bytes.
    """

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self.size = size
        # The bytes in ranges without gaps: those from starts[i] on, up to the next start.
        self._starts = [0]
        self._ranges = [_Range()]

    def marks(self, start: int = 0, stop: int | None = None, *, writes: bool) -> Iterator[Mark]:
        """Yield the marks a use of some bytes must wait for: writes, or all uses if it writes."""
        stop = self.size if stop is None else stop
        first = bisect.bisect_right(self._starts, start) - 1
        for used in self._ranges[first : bisect.bisect_left(self._starts, stop)]:
            if used.write is not None:
                yield used.write
            if writes:
                for item in used.reads.items():
                    yield Mark(*item)

    def remember(self, start: int, stop: int, mark: Mark, *, writes: bool) -> None:
        """Remember a use that waits for :meth:`marks`, and forget the uses it supersedes.

        A write supersedes all earlier uses; a read supersedes earlier reads on its own queue.
        """
        first, last = self._split(start), self._split(stop)
        if writes:
            self._starts[first:last] = [start]
            self._ranges[first:last] = [_Range(mark)]
        else:
            for used in self._ranges[first:last]:
                used.reads[mark.queue] = mark.number

    def _split(self, position: int) -> int:
        """Make a range begin at a position; return its index."""
        index = bisect.bisect_left(self._starts, position)
        is_new = position < self.size and self._starts[index : index + 1] != [position]
        if is_new:
            whole = self._ranges[index - 1]
            self._starts.insert(index, position)
            self._ranges.insert(index, _Range(whole.write, dict(whole.reads)))
        return index


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
        self._idle_events: list[int] = []

    def open(self, *, urgent: bool = False, every: int = _RECORD_EVERY) -> Queue:
        """Create a queue.

        Args:
            urgent: run its operations before those of other queues that are ready too.
            every: number of operations that may be waited for as one; 1 where the host waits for
                single ones.
        """
        queue = Queue(self._driver.create_stream(urgent=urgent), every=every)
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
        needed: dict[Queue, int] = {}
        for (block, start, stop), is_write in uses:
            for other, number in block.marks(start, stop, writes=is_write):
                if number > needed.get(other, other.finished):
                    needed[other] = number
        for other, number in needed.items():
            self._wait(queue, other, number)
        # Remembered before it is submitted: if submitting fails or the user interrupts the program
        # here, others wait for a later event of the queue, which marks what has been submitted.
        queue.submitted += 1
        mark = Mark(queue, queue.submitted)
        for (block, start, stop), is_write in uses:
            block.remember(start, stop, mark, writes=is_write)
        work(queue.stream)
        last = queue.recorded[-1].number if queue.recorded else queue.finished
        if queue.submitted - last >= queue.every:
            self._record(queue)
        return mark

    def finish(self, *marks: Mark) -> None:
        """Block the host until operations have completed."""
        for mark in marks:
            if not mark.is_past:
                recorded = self._recorded(mark.queue, mark.number)
                self._driver.synchronise(recorded.event)
                self._learn(mark.queue, recorded)

    def are_done(self, marks: Iterable[Mark]) -> bool:
        """Return whether operations have completed, without waiting for them."""
        for mark in marks:
            if not mark.is_past:
                recorded = self._recorded(mark.queue, mark.number)
                if not self._driver.is_done(recorded.event):
                    return False
                self._learn(mark.queue, recorded)
        return True

    def finish_all(self) -> None:
        """Block the host until all operations of all queues have completed.

        After a failure it still waits for the other queues, and raises the failure at the end.
        """
        failure = None
        for queue in self._queues:
            submitted = queue.submitted
            try:
                self._driver.synchronise_stream(queue.stream)
            except EngineError as error:
                failure = error
                continue
            self._finished(queue, submitted)
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Free streams and events; no operation may be in flight or be submitted later."""
        free_each(self._events, self._driver.destroy_event)
        free_each(self._queues, lambda queue: self._driver.destroy_stream(queue.stream))

    def _wait(self, queue: Queue, other: Queue, number: int) -> None:
        """Make the queue's next operation wait for one of another queue."""
        if other is queue or queue.after.get(other, 0) >= number:
            return
        recorded = self._recorded(other, number)
        self._driver.wait(queue.stream, recorded.event)
        queue.after[other] = recorded.number
        for earlier, last in recorded.after.items():
            if earlier is not queue and queue.after.get(earlier, 0) < last:
                queue.after[earlier] = last

    def _recorded(self, queue: Queue, number: int) -> _Recorded:
        """Return the earliest event that marks an operation not known to have completed."""
        if not queue.recorded or queue.recorded[-1].number < number:
            self._record(queue)
        return queue.recorded[bisect.bisect_left(queue.recorded, number, key=_number)]

    def _record(self, queue: Queue) -> None:
        if not self._idle_events:
            event = self._driver.create_event()
            self._events.append(event)
            self._idle_events.append(event)
        self._driver.record(self._idle_events[-1], queue.stream)
        after = {other: n for other, n in queue.after.items() if n > other.finished}
        queue.recorded.append(_Recorded(queue.submitted, self._idle_events.pop(), after))

    def _learn(self, queue: Queue, recorded: _Recorded) -> None:
        """Take note that an event has completed."""
        self._finished(queue, recorded.number)
        for other, number in recorded.after.items():
            self._finished(other, number)

    def _finished(self, queue: Queue, number: int) -> None:
        queue.finished = max(queue.finished, number)
        past = bisect.bisect_right(queue.recorded, queue.finished, key=_number)
        self._idle_events += [recorded.event for recorded in queue.recorded[:past]]
        del queue.recorded[:past]


def _number(recorded: _Recorded) -> int:
    return recorded.number


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
