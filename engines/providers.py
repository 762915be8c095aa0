"""Finds the execution providers of ONNX Runtime that this machine offers.

Some are built into ONNX Runtime (``cpu``, ``cuda``); others are plug-ins in packages of their own,
which this module registers: ``openvino`` and ``webgpu``.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module, metadata
from typing import Any

from rbvsr_deploy.engines.processors import usable_cores
from rbvsr_deploy.errors import first_line

__all__ = ["CPU", "CUDA", "Provider", "find_providers", "import_onnxruntime"]

logger = logging.getLogger(__name__)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
"""ONNX Runtime's names of two of its own providers."""

_BUILT_IN = {CPU: "cpu", CUDA: "cuda"}


@dataclass(frozen=True)
class Provider:
    """An execution provider on one device."""

    name: str
    """Name of the device for users, such as "cpu", "openvino" or "openvino-gpu"."""
    execution_provider: str
    """ONNX Runtime's name for it."""
    version: str
    hardware: str = ""
    """Maker and name of the hardware, as far as the provider says."""
    on_cpu: bool = False
    """True if it computes on the CPU."""
    whole: bool = False
    """True if it takes a graph whole, with constant sizes, or not at all, and is checked against
    the CPU: every provider but ``cpu`` and ``cuda``."""
    devices: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    """The ``OrtEpDevice`` of a plug-in; empty for a provider that is built in."""
    options: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def fixed(self) -> bool:
        """True if it has a session of its own for each size: ``cuda`` plans all convolutions again
        when sizes change, and plug-ins leave the arithmetic on sizes to the CPU."""
        return self.execution_provider != CPU

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class _PlugIn:
    """The package of a plug-in, which locates its library."""

    module: str
    package: str


_PLUG_INS = {
    "openvino": _PlugIn("onnxruntime_ep_openvino", "onnxruntime-ep-openvino"),
    "webgpu": _PlugIn("onnxruntime_ep_webgpu", "onnxruntime-ep-webgpu"),
}
"""By the name of the device, which is also that of the extra that installs it."""


def import_onnxruntime() -> Any:
    """Import onnxruntime, with telemetry and warnings disabled.

    Raises:
        ImportError: it is not installed.
    """
    # Its wheels (1.32, on Linux too) contain telemetry that starts a session on import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    # Warnings concern details of graphs that users cannot change.
    onnxruntime.set_default_logger_severity(3)
    return onnxruntime


@functools.cache
def find_providers() -> tuple[Mapping[str, Provider], Mapping[str, str]]:
    """Find what ONNX Runtime can run on, and register the plug-ins that are installed.

    Returns:
        The providers by name, and for each known plug-in without any the reason, as a clause.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    ort = import_onnxruntime()
    found = {}
    for name in reversed(ort.get_available_providers()):  # the CPU is its last
        if name != "AzureExecutionProvider":  # a client of a service
            found[_BUILT_IN.get(name, name)] = _built_in(ort, name)
    missing = {}
    for name, plug_in in _PLUG_INS.items():
        try:
            providers = list(_register(ort, name, plug_in))
        except ModuleNotFoundError:
            missing[name] = f"not installed (pip install 'rbvsr-deploy[{name}]')"
        except Exception as error:  # plug-ins raise whatever they like
            missing[name] = f"its plug-in does not load ({first_line(error)})"
        else:
            found.update({provider.name: provider for provider in providers})
            if not providers:
                missing[name] = "its plug-in supports no device of this machine"
        if name in missing:
            logger.debug("%s: %s", name, missing[name])
    return found, missing


def _register(ort: Any, name: str, plug_in: _PlugIn) -> Iterator[Provider]:
    """Register a plug-in and yield a provider per kind of device that it supports."""
    module = import_module(plug_in.module)
    if not hasattr(ort, "register_execution_provider_library"):
        raise RuntimeError(f"ONNX Runtime {ort.__version__} has no plug-ins: 1.23 or later is due")
    ort.register_execution_provider_library(plug_in.package, str(module.get_library_path()))
    by_kind: dict[str, list[Any]] = {}
    for device in ort.get_ep_devices():
        # OpenVINO also offers "OpenVINOExecutionProvider.AUTO", which chooses by itself.
        if device.ep_name in module.get_ep_names():
            by_kind.setdefault(device.device.type.name.lower(), []).append(device)
    for kind, devices in by_kind.items():
        first = devices[0]
        described = dict(first.ep_metadata)
        yield Provider(
            # OpenVINO runs on CPUs, GPUs and NPUs, WebGPU only on GPUs.
            name if kind == "cpu" or name == "webgpu" else f"{name}-{kind}",
            first.ep_name,
            described.get("version") or metadata.version(plug_in.package),
            hardware=described.get("FULL_DEVICE_NAME") or first.device.vendor,
            on_cpu=kind == "cpu",
            whole=True,
            devices=(first,),
            options=_openvino_options(kind) if name == "openvino" else {},
        )


def _openvino_options(kind: str) -> Mapping[str, str]:
    """Return options for the float type of the bundle: OpenVINO computes in bfloat16 or float16 by
    itself where the hardware is faster at it.
    """
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    if kind == "cpu" and (cores := usable_cores()):
        settings["INFERENCE_NUM_THREADS"] = str(cores)
    return {"load_config": json.dumps({kind.upper(): settings})}


def _built_in(ort: Any, name: str) -> Provider:
    hardware = platform.processor() or platform.machine() if name == CPU else ""
    return Provider(
        _BUILT_IN.get(name, name),
        name,
        ort.__version__,
        hardware=hardware,
        on_cpu=name == CPU,
        whole=name not in _BUILT_IN,
    )
