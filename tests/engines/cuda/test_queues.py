"""Tests the dependencies between queues: no race, and no wait that is not needed."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from rbvsr_deploy.engines.cuda.queues import Block, Mark, Queue, Queues
from rbvsr_deploy.errors import EngineError
from tests.support.cuda_double import DriverDouble


class Bench:
    """Three queues on a double, and a block of 100 bytes."""

    def __init__(self, driver: DriverDouble, *, every: int = 4) -> None:
        self.driver = driver
        self.queues = Queues(self.driver)
        self.a, self.b, self.c = (self.queues.open(every=every) for _ in range(3))
        self.block = Block(self.driver.malloc(100), 100)

    def use(self, queue: Queue, start: int, stop: int, *, write: bool = False) -> int:
        """Submit a use of some bytes and return the number of waits it needed."""
        before = self.driver.calls.count("wait")
        spans = [(self.block, start, stop)]
        address = self.block.address
        ranges = [(address + start, address + stop)]
        reads, writes = ([], ranges) if write else (ranges, [])
        self.queues.submit(
            queue,
            lambda stream: self.driver.give(
                "use", stream, lambda: None, reads=reads, writes=writes
            ),
            reads=[] if write else spans,
            writes=spans if write else [],
        )
        return self.driver.calls.count("wait") - before


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Provide a bench while its GPU is current."""
    driver = DriverDouble()
    with driver.current():
        yield Bench(driver)


def test_only_conflicting_uses_wait(bench: Bench) -> None:
    """Reads wait for writes and writes for both, if of the same bytes on another queue, once."""
    assert bench.use(bench.a, 0, 50, write=True) == 0
    assert bench.use(bench.b, 50, 100, write=True) == 0
    assert bench.use(bench.a, 0, 50) == 0
    assert bench.use(bench.c, 10, 20) == 1
    assert bench.use(bench.c, 20, 50) == 0  # already waits for that write
    assert bench.use(bench.b, 40, 60) == 1
    assert bench.use(bench.a, 0, 10, write=True) == 0
    assert bench.use(bench.a, 30, 50, write=True) == 2  # both read there
    assert bench.use(bench.c, 60, 70) == 1


def test_completed_work_is_not_waited_for(bench: Bench) -> None:
    """This holds once the host knows that it has completed."""
    bench.use(bench.a, 0, 50, write=True)
    bench.queues.finish_all()
    assert bench.use(bench.b, 0, 50, write=True) == 0


@pytest.mark.parametrize("seed", range(30))
def test_any_uses_are_free_of_races(seed: int) -> None:
    """Uses random ranges, queues and kinds of access; the double finds every race.

    The remembered accesses do not grow with the number of uses.
    """
    rng = random.Random(seed)
    driver = DriverDouble(seed)
    with driver.current():
        bench = Bench(driver)
        for _ in range(200):
            start = rng.randrange(0, 100, 5)
            stop = rng.randrange(start + 5, 101, 5)
            queue = rng.choice([bench.a, bench.b, bench.c])
            bench.use(queue, start, stop, write=rng.random() < 0.4)
            assert len(bench.block._starts) == len(bench.block._ranges) <= 20
        for _ in range(200):
            bench.use(queue, 0, 100, write=True)
            mark = Mark(queue, queue.submitted)
            bench.queues.finish(mark)
        assert len(bench.block._ranges) == 1
        assert len(bench.queues._events) <= 200 + 1
        bench.queues.finish_all()
        bench.queues.close()
        driver.free(bench.block.address)
    assert driver.leaks() == []


@pytest.mark.parametrize("call", ["use", "record"])
@pytest.mark.parametrize("seed", range(6))
def test_partly_submitted_work(call: str, seed: int) -> None:
    """An operation that may or may not be on its stream is waited for, on the GPU."""
    driver = DriverDouble(seed)
    with driver.current():
        bench = Bench(driver, every=1)
        driver.refuse = (call,)
        with pytest.raises(EngineError, match="refused"):
            bench.use(bench.a, 0, 50, write=True)
        driver.refuse = ()
        assert bench.use(bench.a, 0, 50) == 0
        assert bench.use(bench.b, 20, 30, write=True) == 1
        assert bench.use(bench.c, 40, 50, write=True) == 1
        assert "synchronise_stream" not in driver.calls


def test_events_are_recorded_when_somebody_waits(bench: Bench) -> None:
    """Else only now and then, so that a wait covers a few later operations at most."""
    for i in range(3):
        bench.use(bench.a, 10 * i, 10 * i + 10, write=True)
    assert "record" not in bench.driver.calls
    bench.use(bench.b, 0, 10)
    assert bench.driver.calls.count("record") == 1
    assert bench.use(bench.b, 20, 30) == 0  # that event marks all three
    for i in range(40):
        bench.use(bench.a, 60 + i, 61 + i, write=True)
    assert bench.driver.calls.count("record") == 1 + 10
    assert bench.use(bench.c, 60, 61) == 1
    last = bench.driver.log[-1]
    assert sum(last.is_after(other) for other in bench.driver.log if other.name == "use") <= 3 + 4


def test_a_result_tells_about_everything_before_it(bench: Bench) -> None:
    """Once the host has waited for one queue, it knows about those that this one waited for, at any
    remove.
    """
    for _ in range(100):
        bench.use(bench.a, 0, 50, write=True)
    bench.use(bench.b, 0, 50)
    bench.use(bench.b, 50, 60, write=True)
    bench.use(bench.c, 50, 60)
    assert not Mark(bench.a, 100).is_past
    bench.queues.finish(Mark(bench.c, 1))
    assert Mark(bench.a, 100).is_past
    assert Mark(bench.b, 2).is_past
    assert bench.a.recorded == bench.b.recorded == []
    before = len(bench.driver.calls)
    assert bench.queues.are_done(bench.block.marks(writes=True))
    assert len(bench.driver.calls) == before


def test_bookkeeping_does_not_grow(bench: Bench) -> None:
    """Each slice of an array is looked up by itself, however many there are."""
    many = Block(bench.driver.malloc(10_000), 10_000)
    for i in range(1000):
        bench.queues.submit(bench.a, lambda stream: None, writes=[(many, 10 * i, 10 * i + 10)])
    assert [mark.number for mark in many.marks(5000, 5010, writes=True)] == [501]
    assert [mark.number for mark in many.marks(5005, 5015, writes=True)] == [501, 502]
    bench.queues.submit(bench.b, lambda stream: None, writes=[(many, 0, 10_000)])
    assert len(many._ranges) == 1


def test_closing_continues_after_failures(bench: Bench) -> None:
    """Closing continues after a failure, and resumes after an interruption."""
    bench.use(bench.a, 0, 50, write=True)
    bench.use(bench.b, 0, 50, write=True)
    bench.use(bench.c, 0, 50)
    bench.queues.finish_all()
    bench.driver.fail_at, bench.driver.interrupt = len(bench.driver.calls) + 2, True
    with pytest.raises(KeyboardInterrupt):
        bench.queues.close()
    bench.driver.refuse = ("destroy_event",)
    bench.queues.close()
    assert [leak.split()[0] for leak in bench.driver.leaks()] == ["100", "event"]
