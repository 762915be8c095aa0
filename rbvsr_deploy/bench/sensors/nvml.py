"""Reads an NVIDIA GPU through NVML; needs the optional package nvidia-ml-py."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from rbvsr_deploy.bench.sensors.reading import Reader, Reading

__all__ = ["NvmlReader", "open_nvml"]

_IDLE = {"nvmlClocksThrottleReasonGpuIdle", "nvmlClocksThrottleReasonNone"}
"""Reasons that do not mean that the GPU is kept from working."""


class NvmlReader(Reader):
    """Reads one GPU. What its driver does not support is missing from the readings.

    Args:
        nvml: the initialised module ``pynvml``.
        device: handle of the GPU.
    """

    name = "nvml"

    def __init__(self, nvml: Any, device: Any) -> None:
        self._nvml, self._device = nvml, device
        self.gpu = str(self._ask(lambda: nvml.nvmlDeviceGetName(device)) or "NVIDIA GPU")
        self.driver = self._ask(nvml.nvmlSystemGetDriverVersion)
        limit = self._ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(device))
        self.power_limit_watts = None if limit is None else limit / 1e3

    def read(self) -> Reading:
        """Read power, clocks, temperature, throttling and this process's memory."""
        nvml, device = self._nvml, self._device
        reading = Reading()
        milliwatts = self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(device))
        if milliwatts is not None:
            reading.total_watts = reading.watts["GPU"] = milliwatts / 1e3
        for name, kind in (("SM", nvml.NVML_CLOCK_SM), ("memory", nvml.NVML_CLOCK_MEM)):
            clock = self._ask(partial(nvml.nvmlDeviceGetClockInfo, device, kind))
            if clock is not None:
                reading.clocks_mhz[name] = clock
        degrees = self._ask(
            lambda: nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU)
        )
        if degrees is not None:
            reading.temperatures["GPU"] = degrees
        mask = self._ask(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device))
        if mask is not None:
            reading.throttling = self._throttling(mask)
        used = [
            process.usedGpuMemory
            for process in self._ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(device))
            or ()
            if process.pid == os.getpid() and process.usedGpuMemory is not None
        ]
        reading.memory_bytes = used[0] if used else None
        return reading

    def _throttling(self, mask: int) -> list[str]:
        prefix = "nvmlClocksThrottleReason"
        return [
            name.removeprefix(prefix)
            for name in sorted(dir(self._nvml))
            if name.startswith(prefix)
            and name not in _IDLE
            and name != f"{prefix}All"
            and isinstance(getattr(self._nvml, name), int)
            and mask & getattr(self._nvml, name)
        ]

    def _ask(self, question: Callable[[], Any]) -> Any:
        """Return the driver's answer, or ``None`` if it does not know."""
        with contextlib.suppress(self._nvml.NVMLError):
            answer = question()
            return answer.decode() if isinstance(answer, bytes) else answer
        return None


def open_nvml(index: int = 0) -> NvmlReader | str:
    """Open the GPU with this CUDA index in this process.

    Returns:
        A reader, or the reason why there is none, as a clause.
    """
    from rbvsr_deploy.engines.memory import nvml_device

    try:
        import pynvml

        return NvmlReader(pynvml, nvml_device(index))
    except ImportError:
        return "the package 'nvidia-ml-py' is not installed"
    except pynvml.NVMLError as error:
        return f"NVIDIA's driver does not answer ({error})"
