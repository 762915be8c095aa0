"""Tests the adapters: existing names, argument order, and one sentence for each failure.

The packages are replaced by doubles: cuda-python's has the real signatures, pycuda's the names and
parameters that its sources (2026.1, ``src/wrapper/wrap_cudadrv.cpp``) define.
"""

from __future__ import annotations

import ctypes
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import cuda.bindings.driver as real
import numpy as np
import pytest

from rbvsr_deploy.engines.cuda import open as open_module
from rbvsr_deploy.engines.cuda.cuda_python import CudaPythonDriver
from rbvsr_deploy.engines.cuda.driver import CudaDriver, Gpu
from rbvsr_deploy.engines.cuda.open import open_driver
from rbvsr_deploy.engines.cuda.pycuda import PycudaDriver
from rbvsr_deploy.errors import DeviceMemoryError, EngineError


class Bindings:
    """A double of ``cuda.bindings.driver`` with the real constants.

    Functions record their arguments, which must be as many as the real function takes, and return
    as many values.
    """

    RESULTS: dict[str, tuple[Any, ...]] = {  # noqa: RUF012
        "cuDriverGetVersion": (12_020,),
        "cuDeviceGetCount": (2,),
        "cuDeviceGet": (real.CUdevice(1),),
        "cuDevicePrimaryCtxRetain": (real.CUcontext(6),),
        "cuDeviceGetName": (b"NVIDIA Double\0\0",),
        "cuDeviceTotalMem": (24 * 2**30,),
        "cuMemGetInfo": (1000, 2000),
        "cuMemAlloc": (real.CUdeviceptr(512),),
        "cuMemHostAlloc": (4096,),
        "cuCtxGetStreamPriorityRange": (0, -5),
        "cuStreamCreateWithPriority": (real.CUstream(7),),
        "cuEventCreate": (real.CUevent(8),),
        "cuStreamEndCapture": (real.CUgraph(9),),
        "cuGraphInstantiate": (real.CUgraphExec(10),),
        "cuGetErrorName": (b"CUDA_ERROR_OUT_OF_MEMORY",),
        "cuGetErrorString": (b"out of memory",),
    }

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.statuses: dict[str, Any] = {}
        self.results = dict(self.RESULTS)
        self.attributes = {"COMPUTE_CAPABILITY_MAJOR": 8, "COMPUTE_CAPABILITY_MINOR": 9}

    def __getattr__(self, name: str) -> Any:
        value = getattr(real, name)  # a name that does not exist fails here
        if not name.startswith("cu"):
            return value
        signature = value.__doc__.strip().splitlines()[0]
        matched = re.fullmatch(rf"{name}\((.*)\)", signature)
        assert matched is not None, signature
        parameters = re.sub(r"\[.*?\]", "", matched[1])

        def call(*arguments: Any) -> tuple[Any, ...]:
            assert len(arguments) == len([p for p in parameters.split(",") if p.strip()]), name
            if name == "cuDeviceGetAttribute":
                short = arguments[0].name.removeprefix("CU_DEVICE_ATTRIBUTE_")
                return real.CUresult.CUDA_SUCCESS, self.attributes.get(short, 0)
            self.calls.append((name, *arguments))
            status = self.statuses.get(name, real.CUresult.CUDA_SUCCESS)
            return (status, *self.results.get(name, ()))

        return call


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> Bindings:
    """Replace the real bindings by a double."""
    double = Bindings()
    monkeypatch.setattr(sys.modules["cuda.bindings"], "driver", double)
    return double


def everything(driver: CudaDriver) -> None:
    """Make each call once, except those for graphs."""
    stream, event = driver.create_stream(), driver.create_event()
    address, host = driver.malloc(64), driver.malloc_host(64)
    driver.upload(address, host, 64, stream)
    driver.copy(address + 8, address, 8, stream)
    driver.copy_rows(address, 4, address + 32, 8, width=2, count=3, stream=stream)
    driver.fill(address, 7, 16, stream)
    driver.download(host, address, 64, stream)
    driver.record(event, stream)
    driver.wait(stream, event)
    assert driver.is_done(event)
    driver.synchronise(event)
    driver.synchronise_stream(stream)
    driver.destroy_event(event)
    driver.destroy_stream(stream)
    driver.free_host(host)
    driver.free(address)


