"""Tests the memory pools: lending, reusing and freeing blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from rbvsr_deploy.engines.cuda import buffers
from rbvsr_deploy.engines.cuda.buffers import DevicePool, PinnedPool, host_array
from rbvsr_deploy.engines.cuda.queues import Queues
from tests.support.cuda_double import DriverDouble


@pytest.fixture
def driver() -> Iterator[DriverDouble]:
    """Provide a current driver that must not leak."""
    driver = DriverDouble(memory=5_000)
    with driver.current():
        yield driver
    assert driver.leaks() == []


@pytest.fixture
def queues(driver: DriverDouble) -> Iterator[Queues]:
    """Provide queues that are closed at the end."""
    queues = Queues(driver)
    yield queues
    queues.finish_all()
    queues.close()


def test_blocks_are_lent_once_at_a_time(driver: DriverDouble, queues: Queues) -> None:
    """They are lent again once their loan is garbage, to requests of the same size."""
    pool = DevicePool(driver, queues, on_shortage=lambda: None)
    first, second = pool.lend(500), pool.lend(510)
    assert first.block is not second.block
    address = first.block.address
    del first
    assert pool.idle_bytes == 512
    assert pool.lend(600).block.address != address
    assert pool.lend(400).block.address == address
    assert driver.calls.count("malloc") == 3
    pool.close()


def test_shortage(driver: DriverDouble, queues: Queues) -> None:
    """Optional loans are dropped, and all idle blocks are freed, even those still in flight."""
    held: list[object] = []
    pool = DevicePool(driver, queues, on_shortage=held.clear)
    queue = queues.open()
    held.append(pool.lend(2_000))
    idle = pool.lend(1_000)
    block = idle.block
    queues.submit(
        queue,
        lambda stream: driver.fill(block.address, 0, 1_000, stream),
        writes=[(block, 0, 1_000)],
    )
    kept = pool.lend(1_000)
    del idle
    assert pool.lend(3_500).block.size == 3_584
    assert held == []
    assert driver.used == 1_024 + 3_584
    assert kept.block.size == 1_024
    pool.close()


def test_pinned_blocks_are_lent_when_nothing_is_in_flight(
    driver: DriverDouble, queues: Queues
) -> None:
    """Blocks are allocated up to the limit; then the oldest one is waited for."""
    pool = PinnedPool(driver, queues)
    queue = queues.open()
    device = driver.malloc(64)
    for number in range(20):
        loan = pool.lend(64, most=3)
        host_array(loan, (64,), np.dtype(np.uint8))[:] = number
        block = loan.block
        queues.submit(
            queue,
            lambda stream, block=block: driver.upload(device, block.address, 64, stream),  # type: ignore[misc]
            reads=[(block, 0, 64)],
        )
        del loan
    assert pool.count(64) <= 3
    queues.finish_all()
    assert (driver.bytes_at(device, 64) == 19).all()
    driver.free(device)
    pool.close()


def test_pinned_memory_of_other_sizes_is_freed(
    driver: DriverDouble, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Videos of many sizes must not fill host memory."""
    monkeypatch.setattr(buffers, "_IDLE_PINNED", 1_000)
    pool = PinnedPool(driver, queues)
    for size in range(100, 1_000, 100):
        pool.lend(size, most=3)
    assert driver.calls.count("free_host") >= 4
    pool.close()


def test_an_array_keeps_its_loan(driver: DriverDouble, queues: Queues) -> None:
    """Its views keep it too, even after the pool is closed."""
    pool = PinnedPool(driver, queues)
    array = host_array(pool.lend(24, most=3), (2, 3), np.dtype(np.float32))
    array[:] = 1.5
    view = array[1:].reshape(3)[::2]
    del array
    pool.close()
    assert len(driver.leaks()) == 1
    assert view.tolist() == [1.5, 1.5]
    del view
    assert driver.leaks() == []
