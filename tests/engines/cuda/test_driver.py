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

import cuda.bindings.runtime as real
import numpy as np
import pytest

from rbvsr_deploy.engines.cuda import open as open_module
from rbvsr_deploy.engines.cuda.cuda_python import CudaPythonDriver
from rbvsr_deploy.engines.cuda.driver import CudaDriver, Gpu
from rbvsr_deploy.engines.cuda.open import open_driver
from rbvsr_deploy.engines.cuda.pycuda import PycudaDriver
from rbvsr_deploy.errors import DeviceMemoryError, EngineError


class Runtime:
    """A double of ``cuda.bindings.runtime`` with the real constants.

    Functions record their arguments, which must be as many as the real function takes, and return
    as many values.
    """

    RESULTS: dict[str, tuple[Any, ...]] = {  # noqa: RUF012
        "cudaDriverGetVersion": (13_000,),
        "cudaRuntimeGetVersion": (13_050,),
        "cudaGetDeviceCount": (2,),
        "cudaGetDeviceProperties": (
            types.SimpleNamespace(
                name=b"NVIDIA Double\0\0", major=8, minor=9, totalGlobalMem=24 * 2**30
            ),
        ),
        "cudaMemGetInfo": (1000, 2000),
        "cudaMalloc": (512,),
        "cudaHostAlloc": (4096,),
        "cudaStreamCreateWithFlags": (real.cudaStream_t(7),),
        "cudaEventCreateWithFlags": (real.cudaEvent_t(8),),
        "cudaStreamEndCapture": (real.cudaGraph_t(9),),
        "cudaGraphInstantiate": (real.cudaGraphExec_t(10),),
    }

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.statuses: dict[str, Any] = {}
        self.results = dict(self.RESULTS)

    def __getattr__(self, name: str) -> Any:
        value = getattr(real, name)  # a name that does not exist fails here
        is_text = name in ("cudaGetErrorName", "cudaGetErrorString")
        if not name.startswith("cuda") or isinstance(value, type | int) or is_text:
            return value
        signature = value.__doc__.strip().splitlines()[0]
        matched = re.fullmatch(rf"{name}\((.*)\)", signature)
        assert matched is not None, signature
        parameters = matched[1]

        def call(*arguments: Any) -> tuple[Any, ...]:
            assert len(arguments) == len([p for p in parameters.split(",") if p.strip()]), name
            self.calls.append((name, *arguments))
            status = self.statuses.get(name, real.cudaError_t.cudaSuccess)
            return (status, *self.results.get(name, ()))

        return call


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """Replace the real runtime by a double."""
    double = Runtime()
    monkeypatch.setattr(sys.modules["cuda.bindings"], "runtime", double)
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


def test_cuda_python(runtime: Runtime) -> None:
    """It calls existing functions with their arguments in order."""
    driver = CudaPythonDriver(1)
    assert driver.gpu() == Gpu("NVIDIA Double", "8.9", "13.0", 24 * 2**30)
    assert driver.free_memory() == 1000
    runtime.calls.clear()
    with driver.current():
        everything(driver)
        driver.begin_capture(7)
        assert driver.end_capture(7) == 10
        driver.launch(10, 7)
        driver.destroy_graph(10)
    kinds = real.cudaMemcpyKind
    assert runtime.calls == [
        ("cudaSetDevice", 1),
        ("cudaStreamCreateWithFlags", 1),
        ("cudaEventCreateWithFlags", 3),
        ("cudaMalloc", 64),
        ("cudaHostAlloc", 64, 1),
        ("cudaMemcpyAsync", 512, 4096, 64, kinds.cudaMemcpyHostToDevice, 7),
        ("cudaMemcpyAsync", 520, 512, 8, kinds.cudaMemcpyDeviceToDevice, 7),
        ("cudaMemcpy2DAsync", 512, 4, 544, 8, 2, 3, kinds.cudaMemcpyDeviceToDevice, 7),
        ("cudaMemsetAsync", 512, 7, 16, 7),
        ("cudaMemcpyAsync", 4096, 512, 64, kinds.cudaMemcpyDeviceToHost, 7),
        ("cudaEventRecord", 8, 7),
        ("cudaStreamWaitEvent", 7, 8, 0),
        ("cudaEventQuery", 8),
        ("cudaEventSynchronize", 8),
        ("cudaStreamSynchronize", 7),
        ("cudaEventDestroy", 8),
        ("cudaStreamDestroy", 7),
        ("cudaFreeHost", 4096),
        ("cudaFree", 512),
        (
            "cudaStreamBeginCapture",
            7,
            real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
        ),
        ("cudaStreamEndCapture", 7),
        ("cudaGraphInstantiate", runtime.results["cudaStreamEndCapture"][0], 0),
        ("cudaGraphDestroy", runtime.results["cudaStreamEndCapture"][0]),
        ("cudaGraphLaunch", 10, 7),
        ("cudaGraphExecDestroy", 10),
    ]