def test_cuda_python(bindings: Bindings) -> None:
    """It calls existing functions with their arguments in order, and returns plain numbers."""
    driver = CudaPythonDriver(1)
    assert driver.gpu() == Gpu("NVIDIA Double", "8.9", "12.2", 24 * 2**30)
    assert driver.free_memory() == 1000
    bindings.calls.clear()
    with driver.current():
        everything(driver)
        assert type(driver.create_stream(urgent=True)) is int
        driver.begin_capture(7)
        assert driver.end_capture(7) == 10
        driver.launch(10, 7)
        driver.destroy_graph(10)
    (rows,) = (call[1] for call in bindings.calls if call[0] == "cuMemcpy2DAsync")
    device = real.CUmemorytype.CU_MEMORYTYPE_DEVICE
    assert (rows.srcMemoryType, int(rows.srcDevice), rows.srcPitch) == (device, 544, 8)
    assert (rows.dstMemoryType, int(rows.dstDevice), rows.dstPitch) == (device, 512, 4)
    assert (rows.WidthInBytes, rows.Height) == (2, 3)
    graph = bindings.results["cuStreamEndCapture"][0]
    assert bindings.calls == [
        ("cuCtxSetCurrent", bindings.results["cuDevicePrimaryCtxRetain"][0]),
        ("cuCtxGetStreamPriorityRange",),
        ("cuStreamCreateWithPriority", 1, 0),
        ("cuEventCreate", 3),
        ("cuMemAlloc", 64),
        ("cuMemHostAlloc", 64, 1),
        ("cuMemcpyHtoDAsync", 512, 4096, 64, 7),
        ("cuMemcpyDtoDAsync", 520, 512, 8, 7),
        ("cuMemcpy2DAsync", rows, 7),
        ("cuMemsetD8Async", 512, 7, 16, 7),
        ("cuMemcpyDtoHAsync", 4096, 512, 64, 7),
        ("cuEventRecord", 8, 7),
        ("cuStreamWaitEvent", 7, 8, 0),
        ("cuEventQuery", 8),
        ("cuEventSynchronize", 8),
        ("cuStreamSynchronize", 7),
        ("cuEventDestroy", 8),
        ("cuStreamDestroy", 7),
        ("cuMemFreeHost", 4096),
        ("cuMemFree", 512),
        ("cuCtxGetStreamPriorityRange",),
        ("cuStreamCreateWithPriority", 1, -5),
        (
            "cuStreamBeginCapture",
            7,
            real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
        ),
        ("cuStreamEndCapture", 7),
        ("cuGraphInstantiate", graph, 0),
        ("cuGraphDestroy", graph),
        ("cuGraphLaunch", 10, 7),
        ("cuGraphExecDestroy", 10),
    ]


