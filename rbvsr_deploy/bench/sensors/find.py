"""Finds the sensors of this machine."""

from __future__ import annotations

from pathlib import Path

from rbvsr_deploy.bench.sensors.jetson import find_jetson
from rbvsr_deploy.bench.sensors.linux import LinuxReader
from rbvsr_deploy.bench.sensors.nvml import open_nvml
from rbvsr_deploy.bench.sensors.reading import Reader

__all__ = ["find_sensors"]


def find_sensors(device: str, root: Path = Path("/")) -> tuple[list[Reader], dict[str, str]]:
    """Find what can be read while a device works.

    Args:
        device: as the engine describes it, such as "cpu" or "cuda:0".
        root: folder that contains ``sys``.

    Returns:
        The readers, the one that knows the device's power first, and reasons for what is missing.
    """
    readers: list[Reader] = []
    missing = {}
    if (jetson := find_jetson(root)) is not None:
        readers.append(jetson)
        if jetson.power_mode is None:
            missing["power_mode"] = "nvpmodel did not answer"
    if device != "cpu":
        _, _, index = device.partition(":")
        nvml = open_nvml(int(index) if index.isdecimal() else 0)
        if not isinstance(nvml, str):
            readers.append(nvml)
        elif jetson is None:  # of Jetson boards only Thor has NVML
            missing["gpu_sensors"] = nvml
    return [*readers, LinuxReader(root)], missing