def test_cuda_pythons_functions_take_these_arguments() -> None:
    """Calls the real package without a driver: every call returns that status, not a TypeError."""
    driver = CudaPythonDriver.__new__(CudaPythonDriver)
    driver._cuda, driver.index = real, 0
    if real.cudaDriverGetVersion()[1] != 0:
        pytest.skip("this machine has a driver, which would use the invented handles")
    calls: list[Callable[[], Any]] = [
        lambda: driver.current().__enter__(),
        driver.gpu,
        driver.free_memory,
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
        with pytest.raises(EngineError, match=r"CUDA failed in cuda\w+: cudaErrorInsufficient"):
            call()


def test_failures_of_cuda_python(runtime: Runtime) -> None:
    """Out of memory is distinguished from other failures, with CUDA's name and message."""
    driver = CudaPythonDriver()
    errors = real.cudaError_t
    runtime.statuses["cudaMalloc"] = errors.cudaErrorMemoryAllocation
    with pytest.raises(DeviceMemoryError, match=r"cudaMalloc: cudaErrorMemoryAllocation, out of m"):
        driver.malloc(8)
    runtime.statuses["cudaEventSynchronize"] = errors.cudaErrorIllegalAddress
    with pytest.raises(EngineError, match=r"cudaErrorIllegalAddress, an illegal memory access"):
        driver.synchronise(8)
    runtime.statuses["cudaEventQuery"] = errors.cudaErrorNotReady
    assert not driver.is_done(8)
    runtime.statuses["cudaEventQuery"] = errors.cudaErrorIllegalAddress
    with pytest.raises(EngineError, match="cudaEventQuery: cudaErrorIllegalAddress"):
        driver.is_done(8)
    runtime.statuses["cudaGraphInstantiate"] = errors.cudaErrorMemoryAllocation
    with pytest.raises(DeviceMemoryError):
        driver.end_capture(7)
    assert runtime.calls[-1][0] == "cudaGraphDestroy"


@pytest.mark.parametrize(
    ("name", "result", "index", "message"),
    [
        (
            "cudaDriverGetVersion",
            0,
            0,
            "there is no NVIDIA driver on this machine: install one",
        ),
        (
            "cudaDriverGetVersion",
            12_040,
            0,
            "driver is too old: it supports CUDA up to 12.4, and .*13",
        ),
        ("cudaGetDeviceCount", 2, 2, "GPU 2 does not exist: CUDA finds 2 on this machine"),
    ],
)
def test_cuda_python_does_not_open(
    name: str, result: int, index: int, message: str, runtime: Runtime
) -> None:
    """A missing driver, an old one and a missing GPU give one sentence each."""
    runtime.results[name] = (result,)
    with pytest.raises(EngineError, match=message) as caught:
        CudaPythonDriver(index)
    assert "\n" not in str(caught.value)


def test_a_driver_of_the_same_major_version_is_enough(runtime: Runtime) -> None:
    """A driver for CUDA 13.0 runs programs built for 13.5."""
    CudaPythonDriver()
    assert ("cudaSetDevice", 0) in runtime.calls


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


def test_choice_of_package(runtime: Runtime, pycuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
