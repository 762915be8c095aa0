"""Implements the CUDA driver protocol with pycuda, which Jetson images often include.

pycuda does not support CUDA graphs, so steps are launched one by one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rbvsr_deploy.engines.cuda.driver import Gpu
from rbvsr_deploy.engines.memory import free_shared_memory
from rbvsr_deploy.errors import DeviceMemoryError, EngineError, first_line

__all__ = ["PycudaDriver"]


class PycudaDriver:
    """A :class:`~rbvsr_deploy.engines.cuda.driver.CudaDriver` based on pycuda.

    It uses the GPU's primary context, as TensorRT does.

    Args:
        index: of the GPU.

    Raises:
        EngineError: the driver is missing or too old, or the GPU does not exist.
    """

    def __init__(self, index: int = 0) -> None:
        try:
            import pycuda.driver as cuda
        except (ImportError, OSError) as error:
            raise EngineError(
                f"pycuda is installed but does not load ({first_line(error)}): it is built for the "
                "driver and CUDA toolkit of one machine; reinstall it on this machine"
            ) from error
        self._cuda: Any = cuda
        self.index = index
        try:
            cuda.init()
            count = cuda.Device.count()
        except cuda.Error as error:
            if "insufficient" in str(error):
                raise EngineError(
                    f"the NVIDIA driver is too old: it supports CUDA up to {self._driver_version()}"
                    ", and the installed pycuda was built for "
                    f"{'.'.join(map(str, cuda.get_version()))}: update the driver, or reinstall "
                    "pycuda"
                ) from error
            raise EngineError(
                f"CUDA does not start on this machine ({first_line(error)}): install an NVIDIA "
                "driver, or run on the CPU",
                parameters=("device",),
            ) from error
        if not 0 <= index < count:
            raise EngineError(
                f"GPU {index} does not exist: CUDA finds {count} on this machine, numbered from 0; "
                "choose another, or check CUDA_VISIBLE_DEVICES"
            )
        # pycuda frees its objects when they are garbage collected; these keep them, by handle.
        self._memory: dict[int, Any] = {}
        self._pinned: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        self._events: dict[int, Any] = {}
        self._last_event = 0
        with self._translated_errors():
            self._device = cuda.Device(index)
            self._context = self._device.retain_primary_context()
            attribute = cuda.device_attribute.INTEGRATED
            self._is_integrated = bool(self._device.get_attribute(attribute))

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except self._cuda.MemoryError as error:
            raise DeviceMemoryError(f"CUDA: {first_line(error)}") from error
        except self._cuda.Error as error:
            raise EngineError(f"CUDA: {first_line(error)}") from error

    @contextmanager
    def current(self) -> Iterator[None]:
        # pycuda keeps a stack of contexts per thread, and aborts the process if a thread ends with
        # one still on it.
        with self._translated_errors():
            self._context.push()
        try:
            yield
        finally:
            with self._translated_errors():
                self._cuda.Context.pop()

    def gpu(self) -> Gpu:
        with self._translated_errors():
            major, minor = self._device.compute_capability()
            return Gpu(
                name=self._device.name(),
                compute_capability=f"{major}.{minor}",
                driver_version=self._driver_version(),
                total_memory=int(self._device.total_memory()),
                is_integrated=self._is_integrated,
            )

    def _driver_version(self) -> str:
        number = self._cuda.get_driver_version()
        return f"{number // 1000}.{number % 1000 // 10}"

    def free_memory(self) -> int:
        with self._translated_errors():
            free, _total = self._cuda.mem_get_info()
        return free_shared_memory() if self._is_integrated else int(free)

    def malloc(self, size: int) -> int:
        with self._translated_errors():
            allocation = self._cuda.mem_alloc(size)
        self._memory[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        with self._translated_errors():
            self._memory.pop(address).free()

    def malloc_host(self, size: int) -> int:
        with self._translated_errors():
            array = self._cuda.pagelocked_empty(
                size, "uint8", mem_flags=self._cuda.host_alloc_flags.PORTABLE
            )
        address = int(array.ctypes.data)
        self._pinned[address] = array
        return address

    def free_host(self, address: int) -> None:
        with self._translated_errors():
            self._pinned.pop(address).base.free()

    def create_stream(self, *, urgent: bool = False) -> int:
        # pycuda creates streams of one priority only.
        with self._translated_errors():
            stream = self._cuda.Stream(1)  # CU_STREAM_NON_BLOCKING, for which pycuda has no name
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        with self._translated_errors():
            del self._streams[stream]

    def synchronise_stream(self, stream: int) -> None:
        with self._translated_errors():
            self._streams[stream].synchronize()

    def create_event(self) -> int:
        with self._translated_errors():
            flags = self._cuda.event_flags
            # The host sleeps while it waits: encoding needs the CPU.
            event = self._cuda.Event(flags.BLOCKING_SYNC | flags.DISABLE_TIMING)
        self._last_event += 1
        self._events[self._last_event] = event
        return self._last_event

    def destroy_event(self, event: int) -> None:
        with self._translated_errors():
            del self._events[event]

    def record(self, event: int, stream: int) -> None:
        with self._translated_errors():
            self._events[event].record(self._streams[stream])

    def wait(self, stream: int, event: int) -> None:
        with self._translated_errors():
            self._streams[stream].wait_for_event(self._events[event])

    def synchronise(self, event: int) -> None:
        with self._translated_errors():
            self._events[event].synchronize()

    def is_done(self, event: int) -> bool:
        with self._translated_errors():
            return bool(self._events[event].query())

    def upload(self, to: int, source: int, size: int, stream: int) -> None:
        with self._translated_errors():
            self._cuda.memcpy_htod_async(to, _bytes_at(source, size), self._streams[stream])

    def download(self, to: int, source: int, size: int, stream: int) -> None:
        with self._translated_errors():
            self._cuda.memcpy_dtoh_async(_bytes_at(to, size), source, self._streams[stream])

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        with self._translated_errors():
            self._cuda.memcpy_dtod_async(to, source, size, self._streams[stream])

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
        copy = self._cuda.Memcpy2D()
        copy.set_src_device(source)
        copy.src_pitch = source_pitch
        copy.set_dst_device(to)
        copy.dst_pitch = to_pitch
        copy.width_in_bytes, copy.height = width, count
        with self._translated_errors():
            copy(self._streams[stream])

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        with self._translated_errors():
            self._cuda.memset_d8_async(address, value, size, self._streams[stream])

    def begin_capture(self, stream: int) -> None:
        raise EngineError("pycuda does not support CUDA graphs")

    def end_capture(self, stream: int) -> int:
        raise EngineError("pycuda does not support CUDA graphs")

    def launch(self, graph: int, stream: int) -> None:
        raise EngineError("pycuda does not support CUDA graphs")

    def destroy_graph(self, graph: int) -> None:
        raise EngineError("pycuda does not support CUDA graphs")


def _bytes_at(address: int, size: int) -> Any:
    return (ctypes.c_ubyte * size).from_address(address)
