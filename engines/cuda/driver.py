"""Declares the part of CUDA that the device runtime needs.

Addresses, streams, events and graphs are plain integers: handles that TensorRT accepts directly.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

__all__ = ["CudaDriver", "Gpu"]


@dataclass(frozen=True)
class Gpu:
    """The properties of a GPU that engines depend on."""

    name: str
    compute_capability: str
    """For example "8.9"."""
    driver_version: str
    """Newest CUDA version that the installed driver supports, for example "12.6"."""
    total_memory: int
    """In bytes."""
    is_integrated: bool = False
    """True if its memory is the host's, as on Jetson."""


class CudaDriver(Protocol):
    """The part of CUDA that the runtime uses, for one GPU.

    Calls are made within :meth:`current`, from one thread at a time, though not always the same
    thread. All methods except :meth:`synchronise` and :meth:`synchronise_stream` return without
    waiting for the GPU. Every method raises:

    - ``DeviceMemoryError``: the GPU is out of memory, or no more host memory can be pinned.
    - ``EngineError``: any other failure, possibly of an earlier asynchronous call; includes CUDA's
      own message.
    """

    index: int
    """Index of the GPU, as CUDA numbers them in this process."""

    def current(self) -> AbstractContextManager[None]:
        """Make the GPU current in this thread; required for calls to TensorRT as well."""
        ...

    def gpu(self) -> Gpu:
        """Return the properties of the GPU."""
        ...

    def free_memory(self) -> int:
        """Return the bytes of GPU memory that are free; of an integrated GPU, those of the host's
        memory that may be used.
        """
        ...

    def malloc(self, size: int) -> int:
        """Allocate GPU memory, aligned to at least 256 bytes, and return its address."""
        ...

    def free(self, address: int) -> None:
        """Free GPU memory; no operation that uses it may be in flight."""
        ...

    def malloc_host(self, size: int) -> int:
        """Allocate pinned host memory, for asynchronous copies, and return its address."""
        ...

    def free_host(self, address: int) -> None:
        """Free pinned memory; no operation that uses it may be in flight."""
        ...

    def create_stream(self, *, urgent: bool = False) -> int:
        """Create a stream that does not wait for CUDA's default stream. Kernels of urgent streams
        start before waiting ones of others.
        """
        ...

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream; no operation may be in flight on it."""
        ...

    def synchronise_stream(self, stream: int) -> None:
        """Block the host until a stream has completed everything submitted to it."""
        ...

    def create_event(self) -> int:
        """Create an event without timing."""
        ...

    def destroy_event(self, event: int) -> None:
        """Destroy an event; nothing may be waiting for it."""
        ...

    def record(self, event: int, stream: int) -> None:
        """Make the event mark everything submitted to the stream so far.

        This replaces what the event marked before; waits that were already submitted still refer
        to that.
        """
        ...

    def wait(self, stream: int, event: int) -> None:
        """Make later work on the stream wait for the event; the host does not wait."""
        ...

    def synchronise(self, event: int) -> None:
        """Block the host until the event has completed."""
        ...

    def is_done(self, event: int) -> bool:
        """Return whether the work that the event marks has completed."""
        ...

    def upload(self, to: int, source: int, size: int, stream: int) -> None:
        """Copy bytes from pinned memory to GPU memory."""
        ...

    def download(self, to: int, source: int, size: int, stream: int) -> None:
        """Copy bytes from GPU memory to pinned memory."""
        ...

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Copy bytes within GPU memory."""
        ...

    def copy_rows(
        self,
        to: int,
        to_pitch: int,
        source: int,
        source_pitch: int,
        *,
        width: int,
        count: int,
        stream: int,
    ) -> None:
        """Copy ``count`` rows of ``width`` bytes within GPU memory.

        A pitch is the distance between the starts of consecutive rows, in bytes.
        """
        ...

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Set bytes of GPU memory to a value from 0 to 255."""
        ...

    def begin_capture(self, stream: int) -> None:
        """Start capturing: work submitted to the stream is recorded instead of executed."""
        ...

    def end_capture(self, stream: int) -> int:
        """End the capture, even after an error, and return the recorded work as a graph."""
        ...

    def launch(self, graph: int, stream: int) -> None:
        """Submit all the work of a graph to a stream in one call."""
        ...

    def destroy_graph(self, graph: int) -> None:
        """Destroy a graph; it may not be in flight."""
        ...
