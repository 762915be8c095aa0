"""Declares what the device runtime needs of CUDA.

Addresses, streams, events and graphs are plain integers: handles that TensorRT takes as they are.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

__all__ = ["CudaDriver", "Gpu"]


@dataclass(frozen=True)
class Gpu:
    """A GPU, as far as engines depend on it."""

    name: str
    compute_capability: str
    """Such as "8.9"."""
    driver_version: str
    """The newest CUDA that the installed driver knows, such as "12.6"."""
    total_memory: int
    """Bytes."""


class CudaDriver(Protocol):
    """The part of CUDA that the runtime uses, for one GPU.

    Calls are made within :meth:`current`, from one thread at a time, but not always the same. All
    but :meth:`synchronise` and :meth:`synchronise_stream` return without waiting for the GPU.
    Every method raises:

    - ``DeviceMemoryError``: there is too little memory, of the GPU or of what can be pinned.
    - ``EngineError``: anything else, perhaps the failure of a call long before; with CUDA's own
      text.
    """

    index: int
    """Of the GPU, as CUDA counts in this process."""

    def current(self) -> AbstractContextManager[None]:
        """The GPU is this thread's current one; also while TensorRT is called."""
        ...

    def gpu(self) -> Gpu:
        """Which GPU it is."""
        ...

    def free_memory(self) -> int:
        """Bytes of the GPU's memory that nobody uses."""
        ...

    def malloc(self, size: int) -> int:
        """The address of so many bytes of the GPU's memory, 256-byte aligned at least."""
        ...

    def free(self, address: int) -> None:
        """Give them back; nothing that uses them may be in flight."""
        ...

    def malloc_host(self, size: int) -> int:
        """The address of so many bytes of the host's memory, pinned: copies run beside the host."""
        ...

    def free_host(self, address: int) -> None:
        """Give them back; nothing that uses them may be in flight."""
        ...

    def create_stream(self) -> int:
        """A stream that does not wait for CUDA's default stream."""
        ...

    def destroy_stream(self, stream: int) -> None:
        """Nothing may be in flight on it."""
        ...

    def synchronise_stream(self, stream: int) -> None:
        """Wait on the host until a stream has done all it was given."""
        ...

    def create_event(self) -> int:
        """An event without a clock."""
        ...

    def destroy_event(self, event: int) -> None:
        """Nobody may be waiting for it."""
        ...

    def record(self, event: int, stream: int) -> None:
        """The event stands for all that the stream was given so far, and no more for what it stood
        for before; those who wait for that already keep waiting for that.
        """
        ...

    def wait(self, stream: int, event: int) -> None:
        """What the stream is given from now on waits for the event; the host does not."""
        ...

    def synchronise(self, event: int) -> None:
        """Wait on the host for the event."""
        ...

    def is_done(self, event: int) -> bool:
        """Whether what the event stands for is done."""
        ...

    def upload(self, to: int, source: int, size: int, stream: int) -> None:
        """Copy bytes from pinned memory to the GPU's."""
        ...

    def download(self, to: int, source: int, size: int, stream: int) -> None:
        """Copy bytes from the GPU's memory to pinned memory."""
        ...

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Copy bytes within the GPU's memory."""
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
        """Copy ``count`` runs of ``width`` bytes within the GPU's memory, which begin so many bytes
        (pitch) apart.
        """
        ...

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Set bytes of the GPU's memory to a value of 0 to 255."""
        ...

    def begin_capture(self, stream: int) -> None:
        """From now on what the stream is given is noted down, not done."""
        ...

    def end_capture(self, stream: int) -> int:
        """End that, in any case, and return what was noted down as a graph."""
        ...

    def launch(self, graph: int, stream: int) -> None:
        """Give a stream all that a graph holds, in one call."""
        ...

    def destroy_graph(self, graph: int) -> None:
        """It may not be in flight."""
        ...
