"""Tests reading ahead and writing in threads: order, bounds, errors and stopping."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from rbvsr_deploy.jobs.threads import ReadAhead, WriteBehind


def alive(name: str) -> bool:
    return any(thread.name == name for thread in threading.enumerate())


def test_everything_comes_through_in_order() -> None:
    taken: list[int] = []
    with ReadAhead(range(100), depth=3) as reader, WriteBehind(taken.append, depth=2) as writer:
        for item in reader:
            writer.put(item)
        writer.finish()
    assert taken == list(range(100))
    assert not alive("reader")
    assert not alive("writer")


def test_the_reader_is_only_so_far_ahead() -> None:
    """It holds one item, and the queue the given number."""
    read: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            read.append(i)
            yield i

    with ReadAhead(items(), depth=3) as reader:
        iterator = iter(reader)
        next(iterator)
        deadline = time.monotonic() + 10
        while len(read) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)  # time enough to read more
        assert len(read) == 5
    assert not alive("reader")
    assert len(read) == 5


def test_depth_counts_the_sizes_of_items() -> None:
    """Items of size 4 fill a queue of depth 10 with three; the end of the items needs no room."""
    read: list[int] = []

    def items() -> Iterator[int]:
        for i in range(6):
            read.append(i)
            yield i

    with ReadAhead(items(), depth=10, size=lambda item: 4) as reader:
        deadline = time.monotonic() + 10
        while len(read) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)  # time enough to read more
        assert len(read) == 4  # the fourth waits for room
        assert list(reader) == [0, 1, 2, 3, 4, 5]


def test_items_without_size_pass() -> None:
    """Every item counts at least 1: a queue of empty ones is neither endless nor empty."""
    with ReadAhead(range(100), depth=3, size=lambda item: 0) as reader:
        assert list(reader) == list(range(100))


def test_both_sides_work_at_once() -> None:
    """While the first item is consumed, the next can be put without waiting."""
    consuming, proceed = threading.Event(), threading.Event()

    def consume(item: int) -> None:
        consuming.set()
        assert proceed.wait(10)

    with WriteBehind(consume, depth=1) as writer:
        writer.put(1)
        assert consuming.wait(10)
        writer.put(2)
        proceed.set()
        writer.finish()


def test_an_error_in_the_reader_is_raised_here_after_what_came_before() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk is gone")

    got: list[int] = []

    def read() -> None:
        with ReadAhead(items(), depth=5) as reader:
            got.extend(reader)

    with pytest.raises(OSError, match="the disk is gone"):
        read()
    assert got == [1, 2]
    assert not alive("reader")


def test_an_error_in_the_writer_is_raised_at_the_next_put() -> None:
    """It is not delayed until the end, which may be hours away."""

    def consume(item: int) -> None:
        raise OSError("the disk is full")

    def write() -> None:
        with WriteBehind(consume, depth=1) as writer:
            for _ in range(100):
                writer.put(1)

    with pytest.raises(OSError, match="the disk is full"):
        write()
    assert not alive("writer")


def test_an_error_in_the_writer_is_raised_at_the_end() -> None:
    def consume(item: int) -> None:
        raise OSError("the disk is full")

    def write() -> None:
        with WriteBehind(consume, depth=9) as writer:
            writer.put(1)
            writer.finish()

    with pytest.raises(OSError, match="the disk is full"):
        write()


def test_an_error_here_stops_both_at_once() -> None:
    """Items waiting to be written are discarded; both threads end with the context."""
    taken: list[int] = []

    def consume(item: int) -> None:
        time.sleep(0.05)
        taken.append(item)

    def endless() -> Iterator[int]:
        while True:
            yield 1

    def interrupted() -> None:
        with (
            ReadAhead(endless(), depth=2) as reader,
            WriteBehind(consume, depth=50) as writer,
        ):
            for number, item in enumerate(reader):
                writer.put(item)
                if number == 40:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not alive("reader")
    assert not alive("writer")
    assert len(taken) < 40


def test_time_at_work_is_not_time_waited() -> None:
    """With a slow writer the caller waits and the reader has little to do."""
    with (
        ReadAhead(range(10), depth=2) as reader,
        WriteBehind[int](lambda item: time.sleep(0.02), depth=1) as writer,
    ):
        for item in reader:
            writer.put(item)
        writer.finish()
    assert writer.seconds >= 0.2
    assert writer.waited > 0.5 * writer.seconds
    assert reader.seconds < writer.seconds


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_thread_that_was_just_started_is_waited_for(
    stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C or SIGTERM may arrive while the thread is being started."""
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise stop

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    for thread in (ReadAhead(iter(int, 1), depth=3), WriteBehind(print, depth=2)):
        with pytest.raises(stop), thread:
            pytest.fail("the context is not entered")
    assert not alive("reader")
    assert not alive("writer")
