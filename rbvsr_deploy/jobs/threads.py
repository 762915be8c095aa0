"""Reads ahead and writes in the background while the network computes, through bounded queues.

An error in a thread is raised where its work is waited for; leaving the context, for whatever
reason, stops the thread and waits for it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ReadAhead", "WriteBehind"]

T = TypeVar("T")

_POLL = 0.1  # seconds between checks whether a waiting thread should stop
_END = object()


class _SizedQueue(queue.Queue[Any]):
    """A queue that is full once the sizes of its items add up to ``maxsize``."""

    def __init__(self, maxsize: int, *, size: Callable[[Any], int]) -> None:
        self._size_of = size
        super().__init__(maxsize)

    # The four methods that queue.Queue has for other organisations of its items.
    def _init(self, maxsize: int) -> None:
        self._items: deque[tuple[Any, int]] = deque()
        self._total = 0

    def _qsize(self) -> int:
        return self._total

    def _put(self, item: Any) -> None:
        size = 1 if item is _END else max(1, self._size_of(item))
        self._items.append((item, size))
        self._total += size

    def _get(self) -> Any:
        item, size = self._items.popleft()
        self._total -= size
        return item


class _Thread:
    """Connects a thread and its caller through a queue."""

    def __init__(
        self, *, depth: int, size: Callable[[Any], int], name: str, interrupt: Callable[[], None]
    ) -> None:
        self.seconds = 0.0
        """Time the thread has worked, excluding waits."""
        self.waited = 0.0
        """Time the caller has waited for the thread."""
        self._queue = _SizedQueue(depth, size=size)
        self._stop = threading.Event()
        self._left = False  # the context, so that items in the queue are discarded
        self._interrupt = interrupt
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, name=name, daemon=True)

    def _guarded(self) -> None:
        try:
            self._work()
        except BaseException as error:  # raised again by the caller's side
            self._error = error
        finally:
            self._stop.set()

    def _work(self) -> None:
        raise NotImplementedError

    def _put(self, item: object) -> bool:
        """Hand over an item; return ``False`` if the other side has stopped."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL)
            except queue.Full:
                continue
            return True
        return False

    def _get(self) -> Any:
        """Return the next item, or ``_END`` if the other side has stopped."""
        while True:
            try:
                return self._queue.get(timeout=_POLL)
            except queue.Empty:
                if self._stop.is_set() and self._queue.empty():
                    return _END

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _start(self) -> None:
        """Start the thread. If the program is interrupted during the start, still wait for the
        thread: one that runs while the interpreter shuts down may abort the process.
        """
        try:
            self._thread.start()
        except BaseException:
            self._stop.set()
            for _ in range(100):
                if self._thread.ident is not None:  # set within moments if it was created
                    self._thread.join()
                    break
                time.sleep(_POLL / 10)
            raise

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an error elsewhere, results that are complete are still written.
        self._left = kind is not None and not issubclass(kind, Exception)
        self._stop.set()
        if kind is not None:
            self._interrupt()
        self._thread.join()


class ReadAhead(_Thread, Generic[T]):
    """Iterates over something in a thread, some items ahead.

    Args:
        items: used only by the thread; not closed.
        depth: sum of the sizes of the items in the queue from which on the thread waits.
        size: returns the size of an item, such as its bytes; at least 1.
        interrupt: called when an error ends the work, to end a wait for the next item.
    """

    def __init__(
        self,
        items: Iterable[T],
        *,
        depth: int,
        size: Callable[[T], int] = lambda item: 1,
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(depth=depth, size=size, name="reader", interrupt=interrupt)
        self._items = iter(items)

    def _work(self) -> None:
        while not self._stop.is_set():
            start = time.perf_counter()
            item = next(self._items, _END)
            self.seconds += time.perf_counter() - start
            if not self._put(item) or item is _END:
                return

    def __iter__(self) -> Iterator[T]:
        while True:
            start = time.perf_counter()
            item = self._get()
            self.waited += time.perf_counter() - start
            if item is _END:
                self._raise()
                return
            yield item


class WriteBehind(_Thread, Generic[T]):
    """Passes items to a function in a thread, in order.

    Args:
        consume: called in the thread with one item after the other.
        depth: sum of the sizes of the items in the queue from which on :meth:`put` waits.
        size: returns the size of an item, such as its bytes; at least 1.
        interrupt: called when an error ends the work, to end a wait of the function.
    """

    def __init__(
        self,
        consume: Callable[[T], None],
        *,
        depth: int,
        size: Callable[[T], int] = lambda item: 1,
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(depth=depth, size=size, name="writer", interrupt=interrupt)
        self._consume = consume

    def _work(self) -> None:
        while (item := self._get()) is not _END and not self._left:
            start = time.perf_counter()
            self._consume(item)
            self.seconds += time.perf_counter() - start

    def put(self, item: T) -> None:
        """Hand over an item; wait while the queue is full, raise the function's error if any."""
        start = time.perf_counter()
        taken = self._put(item)
        self.waited += time.perf_counter() - start
        if not taken:
            self._raise()

    def finish(self) -> None:
        """Wait until everything is consumed; raise the function's error if any."""
        start = time.perf_counter()
        self._put(_END)
        self._thread.join()
        self.waited += time.perf_counter() - start
        self._raise()
