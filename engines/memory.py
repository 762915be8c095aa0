"""Measures free memory of the host and of NVIDIA GPUs, and classifies out-of-memory errors.

Free host memory respects the limits of control groups: containers, services and batch jobs.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from rbvsr_deploy.engines.control_groups import control_groups
from rbvsr_deploy.errors import DeviceMemoryError, EngineError

__all__ = [
    "failure",
    "free_cuda_memory",
    "free_host_memory",
    "free_shared_memory",
    "nvml_device",
]

_UNLIMITED = 2**62
_RESERVE = 768 * 2**20
"""Bytes that an integrated GPU leaves to the host: libraries, decoder, encoder and desktop."""


# Covers messages of CUDA, TensorRT, the arena of ONNX Runtime, C++ and torch on a CPU.
_OUT_OF_MEMORY = re.compile(r"out ?of ?memory|allocate memory|bad.?alloc", re.IGNORECASE)


def failure(text: str) -> type[EngineError]:
    """Return the error class for an engine's message: libraries share no type for out of memory."""
    return DeviceMemoryError if _OUT_OF_MEMORY.search(text) else EngineError


def free_host_memory() -> int:
    """Return the bytes of memory this process can use without swapping or being killed."""
    return min(_available(), _left_in_container())


def free_shared_memory() -> int:
    """Return the bytes of memory that an integrated GPU can use.

    CUDA's own figure leaves out the page cache, which holds most of the memory after a video was
    read, and which the system gives up when it is needed.
    """
    return max(0, free_host_memory() - _RESERVE)


def free_cuda_memory(index: int = 0) -> int:
    """Return the free memory, in bytes, of the GPU with this CUDA index in this process.

    Raises:
        EngineError: nvidia-ml-py is not installed, or the driver does not answer.
    """
    try:
        import pynvml
    except ImportError:
        raise EngineError(
            "finding the GPU's free memory needs the package 'nvidia-ml-py', which is not "
            "installed: pip install 'rbvsr-deploy[cuda]', or set a memory limit",
            parameters=("memory",),
        ) from None
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(nvml_device(index)).free)
    except pynvml.NVMLError as error:
        raise EngineError(
            f"cannot read the free memory of GPU {index} ({error}): set a memory limit",
            parameters=("memory",),
        ) from error


def nvml_device(index: int = 0) -> Any:
    """Return NVML's handle of the GPU with this CUDA index in this process.

    Raises:
        ImportError: nvidia-ml-py is not installed.
        pynvml.NVMLError: the driver does not answer.
    """
    import pynvml

    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    name = visible[index] if visible else str(index)
    pynvml.nvmlInit()
    return (
        pynvml.nvmlDeviceGetHandleByIndex(int(name))
        if name.isdecimal()
        else pynvml.nvmlDeviceGetHandleByUUID(name)
    )


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no Linux
    if sys.platform == "win32":
        from ctypes import c_uint64, windll

        # MEMORYSTATUSEX: its own size and a percentage of 32 bits each, then sizes of 64 bits, of
        # which the second is the available physical memory.
        status = (c_uint64 * 8)(64)
        if not windll.kernel32.GlobalMemoryStatusEx(status):
            raise EngineError("Windows does not report the free memory: set a memory limit")
        return int(status[2])
    else:  # noqa: RET505  mypy skips the branches of other systems
        # Half of what the machine has is a careful guess.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _left_in_container() -> int:
    """Return the bytes that the control groups of this process may still use; a huge number if none
    has a limit.
    """
    return min((_left(group) for group in control_groups("memory")), default=_UNLIMITED)


def _left(group: Path) -> int:
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            # The limit reads "max" if there is none. Cached files count as used but can be evicted.
            left = int((group / limit).read_text("ascii")) - int((group / used).read_text("ascii"))
            return max(0, left + _cached(group))
        except (OSError, ValueError):
            continue
    return _UNLIMITED


def _cached(group: Path) -> int:
    for line in (group / "memory.stat").read_text("ascii").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0
