"""Simulates a GPU in host memory that executes work late and in any permitted order, and that
raises an error for every mistake a real GPU may not report.

Streams are queues of operations. Operations are executed only when the host waits, or now and then
at random, one at a time from a randomly chosen stream. An operation waits only for those before it
on its stream and for the events its stream waits for. Vector clocks record which operations are
ordered, so that a race is reported even if this execution order was harmless.
"""

from __future__ import annotations

import bisect
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines.cuda.driver import Gpu
from rbvsr_deploy.errors import DeviceMemoryError, EngineError

Range = tuple[int, int]
"""Start address and end address, exclusive."""

GARBAGE = 0xFF
"""Initial value of every byte of memory: NaN in floating point, white in an image."""


class GpuMisuseError(AssertionError):
    """A mistake that must never happen and that a real GPU may not report."""


@dataclass(eq=False)
class Operation:
    """One operation on a stream."""

    name: str
    stream: int
    number: int
    """Position on its stream, from 1."""
    clock: dict[int, int]
    """For each stream, the number of the last operation that is ordered before this one."""
    reads: list[Range]
    writes: list[Range]
    work: Callable[[], None]
    waits_for: Operation | None = None
    done: bool = False

    def is_after(self, other: Operation) -> bool:
        return self.clock.get(other.stream, 0) >= other.number


@dataclass
class _Stream:
    clock: dict[int, int] = field(default_factory=dict)
    submitted: int = 0
    pending: deque[Operation] = field(default_factory=deque)
    captured: list[tuple[str, list[Range], list[Range], Callable[[], None]]] | None = None
    """Operations of the capture in progress; ``None``: the stream is not captured."""


@dataclass
class _Memory:
    content: NDArray[np.uint8]
    pinned: bool
    uses: list[Operation] = field(default_factory=list)
    """Operations on it that the host does not know to be done."""


@dataclass
class _Graph:
    work: list[tuple[str, list[Range], list[Range], Callable[[], None]]]
    last: Operation | None = None


