"""Describes the machine, its software and its load."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path

from rbvsr_deploy.bench.result import Calm, Machine
from rbvsr_deploy.bench.sensors.jetson import JetsonReader
from rbvsr_deploy.bench.sensors.nvml import NvmlReader
from rbvsr_deploy.bench.sensors.reading import Reader, read_text

__all__ = ["Load", "PeakMemory", "allowed_processors", "describe_machine"]

_PACKAGES = (
    *("numpy", "av", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino"),
    *("onnxruntime-ep-webgpu", "tensorrt", "tensorrt-rtx", "cuda-bindings", "torch"),
)
_CALM_LOAD = 0.25  # load average per core before the run
_CALM_SHARE = 0.05  # of all cores, used by others during the run
_CALM_SPREAD = 0.05  # of the network time per frame over the clips


def allowed_processors() -> int:
    """Return the number of processors in this process's affinity."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    else:  # noqa: RET505  mypy skips the branches of other systems
        return os.cpu_count() or 1


def describe_machine(readers: list[Reader]) -> Machine:
    """Describe this machine.

    Args:
        readers: sensors that were found; they know the board or the GPU.
    """
    accelerator: str | None = None
    driver: str | None = None
    for reader in reversed(readers):  # the first one counts
        match reader:
            case JetsonReader():
                accelerator = reader.board
                driver = f"L4T {reader.release}" if reader.release else None
            case NvmlReader():
                accelerator, driver = reader.gpu, reader.driver
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    cpu = _cpu_name()
    return Machine(
        name=accelerator or cpu,
        cpu=cpu,
        cores=allowed_processors(),
        memory_bytes=_memory(),
        os=platform.platform(),
        accelerator=accelerator,
        driver=driver,
        versions=versions,
    )


def _cpu_name() -> str:
    for line in (read_text(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    if sys.platform != "win32":
        with contextlib.suppress(OSError, ValueError):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


class Load:
    """Measures how much of the machine other processes use, from its creation on."""

    def __init__(self) -> None:
        self._before: float | None = None
        if sys.platform != "win32":
            with contextlib.suppress(OSError):
                self._before = os.getloadavg()[0] / allowed_processors()
        self._busy, self._own, self._time = _busy_seconds(), _own_seconds(), time.perf_counter()

    def judge(self, *, spread: float) -> Calm:
        """Say whether the machine was calm since the creation.

        Args:
            spread: of the network time per frame over the clips.
        """
        others, busy = None, _busy_seconds()
        if busy is not None and self._busy is not None:
            passed = (time.perf_counter() - self._time) * (os.cpu_count() or 1)
            own = _own_seconds() - self._own
            others = max(0.0, busy - self._busy - own) / passed
        reasons = []
        if self._before is not None and self._before > _CALM_LOAD:
            reasons.append(f"the load before the run was {self._before:.2f} per core")
        if others is not None and others > _CALM_SHARE:
            reasons.append(f"other processes used {100 * others:.0f} % of the cores")
        if spread > _CALM_SPREAD:
            reasons.append(f"the network time varied by {100 * spread:.1f} % over the clips")
        return Calm(
            calm=not reasons,
            reasons=reasons,
            load_before=self._before,
            others_share=others,
            spread=spread,
        )


def _busy_seconds() -> float | None:
    """Return the seconds that all cores together have worked since the start of the machine."""
    lines = (read_text(Path("/proc/stat")) or "").splitlines()
    if sys.platform != "win32" and lines and lines[0].startswith("cpu "):
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, lines[0].split()[1:9])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return None


def _own_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


class PeakMemory:
    """Measures the most resident memory of this process from its creation on."""

    def __init__(self) -> None:
        self._is_reset = False
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
            self._is_reset = True

    def bytes(self) -> int | None:
        """Return the peak, or ``None`` where the system does not count it."""
        for line in (read_text(Path("/proc/self/status")) or "").splitlines():
            if self._is_reset and line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None
