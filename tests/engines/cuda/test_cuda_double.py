"""The GPU's double finds what it is there to find: each kind of mistake, made on purpose."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from rbvsr_deploy.errors import DeviceMemoryError, EngineError
from tests.support.cuda_double import GARBAGE, DriverDouble, GpuMisuseError


class Gpu(DriverDouble):
    """With two streams, an event, device memory and pinned memory."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        with self.current():
            self.first, self.second = self.create_stream(), self.create_stream()
            self.event = self.create_event()
            self.device, self.host = self.malloc(64), self.malloc_host(64)


@pytest.fixture(params=range(5))
def gpu(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    """In several orders of execution: what is found must not depend on it."""
    gpu = Gpu(request.param)
    with gpu.current():
        yield gpu


def test_work_is_done_when_it_is_waited_for(gpu: Gpu) -> None:
    """Copies and fills, in the order of their stream, and across streams by events."""
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
    """Two streams at the same bytes, one of them writing, with no event between them."""

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


def test_an_event_covers_what_came_before_it(gpu: Gpu) -> None:
    """Not what its stream was given later; and not what it stood for earlier."""
    gpu.record(gpu.event, gpu.first)
    gpu.fill(gpu.device, 0, 8, gpu.first)
    gpu.wait(gpu.second, gpu.event)
    with pytest.raises(GpuMisuseError, match="race"):
        gpu.fill(gpu.device, 1, 8, gpu.second)


def test_reading_at_once_and_other_bytes_are_no_race(gpu: Gpu) -> None:
    """Neither is what the host has waited for."""
    gpu.fill(gpu.device, 3, 32, gpu.first)
    gpu.fill(gpu.device + 32, 4, 32, gpu.second)
    gpu.synchronise_stream(gpu.first)
    gpu.download(gpu.host, gpu.device, 8, gpu.first)
    gpu.download(gpu.host + 8, gpu.device, 8, gpu.second)


def test_memory_that_is_not_there(gpu: Gpu) -> None:
    """Beyond its end, before its begin, and after it was freed."""
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


def test_freeing_what_is_in_flight(gpu: Gpu) -> None:
    """Memory, streams, events and graphs; that an event was queried says it as well as waiting."""
    gpu.download(gpu.host, gpu.device, 8, gpu.first)
    gpu.record(gpu.event, gpu.first)
    gpu.begin_capture(gpu.second)
    gpu.fill(gpu.device + 8, 0, 8, gpu.second)
    graph = gpu.end_capture(gpu.second)
    gpu.launch(graph, gpu.second)
    for free in (
        lambda: gpu.free(gpu.device),
        lambda: gpu.free_host(gpu.host),
        lambda: gpu.destroy_stream(gpu.first),
        lambda: gpu.destroy_event(gpu.event),
        lambda: gpu.destroy_graph(graph),
    ):
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


def test_waits_without_an_end(gpu: Gpu) -> None:
    """The host finds that nothing can go on, and that nothing was ever recorded."""
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


def test_captured_work_is_done_when_it_is_launched(gpu: Gpu) -> None:
    """Each time, at the addresses of then; a graph whose memory is gone is found out."""
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


def test_failures_as_told() -> None:
    """The n-th call fails, for want of memory where it allocates; or the user stops it."""
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
    """What is current is so in one thread."""
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