class DriverDouble:
    """Implements :class:`~rbvsr_deploy.engines.cuda.driver.CudaDriver` for tests.

    Args:
        seed: seed of the execution order.
        memory: memory of the GPU in bytes.
        fail_at: number of the call that fails, from 1.
        interrupt: whether that call fails as if the user pressed Ctrl-C.
        refuse: names of calls that always fail.
    """

    index = 0

    def __init__(
        self,
        seed: int = 0,
        *,
        memory: int = 2**30,
        fail_at: int | None = None,
        interrupt: bool = False,
        refuse: tuple[str, ...] = (),
    ) -> None:
        self.memory = memory
        self.fail_at = fail_at
        self.interrupt = interrupt
        self.refuse = refuse
        self.calls: list[str] = []
        self.failed: str | None = None
        """Name of the call that failed due to ``fail_at``."""
        self.seconds = 0.0
        """Simulated time that engines have taken."""
        self.log: list[Operation] = []
        self.used = 0
        self._random = random.Random(seed)
        self._threads = threading.local()
        self._streams: dict[int, _Stream] = {}
        self._events: dict[int, Operation | None] = {}
        self._graphs: dict[int, _Graph] = {}
        self._memories: dict[int, _Memory] = {}
        self._bases: list[int] = []
        """Addresses of the memories, sorted."""
        self._graveyard: list[NDArray[np.uint8]] = []
        self._host: dict[int, int] = {}
        """For each stream, the number of the last operation that the host knows to be done."""
        self._capturing = 0
        self._last_handle = 1000
        self._last_address = 2**40

    # For tests.

    def leaks(self) -> list[str]:
        """Return everything that was not freed."""
        memories = self._memories.items()
        return [
            *(f"{len(m.content)} bytes{' pinned' * m.pinned} at {a}" for a, m in memories),
            *(f"stream {handle}" for handle in self._streams),
            *(f"event {handle}" for handle in self._events),
            *(f"graph {handle}" for handle in self._graphs),
        ]

    def give(
        self,
        name: str,
        stream: int,
        work: Callable[[], None],
        *,
        reads: list[Range],
        writes: list[Range],
    ) -> None:
        """Submit an operation to a stream, like a copy or a kernel launch."""
        error = self._failure(name)
        # A call that fails may have submitted its work nevertheless.
        if error is None or self._random.random() < 0.5:
            live = self._live(stream)
            if live.captured is not None:
                live.captured.append((name, reads, writes, work))
            else:
                self._put(name, stream, work, reads, writes)
        if error is not None:
            raise error

    def bytes_at(self, address: int, size: int) -> NDArray[np.uint8]:
        """Return a view of the memory's current content."""
        memory, base = self._memory_at((address, address + size))
        return memory.content[address - base : address - base + size]

    def stall(self, stream: int) -> None:
        """Block the stream for ever by waiting for an operation that is never executed."""
        never = Operation("never", 0, 0, {}, [], [], lambda: None)
        self._put("stall", stream, lambda: None, [], [], waits_for=never)

    # The CudaDriver protocol.

    @contextmanager
    def current(self) -> Iterator[None]:
        self._threads.depth = getattr(self._threads, "depth", 0) + 1
        try:
            yield
        finally:
            self._threads.depth -= 1

    def gpu(self) -> Gpu:
        return Gpu("Double", "8.9", "13.0", self.memory)

    def free_memory(self) -> int:
        self._call("free_memory")
        return self.memory - self.used

    def malloc(self, size: int) -> int:
        self._call("malloc", out_of_memory=True)
        self._no_capture("malloc")
        if size > self.memory - self.used:
            raise DeviceMemoryError("CUDA failed in malloc: out of memory")
        self.used += size
        address = self._last_address
        self._last_address += -(-size // 512) * 512 + 512
        self._remember(address, np.full(size, GARBAGE, np.uint8), pinned=False)
        return address

    def free(self, address: int) -> None:
        self._call("free", may_fail=False)
        self.used -= len(self._forget(address, pinned=False))

    def malloc_host(self, size: int) -> int:
        self._call("malloc_host", out_of_memory=True)
        self._no_capture("malloc_host")
        content = np.full(size, GARBAGE, np.uint8)
        address = int(content.ctypes.data)
        self._remember(address, content, pinned=True)
        return address

    def free_host(self, address: int) -> None:
        self._call("free_host", may_fail=False)
        content = self._forget(address, pinned=True)
        content[:] = GARBAGE
        self._graveyard.append(content)  # a use after free must not crash the tests

    def create_stream(self, *, urgent: bool = False) -> int:
        self._call("create_stream")
        self._last_handle += 1
        self._streams[self._last_handle] = _Stream()
        return self._last_handle

    def destroy_stream(self, stream: int) -> None:
        self._call("destroy_stream", may_fail=False)
        if self._live(stream).submitted > self._host.get(stream, 0):
            raise GpuMisuseError(f"stream {stream} is destroyed with work in flight")
        del self._streams[stream]

    def synchronise_stream(self, stream: int) -> None:
        self._call("synchronise_stream")
        self._no_capture("synchronise_stream")
        live = self._live(stream)
        self._execute_until(lambda: not live.pending)
        self._learn({**live.clock, stream: live.submitted})

    def create_event(self) -> int:
        self._call("create_event")
        self._last_handle += 1
        self._events[self._last_handle] = None
        return self._last_handle

    def destroy_event(self, event: int) -> None:
        self._call("destroy_event", may_fail=False)
        recorded = self._recorded(event)
        if recorded is not None and not self._is_known(recorded):
            raise GpuMisuseError(f"event {event} is destroyed with work in flight")
        del self._events[event]

    def record(self, event: int, stream: int) -> None:
        error = self._failure("record")
        self._recorded(event)
        self._no_capture("record")
        if error is None or self._random.random() < 0.5:
            self._events[event] = self._put("record", stream, lambda: None, [], [])
        if error is not None:
            raise error

    def wait(self, stream: int, event: int) -> None:
        error = self._failure("wait")
        recorded = self._recorded(event)
        self._no_capture("wait")
        if recorded is None:
            raise GpuMisuseError(f"a stream waits for event {event}, which was never recorded")
        if error is None or self._random.random() < 0.5:
            self._put("wait", stream, lambda: None, [], [], waits_for=recorded)
        if error is not None:
            raise error

    def synchronise(self, event: int) -> None:
        self._call("synchronise")
        self._no_capture("synchronise")
        recorded = self._recorded(event)
        if recorded is None:
            raise GpuMisuseError(f"the host waits for event {event}, which was never recorded")
        self._execute_until(lambda: recorded.done)
        self._learn({**recorded.clock, recorded.stream: recorded.number})

    def is_done(self, event: int) -> bool:
        self._call("is_done")
        recorded = self._recorded(event)
        if recorded is None:
            raise GpuMisuseError(f"event {event} was never recorded")
        self._execute_some()
        if recorded.done:
            self._learn({**recorded.clock, recorded.stream: recorded.number})
        return recorded.done

    def upload(self, to: int, source: int, size: int, stream: int) -> None:
        self._submit_copy("upload", to, source, size, stream, pinned=(False, True))

    def download(self, to: int, source: int, size: int, stream: int) -> None:
        self._submit_copy("download", to, source, size, stream, pinned=(True, False))

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        self._submit_copy("copy", to, source, size, stream, pinned=(False, False))

    def copy_rows(
        self,
        to: int,
        to_pitch: int,
        source: int,
        source_pitch: int,
        *,
        width: int,
        count: int,
        stream: int,
    ) -> None:
        def work() -> None:
            for i in range(count):
                row = self.bytes_at(source + i * source_pitch, width)
                self.bytes_at(to + i * to_pitch, width)[:] = row

        self.give(
            "copy_rows",
            stream,
            work,
            reads=[
                (source + i * source_pitch, source + i * source_pitch + width) for i in range(count)
            ],
            writes=[(to + i * to_pitch, to + i * to_pitch + width) for i in range(count)],
        )

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        def work() -> None:
            self.bytes_at(address, size)[:] = value

        self.give("fill", stream, work, reads=[], writes=[(address, address + size)])

    def begin_capture(self, stream: int) -> None:
        self._call("begin_capture")
        live = self._live(stream)
        if live.captured is not None:
            raise GpuMisuseError(f"stream {stream} is already being captured")
        live.captured = []
        self._capturing += 1

    def end_capture(self, stream: int) -> int:
        live = self._live(stream)
        if live.captured is None:
            raise GpuMisuseError(f"stream {stream} is not being captured")
        captured, live.captured = live.captured, None
        self._capturing -= 1
        self._call("end_capture")
        self._last_handle += 1
        self._graphs[self._last_handle] = _Graph(captured)
        return self._last_handle

    def launch(self, graph: int, stream: int) -> None:
        error = self._failure("launch")
        launched = self._graph(graph)
        self._no_capture("launch")
        if error is None or self._random.random() < 0.5:
            for name, reads, writes, work in launched.work:
                launched.last = self._put(name, stream, work, reads, writes)
        if error is not None:
            raise error

    def destroy_graph(self, graph: int) -> None:
        self._call("destroy_graph", may_fail=False)
        last = self._graph(graph).last
        if last is not None and not self._is_known(last):
            raise GpuMisuseError(f"graph {graph} is destroyed while it is in flight")
        del self._graphs[graph]

    # Implementation.

    def _failure(
        self, name: str, *, out_of_memory: bool = False, may_fail: bool = True
    ) -> BaseException | None:
        """Record a call and return the error that it is to raise, if any."""
        if getattr(self._threads, "depth", 0) == 0:
            raise GpuMisuseError(f"{name} is called in a thread that has not made the GPU current")
        self.calls.append(name)
        if name in self.refuse:
            return EngineError(f"CUDA failed in {name}: refused")
        if len(self.calls) == self.fail_at:
            if self.interrupt:
                self.failed = name
                return KeyboardInterrupt()
            if may_fail:
                self.failed = name
                kind = DeviceMemoryError if out_of_memory else EngineError
                return kind(f"CUDA failed in {name}: as requested")
        return None

    def _call(self, name: str, *, out_of_memory: bool = False, may_fail: bool = True) -> None:
        error = self._failure(name, out_of_memory=out_of_memory, may_fail=may_fail)
        if error is not None:
            raise error

    def _submit_copy(
        self, name: str, to: int, source: int, size: int, stream: int, *, pinned: tuple[bool, bool]
    ) -> None:
        ranges = (to, to + size), (source, source + size)
        if tuple(self._memory_at(r)[0].pinned for r in ranges) != pinned:
            raise GpuMisuseError(f"{name} between memory of the wrong kinds")

        def work() -> None:
            self.bytes_at(to, size)[:] = self.bytes_at(source, size)

        self.give(name, stream, work, reads=[ranges[1]], writes=[ranges[0]])

    def _put(
        self,
        name: str,
        stream: int,
        work: Callable[[], None],
        reads: list[Range],
        writes: list[Range],
        *,
        waits_for: Operation | None = None,
    ) -> Operation:
        live = self._live(stream)
        _merge(live.clock, self._host)
        if waits_for is not None:
            _merge(live.clock, {**waits_for.clock, waits_for.stream: waits_for.number})
        live.submitted += 1
        operation = Operation(
            name, stream, live.submitted, dict(live.clock), reads, writes, work, waits_for
        )
        live.clock[stream] = live.submitted
        for which, is_write in [(r, False) for r in reads] + [(r, True) for r in writes]:
            memory, _ = self._memory_at(which)
            for other in memory.uses:
                if other is not operation and other.stream != stream:
                    self._check_race(operation, other, which, is_write)
            if operation not in memory.uses[-1:]:
                memory.uses.append(operation)
        live.pending.append(operation)
        self.log.append(operation)
        if self._random.random() < 0.1:
            self._execute_some()
        return operation

    def _check_race(
        self, operation: Operation, other: Operation, which: Range, is_write: bool
    ) -> None:
        theirs = other.writes + (other.reads if is_write else [])
        touches = any(a < which[1] and which[0] < b for a, b in theirs)
        if touches and not operation.is_after(other):
            raise GpuMisuseError(
                f"race: {operation.name} on stream {operation.stream} "
                f"{'writes' if is_write else 'reads'} memory that {other.name} on stream "
                f"{other.stream} may be using at the same time"
            )

    def _execute_some(self) -> None:
        for _ in range(self._random.randrange(8)):
            self._execute_one()

    def _execute_until(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            if not self._execute_one():
                raise GpuMisuseError("deadlock: the host waits for work that can never be done")

    def _execute_one(self) -> bool:
        ready = [
            stream.pending
            for stream in self._streams.values()
            if stream.pending
            and (stream.pending[0].waits_for is None or stream.pending[0].waits_for.done)
        ]
        if not ready:
            return False
        operation = self._random.choice(ready).popleft()
        operation.work()
        operation.done = True
        return True

    def _learn(self, clock: dict[int, int]) -> None:
        _merge(self._host, clock)
        for memory in self._memories.values():
            if memory.uses:
                memory.uses = [use for use in memory.uses if not self._is_known(use)]

    def _is_known(self, operation: Operation) -> bool:
        return self._host.get(operation.stream, 0) >= operation.number

    def _remember(self, address: int, content: NDArray[np.uint8], *, pinned: bool) -> None:
        self._memories[address] = _Memory(content, pinned)
        bisect.insort(self._bases, address)

    def _forget(self, address: int, *, pinned: bool) -> NDArray[np.uint8]:
        memory = self._memories.get(address)
        if memory is None or memory.pinned != pinned:
            raise GpuMisuseError(f"memory at {address} is freed but not allocated")
        if memory.uses:
            raise GpuMisuseError(
                f"memory is freed while {memory.uses[-1].name} may still be using it"
            )
        del self._memories[address]
        self._bases.remove(address)
        return memory.content

    def _memory_at(self, which: Range) -> tuple[_Memory, int]:
        place = bisect.bisect_right(self._bases, which[0]) - 1
        if place >= 0:
            base = self._bases[place]
            memory = self._memories[base]
            if which[1] <= base + len(memory.content):
                return memory, base
        raise GpuMisuseError(f"no allocated memory at bytes {which[0]} to {which[1]}")

    def _live(self, stream: int) -> _Stream:
        if stream not in self._streams:
            raise GpuMisuseError(f"there is no stream {stream}")
        return self._streams[stream]

    def _recorded(self, event: int) -> Operation | None:
        if event not in self._events:
            raise GpuMisuseError(f"there is no event {event}")
        return self._events[event]

    def _graph(self, graph: int) -> _Graph:
        if graph not in self._graphs:
            raise GpuMisuseError(f"there is no graph {graph}")
        return self._graphs[graph]

    def _no_capture(self, name: str) -> None:
        if self._capturing:
            raise GpuMisuseError(f"{name} is called during a capture")


def _merge(clock: dict[int, int], other: dict[int, int]) -> None:
    for stream, number in other.items():
        if clock.get(stream, 0) < number:
            clock[stream] = number
