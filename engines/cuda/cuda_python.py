"""Implements the CUDA driver protocol with cuda-python, NVIDIA's own Python bindings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rbvsr_deploy.engines.cuda.driver import Gpu
from rbvsr_deploy.errors import DeviceMemoryError, EngineError, first_line

__all__ = ["CudaPythonDriver"]


class CudaPythonDriver:
    """A :class:`~rbvsr_deploy.engines.cuda.driver.CudaDriver` based on ``cuda.bindings.runtime``.

    Args:
        index: of the GPU.

    Raises:
        EngineError: the driver is missing or too old, or the GPU does not exist.
    """

    def __init__(self, index: int = 0) -> None:
        try:
            from cuda.bindings import runtime
        except (ImportError, OSError) as error:
            raise EngineError(
                f"cuda-python is installed but does not load ({first_line(error)}): reinstall it "
                "with pip install --force-reinstall 'rbvsr-deploy[engines]'"
            ) from error
        self._cuda: Any = runtime
        self.index = index
        self._check_driver()
        (count,) = self._call("cudaGetDeviceCount")
        if not 0 <= index < count:
            raise EngineError(
                f"GPU {index} does not exist: CUDA finds {count} on this machine, numbered from 0; "
                "choose another, or check CUDA_VISIBLE_DEVICES"
            )
        with self.current():
            self._call("cudaFree", 0)  # creates the context, so that failures surface now

    def _check_driver(self) -> None:
        (driver,), (runtime,) = (
            self._call("cudaDriverGetVersion"),
            self._call("cudaRuntimeGetVersion"),
        )
        if driver == 0:
            raise EngineError(
                "there is no NVIDIA driver on this machine: install one, or run on the CPU",
                parameters=("device",),
            )
        # A driver runs programs built for any CUDA version with the same or an older major number.
        if driver // 1000 < runtime // 1000:
            raise EngineError(
                f"the NVIDIA driver is too old: it supports CUDA up to {_version(driver)}, and the "
                f"installed cuda-python needs {runtime // 1000}.0 or newer: update the driver, or "
                f"pip install 'cuda-bindings=={driver // 1000}.*'"
            )

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        """Call a function of the CUDA runtime and return its results without the status."""
        status, *results = getattr(self._cuda, name)(*arguments)
        errors = self._cuda.cudaError_t
        if status == errors.cudaSuccess:
            return tuple(results)
        # Clear the error; otherwise a later successful call could report it.
        self._cuda.cudaGetLastError()
        kind = DeviceMemoryError if status == errors.cudaErrorMemoryAllocation else EngineError
        raise kind(f"CUDA failed in {name}: {self._describe(status)}")

    def _describe(self, status: Any) -> str:
        (_, name), (_, text) = (
            self._cuda.cudaGetErrorName(status),
            self._cuda.cudaGetErrorString(status),
        )
        return f"{name.decode()}, {text.decode()}"

    @contextmanager
    def current(self) -> Iterator[None]:
        self._call("cudaSetDevice", self.index)
        yield

    def gpu(self) -> Gpu:
        (properties,) = self._call("cudaGetDeviceProperties", self.index)
        (driver,) = self._call("cudaDriverGetVersion")
        return Gpu(
            name=properties.name.split(b"\0")[0].decode(),
            compute_capability=f"{properties.major}.{properties.minor}",
            driver_version=_version(driver),
            total_memory=int(properties.totalGlobalMem),
        )

    def free_memory(self) -> int:
        free, _total = self._call("cudaMemGetInfo")
        return int(free)

    def malloc(self, size: int) -> int:
        (address,) = self._call("cudaMalloc", size)
        return int(address)

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def malloc_host(self, size: int) -> int:
        (address,) = self._call("cudaHostAlloc", size, self._cuda.cudaHostAllocPortable)
        return int(address)

    def free_host(self, address: int) -> None:
        self._call("cudaFreeHost", address)

    def create_stream(self) -> int:
        (stream,) = self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)
        return int(stream)

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronise_stream(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def create_event(self) -> int:
        # The host sleeps while it waits: encoding needs the CPU.
        flags = self._cuda.cudaEventBlockingSync | self._cuda.cudaEventDisableTiming
        (event,) = self._call("cudaEventCreateWithFlags", flags)
        return int(event)

    def destroy_event(self, event: int) -> None:
        self._call("cudaEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def wait(self, stream: int, event: int) -> None:
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def synchronise(self, event: int) -> None:
        self._call("cudaEventSynchronize", event)

    def is_done(self, event: int) -> bool:
        (status,) = self._cuda.cudaEventQuery(event)
        errors = self._cuda.cudaError_t
        if status in (errors.cudaSuccess, errors.cudaErrorNotReady):
            return bool(status == errors.cudaSuccess)
        raise EngineError(f"CUDA failed in cudaEventQuery: {self._describe(status)}")

    def upload(self, to: int, source: int, size: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", to, source, size, kind, stream)

    def download(self, to: int, source: int, size: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", to, source, size, kind, stream)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", to, source, size, kind, stream)

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
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call(
            "cudaMemcpy2DAsync", to, to_pitch, source, source_pitch, width, count, kind, stream
        )

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        self._call("cudaMemsetAsync", address, value, size, stream)

    def begin_capture(self, stream: int) -> None:
        # Other threads, such as torch's, may keep calling CUDA.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        (captured,) = self._call("cudaStreamEndCapture", stream)
        try:
            (graph,) = self._call("cudaGraphInstantiate", captured, 0)
        finally:
            self._call("cudaGraphDestroy", captured)
        return int(graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)


def _version(number: int) -> str:
    """Format CUDA's version number: 12060 is 12.6."""
    return f"{number // 1000}.{number % 1000 // 10}"
