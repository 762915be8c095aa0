"""Tests the dependencies between queues: no race, and no wait that is not needed."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from rbvsr_deploy.engines.cuda.queues import Block, Queue, Queues
from rbvsr_deploy.errors import EngineError
from tests.support.cuda_double import DriverDouble


class Bench:
    """Three queues on a double, and a block of 100 bytes."""

    def __init__(self, driver: DriverDouble) -> None:
        self.driver = driver
        self.queues = Queues(self.driver)
        self.a, self.b, self.c = (self.queues.open() for _ in range(3))
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
            assert len(bench.block._accesses) <= 20 * 4
            assert len(bench.queues._events) <= 20 * 4 + 1
        bench.queues.finish_all()
        bench.queues.close()
        driver.free(bench.block.address)
    assert driver.leaks() == []


@pytest.mark.parametrize("call", ["use", "record"])
@pytest.mark.parametrize("seed", range(6))
def test_partly_submitted_work(call: str, seed: int) -> None:
    """An operation that may or may not be on its stream is waited for on the host."""
    driver = DriverDouble(seed)
    with driver.current():
        bench = Bench(driver)
        driver.refuse = (call,)
        with pytest.raises(EngineError, match="refused"):
            bench.use(bench.a, 0, 50, write=True)
        driver.refuse = ()
        assert bench.use(bench.a, 0, 50) == 0
        assert "synchronise_stream" not in driver.calls
        assert bench.use(bench.b, 20, 30, write=True) <= 1
        assert driver.calls.count("synchronise_stream") == 1
        assert bench.use(bench.c, 40, 50, write=True) == 0
        assert driver.calls.count("synchronise_stream") == 1


def test_closing_continues_after_failures(bench: Bench) -> None:
    """Closing continues after a failure, and resumes after an interruption."""
    for queue in (bench.a, bench.b):
        bench.use(queue, 0, 50)
    bench.queues.finish_all()
    bench.driver.fail_at, bench.driver.interrupt = len(bench.driver.calls) + 2, True
    with pytest.raises(KeyboardInterrupt):
        bench.queues.close()
    bench.driver.refuse = ("destroy_event",)
    bench.queues.close()
    assert [leak.split()[0] for leak in bench.driver.leaks()] == ["100", "event"]
