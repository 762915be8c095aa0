"""Lists the kernels that TensorRT-RTX makes of a graph, which its builder reports without a GPU."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from typing import Any

import pytest

from rbvsr_deploy.bundle import Manifest
from rbvsr_deploy.bundle.engine_sets import ShapeProfile
from rbvsr_deploy.engines.tensorrt import flavours
from rbvsr_deploy.engines.tensorrt.build import build_engine_set
from rbvsr_deploy.engines.tensorrt.flavours import TensorRT, load_flavour

__all__ = ["Kernel", "Value", "kernels"]

_VALUE = re.compile(
    r"Name: (?P<name>[^,]+), (?:Location: \w+, )?Dimensions: \[(?P<shape>[-\d,]*)\], "
    r"(?:Strides: \[[^]]*\], StrideOrder: \[[^]]*\], )?Datatype: (?P<dtype>\w+), "
    r"Format: (?:\((?P<layout>\w+)\))?"
)
_ON_THE_HOST = ("ShapeHostToDevice", "shape_call", "signal", "wait")


@dataclass(frozen=True)
class Value:
    """An input or output of a kernel."""

    name: str
    shape: tuple[int, ...]
    """Dynamic sizes are -1."""
    dtype: str
    layout: str


@dataclass(frozen=True)
class Kernel:
    """A kernel of the listing."""

    name: str
    kind: str
    inputs: tuple[Value, ...]
    constants: tuple[Value, ...]
    outputs: tuple[Value, ...]


def kernels(
    manifest: Manifest, graph: str, model: bytes, *, compute_capability: str
) -> list[Kernel]:
    """Build an engine as the project does, and return its kernels in order."""

    class Verbose(TensorRT):
        def set_precision(self, config: Any, network: Any, **options: Any) -> None:
            super().set_precision(config, network, **options)
            config.profiling_verbosity = self.module.ProfilingVerbosity.DETAILED

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    lines: list[str] = []
    logger, handler = logging.getLogger(flavours.__name__), Collector()
    with pytest.MonkeyPatch.context() as patch:
        before = logger.level
        logger.setLevel(logging.DEBUG)  # forgets which levels were off
        patch.setattr(logger, "propagate", False)
        logger.addHandler(handler)
        try:
            build_engine_set(
                Verbose("tensorrt-rtx", load_flavour("tensorrt-rtx").module),
                replace(manifest, graphs={graph: manifest.graphs[graph]}),
                {graph: model},
                profile=ShapeProfile(),
                compute_capability=compute_capability,
            )
        finally:
            logger.setLevel(before)
            logger.removeHandler(handler)
    (listing,) = (line for line in lines if line.startswith("Layers:"))
    found = (_parsed(line) for line in listing.splitlines() if line.startswith("Name: "))
    return [kernel for kernel in found if kernel.kind not in _ON_THE_HOST]


def _parsed(line: str) -> Kernel:
    head, _, rest = line.partition(", Inputs: ")
    name, kind = re.fullmatch(r"Name: (.*), LayerType: (.*)", head).groups()  # type: ignore[union-attr]
    inputs, _, rest = rest.partition(", Constants: ")
    if rest:
        constants, _, rest = rest.partition(", Outputs: ")
    else:
        inputs, _, rest = inputs.partition(", Outputs: ")
        constants = ""
    outputs, *_ = rest.partition("TacticName")
    return Kernel(name, kind, *map(_values, (inputs, constants, outputs)))


def _values(text: str) -> tuple[Value, ...]:
    return tuple(
        Value(
            match["name"],
            tuple(int(size) for size in match["shape"].split(",") if size),
            match["dtype"],
            match["layout"] or "",
        )
        for match in _VALUE.finditer(text)
    )
