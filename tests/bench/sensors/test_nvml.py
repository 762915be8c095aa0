"""Tests the reader of NVIDIA GPUs against a double of pynvml."""

from __future__ import annotations

import builtins
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from rbvsr_deploy.bench.sensors.nvml import NvmlReader, open_nvml


class NvmlError(Exception):
    """Stands for pynvml.NVMLError."""


def refuse(*arguments: object) -> Any:
    raise NvmlError("Not Supported")


def make_nvml(**changes: Any) -> SimpleNamespace:
    """Return a double of the module for one GPU."""
    mine = SimpleNamespace(pid=os.getpid(), usedGpuMemory=3 * 2**30)
    functions: dict[str, Any] = {
        "NVMLError": NvmlError,
        "NVML_CLOCK_SM": 1,
        "NVML_CLOCK_MEM": 2,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlClocksThrottleReasonNone": 0,
        "nvmlClocksThrottleReasonGpuIdle": 1,
        "nvmlClocksThrottleReasonSwPowerCap": 4,
        "nvmlClocksThrottleReasonHwThermalSlowdown": 64,
        "nvmlClocksThrottleReasonAll": 0xFF,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: f"gpu {index}",
        "nvmlDeviceGetName": lambda device: b"NVIDIA H100",
        "nvmlSystemGetDriverVersion": lambda: "580.1",
        "nvmlDeviceGetEnforcedPowerLimit": lambda device: 700_000,
        "nvmlDeviceGetPowerUsage": lambda device: 312_500,
        "nvmlDeviceGetClockInfo": lambda device, kind: {1: 1980, 2: 2619}[kind],
        "nvmlDeviceGetTemperature": lambda device, kind: 61,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda device: 4 | 1,
        "nvmlDeviceGetComputeRunningProcesses": lambda device: [
            SimpleNamespace(pid=1, usedGpuMemory=2**40),
            mine,
        ],
    }
    return SimpleNamespace(**(functions | changes))


def test_everything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """In watts, MHz and °C; idle is not throttling; only this process's memory counts."""
    monkeypatch.setitem(sys.modules, "pynvml", make_nvml())
    reader = open_nvml(0)
    assert isinstance(reader, NvmlReader)
    assert (reader.gpu, reader.driver, reader.power_limit_watts) == ("NVIDIA H100", "580.1", 700)
    reading = reader.read()
    assert reading.total_watts == reading.watts["GPU"] == 312.5
    assert reading.clocks_mhz == {"SM": 1980, "memory": 2619}
    assert reading.temperatures == {"GPU": 61}
    assert reading.throttling == ["SwPowerCap"]
    assert reading.memory_bytes == 3 * 2**30


def test_what_the_driver_does_not_support_is_missing() -> None:
    """Each figure by itself, without an error."""
    names = [name for name in vars(make_nvml()) if name.startswith("nvmlDeviceGet")]
    reader = NvmlReader(make_nvml(**dict.fromkeys(names, refuse)), "gpu 0")
    reading = reader.read()
    assert [reading.total_watts, reading.throttling, reading.memory_bytes] == [None] * 3
    assert reading.clocks_mhz == reading.temperatures == {}
    assert reader.power_limit_watts is None


def test_reasons_for_having_none(monkeypatch: pytest.MonkeyPatch) -> None:
    double = make_nvml(nvmlInit=refuse)
    monkeypatch.setitem(sys.modules, "pynvml", double)
    assert open_nvml() == "NVIDIA's driver does not answer (Not Supported)"
    monkeypatch.delitem(sys.modules, "pynvml")
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "pynvml":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    assert open_nvml() == "the package 'nvidia-ml-py' is not installed"
