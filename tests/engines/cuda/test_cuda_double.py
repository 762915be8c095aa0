"""Tests that the GPU's double detects each kind of misuse."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from rbvsr_deploy.errors import DeviceMemoryError, EngineError
from tests.support.cuda_double import GARBAGE, DriverDouble, GpuMisuseError


class Gpu(DriverDouble):
    """A double with two streams, an event, device memory and pinned memory."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        with self.current():
            self.first, self.second = self.create_stream(), self.create_stream()
            self.event = self.create_event()
            self.device, self.host = self.malloc(64), self.malloc_host(64)


@pytest.fixture(params=range(5))
def gpu(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    """Provide doubles with several orders of execution; detection must not depend on it."""
    gpu = Gpu(request.param)
    with gpu.current():
        yield gpu


def test_awaited_work_has_completed(gpu: Gpu) -> None:
    """Copies and fills run in the order of their stream, and across streams as events say."""
    gpu.bytes_at(gpu.host, 64)[:] = np.arange(64)
    gpu.upload(gpu.device, gpu.host, 64, gpu.first)
    gpu.fill(gpu.device, 7, 8, gpu.first)
    gpu.record(gpu.event, gpu.first)
    gpu.wait(gpu.second, gpu.event)
    gpu.copy_rows(gpu.device, 4, gpu.device + 32, 8, width=2, count=3, stream=gpu.second)
    gpu.synchronise_stream(gpu.second)
    want = [32, 33, 7, 7, 40, 41, 7, 7, 48, 49, 10, 11]
    np.testing.assert_array_equal(gpu.bytes_at(gpu.device, 12), want)


@pytest.mark.parametrize("second_writes", [False, True])
@pytest.mark.parametrize("waits", [False, True])
def test_races(gpu: Gpu, second_writes: bool, waits: bool) -> None:
    """Two streams use the same bytes, one of them writes, and no event orders them."""

    def use() -> None:
        if second_writes:
            gpu.fill(gpu.device + 4, 1, 4, gpu.second)
        else:
            gpu.download(gpu.host, gpu.device + 4, 4, gpu.second)

    gpu.fill(gpu.device, 0, 8, gpu.first)
    gpu.record(gpu.event, gpu.first)
    if waits:
        gpu.wait(gpu.second, gpu.event)
        use()
    else:
        with pytest.raises(GpuMisuseError, match="race"):
            use()


def test_an_event_covers_earlier_work(gpu: Gpu) -> None:
    """It does not cover work submitted to its stream later."""
    gpu.record(gpu.event, gpu.first)
    gpu.fill(gpu.device, 0, 8, gpu.first)
    gpu.wait(gpu.second, gpu.event)
    with pytest.raises(GpuMisuseError, match="race"):
        gpu.fill(gpu.device, 1, 8, gpu.second)


def test_concurrent_reads_and_disjoint_writes_are_not_races(gpu: Gpu) -> None:
    """Neither is a use of bytes whose writer the host has waited for."""
    gpu.fill(gpu.device, 3, 32, gpu.first)
    gpu.fill(gpu.device + 32, 4, 32, gpu.second)
    gpu.synchronise_stream(gpu.first)
    gpu.download(gpu.host, gpu.device, 8, gpu.first)
    gpu.download(gpu.host + 8, gpu.device, 8, gpu.second)


def test_memory_that_is_not_allocated(gpu: Gpu) -> None:
    """Access past the end, before the start and after freeing is detected."""
    for address in (gpu.device + 60, gpu.device - 1, 12345):
        with pytest.raises(GpuMisuseError, match="no allocated memory"):
            gpu.fill(address, 0, 8, gpu.first)
    gpu.free(gpu.device)
    with pytest.raises(GpuMisuseError, match="no allocated memory"):
        gpu.download(gpu.host, gpu.device, 8, gpu.first)
    with pytest.raises(GpuMisuseError, match="freed but not allocated"):
        gpu.free(gpu.device)
    with pytest.raises(GpuMisuseError, match="wrong kinds"):
        gpu.copy(gpu.host, gpu.host + 8, 8, gpu.first)


def test_freeing_resources_in_flight(gpu: Gpu) -> None:
    """Covers memory, streams, events and graphs; querying an event counts as waiting for it."""
    gpu.download(gpu.host, gpu.device, 8, gpu.first)
    gpu.record(gpu.event, gpu.first)
    gpu.begin_capture(gpu.second)
    gpu.fill(gpu.device + 8, 0, 8, gpu.second)
    graph = gpu.end_capture(gpu.second)
    gpu.launch(graph, gpu.second)
    calls: tuple[Callable[[], object], ...] = (
        lambda: gpu.free(gpu.device),
        lambda: gpu.free_host(gpu.host),
        lambda: gpu.destroy_stream(gpu.first),
        lambda: gpu.destroy_event(gpu.event),
        lambda: gpu.destroy_graph(graph),
    )
    for free in calls:
        with pytest.raises(GpuMisuseError, match=r"freed while|in flight"):
            free()
    assert len(gpu.leaks()) == 6
    while not gpu.is_done(gpu.event):
        pass
    gpu.synchronise_stream(gpu.second)
    gpu.free(gpu.device)
    gpu.free_host(gpu.host)
    gpu.destroy_stream(gpu.first)
    gpu.destroy_stream(gpu.second)
    gpu.destroy_event(gpu.event)
    gpu.destroy_graph(graph)
    assert gpu.leaks() == []
    with pytest.raises(GpuMisuseError, match="no stream"):
        gpu.fill(gpu.device, 0, 8, gpu.first)


def test_endless_waits(gpu: Gpu) -> None:
    """Deadlocks and waits for events that were never recorded are detected."""
    with pytest.raises(GpuMisuseError, match="never recorded"):
        gpu.synchronise(gpu.event)
    with pytest.raises(GpuMisuseError, match="never recorded"):
        gpu.wait(gpu.first, gpu.event)
    gpu.stall(gpu.first)
    gpu.record(gpu.event, gpu.first)
    gpu.wait(gpu.second, gpu.event)
    with pytest.raises(GpuMisuseError, match="deadlock"):
        gpu.synchronise_stream(gpu.second)


def test_results_come_late(gpu: Gpu) -> None:
    """New memory holds garbage, and pinned memory keeps it until the copy is waited for."""
    assert (gpu.bytes_at(gpu.device, 64) == GARBAGE).all()
    gpu.stall(gpu.first)
    gpu.fill(gpu.device, 3, 64, gpu.first)
    for _ in range(50):
        gpu.record(gpu.event, gpu.second)
        gpu.synchronise(gpu.event)
    assert (gpu.bytes_at(gpu.device, 64) == GARBAGE).all()


def test_captured_work_runs_when_launched(gpu: Gpu) -> None:
    """It runs at the captured addresses every time; a graph whose memory was freed is detected."""
    gpu.fill(gpu.device, 5, 8, gpu.first)
    gpu.begin_capture(gpu.first)
    for call in (
        lambda: gpu.malloc(8),
        lambda: gpu.synchronise_stream(gpu.second),
        lambda: gpu.record(gpu.event, gpu.first),
    ):
        with pytest.raises(GpuMisuseError, match="during a capture"):
            call()
    gpu.copy(gpu.device + 8, gpu.device, 8, gpu.first)
    graph = gpu.end_capture(gpu.first)
    gpu.synchronise_stream(gpu.first)
    assert (gpu.bytes_at(gpu.device + 8, 8) == GARBAGE).all()
    gpu.launch(graph, gpu.first)
    gpu.synchronise_stream(gpu.first)
    assert (gpu.bytes_at(gpu.device + 8, 8) == 5).all()
    gpu.free(gpu.device)
    with pytest.raises(GpuMisuseError, match="no allocated memory"):
        gpu.launch(graph, gpu.first)


def test_injected_failures() -> None:
    """The n-th call fails, as out of memory if it allocates, or is interrupted by the user."""
    gpu = DriverDouble(fail_at=2, memory=100)
    with gpu.current():
        stream = gpu.create_stream()
        with pytest.raises(DeviceMemoryError, match="as requested"):
            gpu.malloc(8)
        address = gpu.malloc(90)
        with pytest.raises(DeviceMemoryError, match="out of memory"):
            gpu.malloc(11)
        gpu.refuse = ("fill",)
        with pytest.raises(EngineError, match="refused"):
            gpu.fill(address, 0, 8, stream)
        gpu.fail_at, gpu.interrupt = len(gpu.calls) + 1, True
        with pytest.raises(KeyboardInterrupt):
            gpu.free(address)
    assert gpu.failed == "free"


def test_a_thread_with_another_gpu(gpu: Gpu) -> None:
    """The current GPU is a property of the thread."""
    found: list[GpuMisuseError] = []

    def work() -> None:
        try:
            gpu.malloc(8)
        except GpuMisuseError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == 1
