"""Implements the CUDA driver protocol with cuda-python, NVIDIA's own Python bindings.

It calls the driver directly, not the CUDA runtime: cuda-python contains a runtime of its own CUDA
version, which refuses older drivers, while its bindings of the driver work with any.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rbvsr_deploy.engines.cuda.driver import Gpu
from rbvsr_deploy.engines.memory import free_shared_memory
from rbvsr_deploy.errors import DeviceMemoryError, EngineError, first_line

__all__ = ["CudaPythonDriver"]


class CudaPythonDriver:
    """A :class:`~rbvsr_deploy.engines.cuda.driver.CudaDriver` based on ``cuda.bindings.driver``.

    It uses the GPU's primary context, as TensorRT does.

    Args:
        index: of the GPU.

    Raises:
        EngineError: the driver is missing or too old, or the GPU does not exist.
    """

    def __init__(self, index: int = 0) -> None:
        try:
            from cuda.bindings import driver
        except (ImportError, OSError, RuntimeError) as error:
            raise EngineError(
                f"cuda-python is installed but does not load ({first_line(error)}): reinstall it "
                "with pip install --force-reinstall 'rbvsr-deploy[engines]'"
            ) from error
        self._cuda: Any = driver
        self.index = index
        self._start()
        (count,) = self._call("cuDeviceGetCount")
        if not 0 <= index < count:
            raise EngineError(
                f"GPU {index} does not exist: CUDA finds {count} on this machine, numbered from 0; "
                "choose another, or check CUDA_VISIBLE_DEVICES"
            )
        (self._device,) = self._call("cuDeviceGet", index)
        # The context lives as long as the process: TensorRT and torch use it as well.
        (self._context,) = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._is_integrated = bool(self._attribute("INTEGRATED"))

    def _start(self) -> None:
        """Load and initialise the driver."""
        try:
            (status,) = self._cuda.cuInit(0)
        except RuntimeError as error:  # the driver's library is missing
            raise EngineError(
                "there is no NVIDIA driver on this machine: install one, or run on the CPU",
                parameters=("device",),
            ) from error
        if status != self._cuda.CUresult.CUDA_SUCCESS:
            raise EngineError(
                f"the NVIDIA driver does not start: {self._describe(status)}: check nvidia-smi, or "
                "run on the CPU",
                parameters=("device",),
            )

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        """Call a function of the driver and return its results without the status."""
        status, *results = self._try(name, *arguments)
        errors = self._cuda.CUresult
        if status == errors.CUDA_SUCCESS:
            return tuple(results)
        kind = DeviceMemoryError if status == errors.CUDA_ERROR_OUT_OF_MEMORY else EngineError
        raise kind(f"CUDA failed in {name}: {self._describe(status)}")

    def _try(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        """Call a function of the driver and return its status and results."""
        try:
            return tuple(getattr(self._cuda, name)(*arguments))
        except RuntimeError as error:
            raise EngineError(
                f"the NVIDIA driver lacks {name} ({first_line(error)}): update the driver"
            ) from error

    def _describe(self, status: Any) -> str:
        (_, name), (_, text) = (
            self._cuda.cuGetErrorName(status),
            self._cuda.cuGetErrorString(status),
        )
        # A driver older than the bindings does not know every status.
        return f"{name.decode()}, {text.decode()}" if name and text else str(status)

    def _attribute(self, name: str) -> int:
        attribute = getattr(self._cuda.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        (value,) = self._call("cuDeviceGetAttribute", attribute, self._device)
        return int(value)

    @contextmanager
    def current(self) -> Iterator[None]:
        self._call("cuCtxSetCurrent", self._context)
        yield

    def gpu(self) -> Gpu:
        (name,) = self._call("cuDeviceGetName", 256, self._device)
        (driver,) = self._call("cuDriverGetVersion")
        (total,) = self._call("cuDeviceTotalMem", self._device)
        major = self._attribute("COMPUTE_CAPABILITY_MAJOR")
        minor = self._attribute("COMPUTE_CAPABILITY_MINOR")
        return Gpu(
            name=name.split(b"\0")[0].decode(),
            compute_capability=f"{major}.{minor}",
            driver_version=_version(driver),
            total_memory=int(total),
            is_integrated=self._is_integrated,
        )

    def free_memory(self) -> int:
        free, _total = self._call("cuMemGetInfo")
        return free_shared_memory() if self._is_integrated else int(free)

    def malloc(self, size: int) -> int:
        (address,) = self._call("cuMemAlloc", size)
        return int(address)

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def malloc_host(self, size: int) -> int:
        (address,) = self._call("cuMemHostAlloc", size, self._cuda.CU_MEMHOSTALLOC_PORTABLE)
        return int(address)

    def free_host(self, address: int) -> None:
        self._call("cuMemFreeHost", address)

    def create_stream(self, *, urgent: bool = False) -> int:
        least, greatest = self._call("cuCtxGetStreamPriorityRange")
        flags = self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING
        priority = greatest if urgent else least
        (stream,) = self._call("cuStreamCreateWithPriority", int(flags), priority)
        return _handle(stream)

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def synchronise_stream(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def create_event(self) -> int:
        # The host sleeps while it waits: encoding needs the CPU.
        flags = self._cuda.CUevent_flags
        (event,) = self._call(
            "cuEventCreate",
            int(flags.CU_EVENT_BLOCKING_SYNC) | int(flags.CU_EVENT_DISABLE_TIMING),
        )
        return _handle(event)

    def destroy_event(self, event: int) -> None:
        self._call("cuEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", event, stream)

    def wait(self, stream: int, event: int) -> None:
        self._call("cuStreamWaitEvent", stream, event, 0)

    def synchronise(self, event: int) -> None:
        self._call("cuEventSynchronize", event)

    def is_done(self, event: int) -> bool:
        (status,) = self._try("cuEventQuery", event)
        errors = self._cuda.CUresult
        if status in (errors.CUDA_SUCCESS, errors.CUDA_ERROR_NOT_READY):
            return bool(status == errors.CUDA_SUCCESS)
        raise EngineError(f"CUDA failed in cuEventQuery: {self._describe(status)}")

    def upload(self, to: int, source: int, size: int, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync", to, source, size, stream)

    def download(self, to: int, source: int, size: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync", to, source, size, stream)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        self._call("cuMemcpyDtoDAsync", to, source, size, stream)

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
        copy = self._cuda.CUDA_MEMCPY2D()
        device = self._cuda.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcMemoryType = copy.dstMemoryType = device
        copy.srcDevice, copy.srcPitch = source, source_pitch
        copy.dstDevice, copy.dstPitch = to, to_pitch
        copy.WidthInBytes, copy.Height = width, count
        self._call("cuMemcpy2DAsync", copy, stream)

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        self._call("cuMemsetD8Async", address, value, size, stream)

    def begin_capture(self, stream: int) -> None:
        # Other threads, such as torch's, may keep calling CUDA.
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        (captured,) = self._call("cuStreamEndCapture", stream)
        try:
            (graph,) = self._call("cuGraphInstantiate", captured, 0)
        finally:
            self._call("cuGraphDestroy", captured)
        return _handle(graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", graph)


def _handle(value: Any) -> int:
    """Return the native handle of a stream, event or graph."""
    try:
        from cuda.bindings.utils import get_cuda_native_handle
    except ImportError:  # before 12.9.1
        return int(value)
    return int(get_cuda_native_handle(value))


def _version(number: int) -> str:
    """Format CUDA's version number: 12060 is 12.6."""
    return f"{number // 1000}.{number % 1000 // 10}"