def test_an_integrated_gpu_counts_the_hosts_memory(
    bindings: Bindings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's figure leaves out the page cache, which is most of the memory of a Jetson in use."""
    monkeypatch.setattr("rbvsr_deploy.engines.memory.free_host_memory", lambda: 6 * 2**30)
    assert CudaPythonDriver().free_memory() == 1000
    bindings.attributes["INTEGRATED"] = 1
    driver = CudaPythonDriver()
    assert driver.gpu().is_integrated
    assert 5 * 2**30 < driver.free_memory() < 6 * 2**30
    monkeypatch.setattr("rbvsr_deploy.engines.memory.free_host_memory", lambda: 2**20)
    assert driver.free_memory() == 0


def test_cuda_pythons_functions_take_these_arguments() -> None:
    """Calls the real package without a driver: every call reports that, not a TypeError."""
    driver = CudaPythonDriver.__new__(CudaPythonDriver)
    driver._cuda, driver.index = real, 0
    driver._device, driver._context, driver._is_integrated = 0, 6, False
    try:
        real.cuInit(0)
    except RuntimeError:
        pass
    else:
        pytest.skip("this machine has a driver, which would use the invented handles")
    calls: list[Callable[[], Any]] = [
        lambda: driver.current().__enter__(),
        driver.gpu,
        driver.free_memory,
        lambda: driver._attribute("INTEGRATED"),
        lambda: driver._call("cuDeviceTotalMem", 0),
        lambda: driver._call("cuDevicePrimaryCtxRetain", 0),
        lambda: driver._call("cuStreamCreateWithPriority", 1, -5),
        lambda: driver.malloc(8),
        lambda: driver.free(8),
        lambda: driver.malloc_host(8),
        lambda: driver.free_host(8),
        driver.create_stream,
        lambda: driver.destroy_stream(1),
        lambda: driver.synchronise_stream(1),
        driver.create_event,
        lambda: driver.destroy_event(1),
        lambda: driver.record(1, 2),
        lambda: driver.wait(1, 2),
        lambda: driver.synchronise(1),
        lambda: driver.is_done(1),
        lambda: driver.upload(1, 2, 3, 4),
        lambda: driver.download(1, 2, 3, 4),
        lambda: driver.copy(1, 2, 3, 4),
        lambda: driver.copy_rows(1, 2, 3, 4, width=2, count=1, stream=5),
        lambda: driver.fill(1, 0, 2, 3),
        lambda: driver.begin_capture(1),
        lambda: driver.end_capture(1),
        lambda: driver.launch(1, 2),
        lambda: driver.destroy_graph(1),
    ]
    for call in calls:
        with pytest.raises(EngineError, match=r"the NVIDIA driver lacks cu\w+ "):
            call()


def test_failures_of_cuda_python(bindings: Bindings) -> None:
    """Out of memory is distinguished from other failures, with CUDA's name and message."""
    driver = CudaPythonDriver()
    errors = real.CUresult
    bindings.statuses["cuMemAlloc"] = errors.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(DeviceMemoryError, match=r"cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY, out of m"):
        driver.malloc(8)
    bindings.statuses["cuEventQuery"] = errors.CUDA_ERROR_NOT_READY
    assert not driver.is_done(8)
    bindings.statuses["cuGraphInstantiate"] = errors.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(DeviceMemoryError):
        driver.end_capture(7)
    assert bindings.calls[-1][0] == "cuGraphDestroy"
    bindings.results["cuGetErrorName"] = bindings.results["cuGetErrorString"] = (None,)
    bindings.statuses["cuEventSynchronize"] = errors.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(EngineError, match=r"CUDA failed in cuEventSynchronize: .*700"):
        driver.synchronise(8)
    bindings.statuses["cuEventQuery"] = errors.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(EngineError, match="CUDA failed in cuEventQuery"):
        driver.is_done(8)


def test_cuda_python_does_not_open(bindings: Bindings) -> None:
    """A missing driver, one that does not start and a missing GPU give one sentence each."""
    with pytest.raises(EngineError, match="GPU 2 does not exist: CUDA finds 2 on this machine"):
        CudaPythonDriver(2)
    bindings.statuses["cuInit"] = real.CUresult.CUDA_ERROR_NO_DEVICE
    with pytest.raises(EngineError, match=r"the NVIDIA driver does not start: .*nvidia-smi"):
        CudaPythonDriver()


def test_without_a_driver(bindings: Bindings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bindings raise an error of their own where there is no driver."""

    def cu_init(flags: int) -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(bindings, "cuInit", cu_init, raising=False)
    with pytest.raises(EngineError, match="there is no NVIDIA driver on this machine") as caught:
        CudaPythonDriver()
    assert caught.value.parameters == ("device",)


def test_any_driver_will_do(bindings: Bindings) -> None:
    """Bindings of CUDA 13 open a driver of CUDA 12: nothing of the CUDA runtime is used."""
    bindings.results["cuDriverGetVersion"] = (12_020,)
    assert CudaPythonDriver().gpu().driver_version == "12.2"
    assert not any(call[0].startswith("cuda") for call in bindings.calls)


class _Thread:
    """The stack of contexts of pycuda."""

    stack: list[Any] = []  # noqa: RUF012


def pycuda_double() -> Any:
    """Return a double of ``pycuda.driver``: calls need a context, and copies move real bytes."""
    cuda = types.ModuleType("pycuda.driver")
    memories: dict[int, Any] = {}
    freed: list[str] = []

    class Error(Exception):
        pass

    class MemoryError_(Error):  # noqa: N801, N818
        pass

    def checked(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if not _Thread.stack:
                raise Error("call failed: invalid device context")
            return function(*arguments, **options)

        return call

    class Device:
        def __init__(self, ordinal: int) -> None:
            self.ordinal = ordinal

        @staticmethod
        def count() -> int:
            return 1

        def name(self) -> str:
            return "NVIDIA Double"

        def compute_capability(self) -> tuple[int, int]:
            return 8, 7

        def total_memory(self) -> int:
            return 2**30

        def get_attribute(self, attr: int) -> int:
            assert attr == 18
            return 0

        def retain_primary_context(self) -> Any:
            return Context()

    class Context:
        def push(self) -> None:
            _Thread.stack.append(self)

        @staticmethod
        def pop() -> None:
            _Thread.stack.pop()

    class DeviceAllocation:
        def __init__(self, size: int) -> None:
            self.bytes = (ctypes.c_ubyte * size)()
            memories[int(self)] = self

        def __int__(self) -> int:
            return ctypes.addressof(self.bytes)

        @checked
        def free(self) -> None:
            del memories[int(self)]
            freed.append("memory")

    class PagelockedHostAllocation:
        def free(self) -> None:
            freed.append("pinned")

    class Stream:
        @checked
        def __init__(self, flags: int = 0) -> None:
            assert flags == 1
            self.handle = 70

        def synchronize(self) -> None:
            pass

        def wait_for_event(self, evt: Any) -> None:
            assert evt.stream is self

        def __del__(self) -> None:
            freed.append("stream")

    class Event:
        @checked
        def __init__(self, flags: int = 0) -> None:
            assert flags == 3

        def record(self, stream: Any = None) -> Any:
            assert isinstance(stream, Stream)
            self.stream = stream
            return self

        def synchronize(self) -> Any:
            return self

        def query(self) -> bool:
            return True

        def __del__(self) -> None:
            freed.append("event")

    class Array(np.ndarray):
        base: Any = PagelockedHostAllocation()

    class Memcpy2D:
        src_pitch = dst_pitch = width_in_bytes = height = 0

        def set_src_device(self, ptr: int) -> None:
            self.src = ptr

        def set_dst_device(self, ptr: int) -> None:
            self.dst = ptr

        @checked
        def __call__(self, stream: Any) -> None:
            assert isinstance(stream, Stream)
            for i in range(self.height):
                ctypes.memmove(
                    self.dst + i * self.dst_pitch,
                    self.src + i * self.src_pitch,
                    self.width_in_bytes,
                )

    def htod(dest: int, src: Any, stream: Any = None) -> None:
        ctypes.memmove(dest, ctypes.addressof(src), len(src))

    def dtoh(dest: Any, src: int, stream: Any = None) -> None:
        ctypes.memmove(ctypes.addressof(dest), src, len(dest))

    def dtod(dest: int, src: int, size: int, stream: Any = None) -> None:
        ctypes.memmove(dest, src, size)

    def memset(dest: int, data: int, size: int, stream: Any = None) -> None:
        ctypes.memset(dest, data, size)

    def pagelocked(shape: int, dtype: str, order: str = "C", mem_flags: int = 0) -> Any:
        assert mem_flags == 1
        return np.zeros(shape, dtype).view(Array)

    contents = {
        "Error": Error,
        "MemoryError": MemoryError_,
        "init": lambda flags=0: None,
        "get_version": lambda: (12, 6, 0),
        "get_driver_version": lambda: 12_060,
        "Device": Device,
        "Context": Context,
        "mem_get_info": checked(lambda: (1000, 2000)),
        "mem_alloc": checked(DeviceAllocation),
        "pagelocked_empty": checked(pagelocked),
        "host_alloc_flags": types.SimpleNamespace(PORTABLE=1),
        "device_attribute": types.SimpleNamespace(INTEGRATED=18),
        "event_flags": types.SimpleNamespace(BLOCKING_SYNC=1, DISABLE_TIMING=2),
        "Stream": Stream,
        "Event": Event,
        "Memcpy2D": Memcpy2D,
        "memcpy_htod_async": checked(htod),
        "memcpy_dtoh_async": checked(dtoh),
        "memcpy_dtod_async": checked(dtod),
        "memset_d8_async": checked(memset),
    }
    for name, value in contents.items():
        setattr(cuda, name, value)
    cuda.freed = freed  # type: ignore[attr-defined]
    return cuda


@pytest.fixture
def pycuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Install the double as the package."""
    package, module = types.ModuleType("pycuda"), pycuda_double()
    package.driver = module  # type: ignore[attr-defined]
    package.__path__ = []
    package.__spec__ = types.SimpleNamespace(origin=None)  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", module)
    yield module
    assert _Thread.stack == []


def test_pycuda(pycuda: Any) -> None:
    """The same calls work, with the context on the thread's stack only while it is current."""
    driver = PycudaDriver()
    assert driver.gpu() == Gpu("NVIDIA Double", "8.7", "12.6", 2**30)
    with pytest.raises(EngineError, match="invalid device context"):
        driver.malloc(8)
    with driver.current():
        assert driver.free_memory() == 1000
        everything(driver)
        with pytest.raises(EngineError, match="pycuda does not support CUDA graphs"):
            driver.begin_capture(70)
    assert pycuda.freed == ["event", "stream", "pinned", "memory"]


def test_pycudas_copies(pycuda: Any) -> None:
    """Copies use the right source, destination and size."""
    driver = PycudaDriver()
    with driver.current():
        stream, device, host = driver.create_stream(), driver.malloc(64), driver.malloc_host(64)
        content = (ctypes.c_ubyte * 64).from_address(host)
        content[:] = list(range(64))
        driver.upload(device, host, 64, stream)
        driver.fill(device, 7, 8, stream)
        driver.copy(device + 8, device + 60, 2, stream)
        driver.copy_rows(device, 4, device + 32, 8, width=2, count=3, stream=stream)
        driver.download(host, device, 12, stream)
    assert content[:14] == [32, 33, 7, 7, 40, 41, 7, 7, 48, 49, 10, 11, 12, 13]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuInit failed: no CUDA-capable device is detected", "CUDA does not start .*no CUDA-cap"),
        (
            "cuInit failed: CUDA driver version is insufficient for CUDA runtime version",
            r"driver is too old: it supports CUDA up to 12\.6, and the installed pycuda was",
        ),
    ],
)
def test_pycuda_does_not_open(text: str, message: str, pycuda: Any) -> None:
    """A missing driver, an old one and a missing GPU give one sentence each."""

    def init(flags: int = 0) -> None:
        raise pycuda.Error(text)

    with pytest.raises(EngineError, match="GPU 1 does not exist: CUDA finds 1 on this machine"):
        PycudaDriver(1)
    pycuda.init = init
    with pytest.raises(EngineError, match=message):
        PycudaDriver()


