"""Defines the protocols between the device runtime and TensorRT, which test doubles implement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from rbvsr_deploy.bundle.engine_sets import EngineSet, Flavour
from rbvsr_deploy.engines.base import Engine
from rbvsr_deploy.graphs import Precision

__all__ = ["Candidate", "Executable", "Plans", "Runtime", "states_are_channels_last"]


def states_are_channels_last(precision: Precision, channels: int) -> bool:
    """Return whether the engines of a network hold states as (N, H, W, C).

    Convolutions in float16 do so internally. Where the channels fill whole groups of eight, which
    TensorRT's format HWC8 requires, states keep that order from engine to engine.
    """
    return precision == "float16" and channels % 8 == 0


class Executable(Protocol):
    """A deserialised engine with one execution context.

    It is called from one thread at a time, and all launches go to the same stream.
    """

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Set the shape of an input from the next launch on.

        Raises:
            EngineError: the engine's profile does not cover it.
        """
        ...

    def scratch_bytes(self) -> int:
        """Bytes of device memory that a launch with the present shapes needs for its intermediate
        results; 0 where the context owns them itself. Ask after the last :meth:`set_shape`.

        Raises:
            EngineError: with these inputs, outputs would have other shapes than the contract's.
        """
        ...

    def set_scratch(self, address: int, size: int) -> None:
        """Set the address, 256-byte aligned, of scratch memory from the next launch on."""
        ...

    def set_address(self, name: str, address: int) -> None:
        """Set the device address of an input or output from the next launch on."""
        ...

    def enqueue(self, stream: int) -> None:
        """Launch on a stream without waiting.

        Raises:
            EngineError: TensorRT failed; the message includes its own.
        """
        ...

    def is_capturable(self, stream: int) -> bool:
        """Return whether the next launch may be captured into a CUDA graph."""
        ...

    def close(self) -> None:
        """Free the context and the engine; no launch may be in flight."""
        ...


class Runtime(Protocol):
    """The part of an installed TensorRT that runs engines."""

    flavour: Flavour
    version: str

    def load(self, graph: str, plan: bytes) -> Executable:
        """Deserialise the engine of a graph.

        Raises:
            EngineError: the plan is damaged, or is for another version, GPU or flavour; the message
                includes TensorRT's own.
        """
        ...

    def close(self) -> None:
        """Store kernels compiled while running (TensorRT-RTX) for later, and free everything."""
        ...


@dataclass(frozen=True)
class Candidate:
    """A set of engines that may run on this machine."""

    engine_set: EngineSet
    plans: Mapping[str, bytes]
    """Serialised engine by graph."""
    reason: str
    """Their source, as a clause, such as "from the bundle"."""
    check: Callable[[Engine], None] | None = None
    """Called once they are loaded, if they have not been run before, with the engine that runs
    them; raises EngineError if they compute wrong values."""


class Plans(Protocol):
    """The source of engines."""

    def candidates(self, height: int, width: int, *, batch: int) -> Iterator[Candidate]:
        """Yield engines for frames of a size, the best first.

        These are the bundle's, cached ones, and finally new ones, which are compiled on demand and
        then cached. The caller uses the first that loads.

        Raises:
            EngineError: compiling, the last resort, failed.
        """
        ...
