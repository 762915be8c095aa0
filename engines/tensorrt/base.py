"""What the device runtime asks of a TensorRT: the seam that tests put their double into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from rbvsr_deploy.engine_sets import EngineSet, Flavour

__all__ = ["Candidate", "Executable", "Plans", "Runtime"]


class Executable(Protocol):
    """A deserialised engine with one execution context. Its calls are made from one thread at a
    time, and all launches go to the same stream.
    """

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Shape of an input from the next launch on.

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
        """Where that memory is, from the next launch on; 256-byte aligned."""
        ...

    def set_address(self, name: str, address: int) -> None:
        """Device address of an input or output from the next launch on."""
        ...

    def enqueue(self, stream: int) -> None:
        """Launch on a stream and return at once.

        Raises:
            EngineError: TensorRT refused; its own text is in the sentence.
        """
        ...

    def is_capturable(self, stream: int) -> bool:
        """Whether the next launch may be captured into a CUDA graph."""
        ...

    def close(self) -> None:
        """Free the context and the engine. Nothing may be in flight."""
        ...


class Runtime(Protocol):
    """An installed TensorRT, as far as it runs engines."""

    flavour: Flavour
    version: str

    def load(self, graph: str, plan: bytes) -> Executable:
        """Deserialise the engine of a graph.

        Raises:
            EngineError: the plan is damaged, or of another version, GPU or flavour; TensorRT's own
                text is in the sentence.
        """
        ...

    def close(self) -> None:
        """Keep what was compiled while running (TensorRT-RTX) for the next time, and free all."""
        ...


@dataclass(frozen=True)
class Candidate:
    """Engines that may fit."""

    engine_set: EngineSet
    plans: Mapping[str, bytes]
    """Serialised engine by graph."""
    reason: str
    """Where they came from, as a clause, such as "from the bundle"."""


class Plans(Protocol):
    """Where engines come from."""

    def candidates(self, height: int, width: int, *, batch: int) -> Iterator[Candidate]:
        """Engines for frames of a size, the best first: the bundle's, cached ones, and at last new
        ones, compiled when they are asked for and then cached. The one who asks takes the first
        that loads.

        Raises:
            EngineError: the last resort, compiling, failed.
        """
        ...