def test_pycuda_out_of_memory(pycuda: Any) -> None:
    """It is distinguished from other failures."""
    driver = PycudaDriver()

    def mem_alloc(size: int) -> Any:
        raise pycuda.MemoryError("cuMemAlloc failed: out of memory")

    pycuda.mem_alloc = mem_alloc
    with driver.current(), pytest.raises(DeviceMemoryError, match="cuMemAlloc failed: out of mem"):
        driver.malloc(8)


def test_choice_of_package(
    bindings: Bindings, pycuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuda-python is preferred, unless the environment or what is installed says otherwise."""
    installed = {"cuda.bindings", "pycuda"}
    monkeypatch.setattr(open_module, "_is_installed", lambda package: package in installed)
    monkeypatch.delenv("RBVSR_CUDA", raising=False)
    assert isinstance(open_driver(), CudaPythonDriver)
    monkeypatch.setenv("RBVSR_CUDA", "pycuda")
    assert isinstance(open_driver(), PycudaDriver)
    monkeypatch.delenv("RBVSR_CUDA")
    installed.remove("cuda.bindings")
    assert isinstance(open_driver(), PycudaDriver)
    monkeypatch.setenv("RBVSR_CUDA", "cuda-python")
    with pytest.raises(EngineError, match=r"selects cuda-python, which is not.*\[engines\]"):
        open_driver()
    monkeypatch.setenv("RBVSR_CUDA", "rocm")
    with pytest.raises(EngineError, match="RBVSR_CUDA is 'rocm', but must be"):
        open_driver()
    monkeypatch.delenv("RBVSR_CUDA")
    installed.clear()
    with pytest.raises(EngineError, match=r"neither is installed.*\[engines\].*\[pycuda\]"):
        open_driver()


def test_installed_packages_are_found_without_loading() -> None:
    """Missing packages and submodules of missing packages are not found."""
    assert open_module._is_installed("cuda.bindings")
    assert not open_module._is_installed("no_such_package.bindings")
    assert not open_module._is_installed("no_such_package")
