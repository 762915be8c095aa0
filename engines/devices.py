"""Lists what this machine can run bundles on, by the names that engines are opened with."""

from __future__ import annotations

from dataclasses import dataclass

from rbvsr_deploy.engines.providers import find_providers
from rbvsr_deploy.errors import EngineError

__all__ = ["Device", "find_devices"]


@dataclass(frozen=True)
class Device:
    """A device, or one that this project knows and that cannot be used here."""

    name: str
    """As in :func:`rbvsr_deploy.engines.open_engine`."""
    software: str = ""
    """Program that runs the graphs on it, with its version."""
    hardware: str = ""
    """Maker and name, as far as the software says."""
    missing: str = ""
    """Why it cannot be used, as a clause; empty if it can."""


def find_devices() -> list[Device]:
    """Return all devices: those of TensorRT, of ONNX Runtime and of its plug-ins."""
    try:
        found, missing = find_providers()
    except ImportError:
        return [
            _tensorrt(),
            Device("cpu", missing="not installed (pip install 'rbvsr-deploy[cpu]')"),
        ]
    devices = [_tensorrt()]
    if "cuda" not in found:
        devices.append(Device("cuda", missing="this ONNX Runtime has no CUDA"))
    for provider in found.values():
        kind = "plug-in" if provider.devices else "ONNX Runtime's"
        software = f"{kind} {provider.execution_provider} {provider.version}"
        devices.append(Device(provider.name, software, provider.hardware))
    return devices + [Device(name, missing=why) for name, why in missing.items()]


def _tensorrt() -> Device:
    from rbvsr_deploy.engines.cuda.open import open_driver
    from rbvsr_deploy.engines.tensorrt.build import BuildOptions, describe_gpu
    from rbvsr_deploy.engines.tensorrt.compile import check_installed, flavour_for

    try:
        check_installed()
        gpu = describe_gpu(open_driver())
        flavour = flavour_for(gpu, options=BuildOptions())
    except EngineError as error:
        return Device("tensorrt", missing=str(error).partition(": ")[0])
    return Device("tensorrt", f"{flavour.name} {flavour.version}", gpu.name)
