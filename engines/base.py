"""Defines the interface of every engine, which runs the graphs of one network on one device."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from numpy.typing import NDArray

from rbvsr_deploy.bundle import Manifest
from rbvsr_deploy.closing import Closing
from rbvsr_deploy.graphs import OPTIONAL, Precision, graph_names

__all__ = ["Array", "Description", "Engine", "Network"]

Array = Any
"""An array on the engine's device, opaque to the runtime: only the engine that made it can read it.
"""


@dataclass(frozen=True)
class Network:
    """Describes the network of an engine to the runtime."""

    channels: int
    """Channels of the recurrent state."""
    head_channels: int
    """Values per input pixel in the widest feature map of ``reconstruct``; used to plan memory."""
    has_cleaning: bool
    """False if there is no ``clean`` graph (BasicVSR)."""
    refine_threshold: float
    """Default threshold of dynamic refinement, on the 0-255 scale."""
    precision: Precision
    quantised: bool = False
    """True if convolutions run in int8 where its accuracy is sufficient."""
    optional: tuple[str, ...] = ()
    """Those of :data:`~rbvsr_deploy.graphs.OPTIONAL` that it has."""
    reconstruction_blocks: int = 0
    """Residual blocks of ``reconstruct``."""

    @property
    def halo(self) -> int:
        """Rows of the input that a row of the output depends on above and below.

        Four 3x3 convolutions, one on the input's rows, one on rows of half their height, two on
        rows of a quarter, and bilinear interpolation (one row) make two; every residual block has
        two more convolutions on the input's rows.
        """
        return 2 + 2 * self.reconstruction_blocks

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of its graphs."""
        return graph_names(has_cleaning=self.has_cleaning, optional=self.optional)

    @property
    def types(self) -> str:
        """Types of its features and convolutions, for display."""
        return f"int8 and {self.precision}" if self.quantised else self.precision

    @classmethod
    def of(cls, manifest: Manifest) -> Network:
        """Return the network of a bundle."""
        return cls(
            channels=manifest.channels,
            head_channels=manifest.head_channels,
            reconstruction_blocks=int(manifest.model.get("reconstruction_blocks", 0)),
            has_cleaning=manifest.has_cleaning,
            refine_threshold=manifest.refine_threshold,
            precision=manifest.precision,
            quantised=manifest.quantisation is not None,
            optional=tuple(name for name in OPTIONAL if name in manifest.graphs),
        )


@dataclass(frozen=True)
class Description:
    """Describes the chosen engine and the reason for it; shown to the user at every run."""

    engine: Literal["onnxruntime", "torch", "tensorrt", "tensorrt-rtx"]
    version: str
    device: str
    precision: str
    """See :attr:`Network.types`."""
    model: str
    """File name of the bundle or checkpoint."""
    weights: str
    """SHA-256 that identifies the bundle or the checkpoint's weights."""
    reason: str
    """Reason for this engine and device, as a clause."""
    placement: str = ""
    """Graphs that plug-ins of ONNX Runtime run, with their versions; empty if there are none."""

    def __str__(self) -> str:
        what = f"{self.model} in {self.precision}"
        placement = f" with {self.placement}" if self.placement else ""
        return f"{what} by {self.engine} {self.version} on {self.device}{placement} ({self.reason})"


class Engine(Closing):
    """Runs the graphs of :mod:`rbvsr_deploy.graphs`; closing it frees the device.

    An engine keeps no state between calls. The arrays it returns belong to the caller: later calls
    never write to them, unless the caller passes them as ``into``.
    """

    network: Network
    """The network that the graphs are from."""
    asynchronous: ClassVar[bool] = False
    """True if :meth:`run` returns before the device has computed: runs that do not depend on each
    other then overlap, and a step costs less whose states are at places where earlier ones were."""

    @abstractmethod
    def run(
        self, graph: str, *, into: Sequence[Array] | None = None, **arrays: Array
    ) -> tuple[Array, ...]:
        """Run one graph.

        Args:
            graph: its name.
            into: arrays (or slices of arrays) to write the outputs to, in the contract's order; new
                ones if ``None``. None of them may overlap an input.
            arrays: one per input, by the input's name, with the contract's shape and dtype.

        Returns:
            The outputs in the contract's order, on the device.

        Raises:
            DeviceMemoryError: the device ran out of memory; smaller arrays may fit.
            EngineError: the engine failed otherwise; the graph is named.
        """

    @abstractmethod
    def empty(self, shape: tuple[int, ...], *, dtype: str) -> Array:
        """Allocate an array of a NumPy dtype on the device, with undefined content."""

    @abstractmethod
    def zeros(self, shape: tuple[int, ...], *, dtype: str) -> Array:
        """Allocate a zero array of a NumPy dtype on the device."""

    @abstractmethod
    def slice(self, array: Array, start: int, stop: int) -> Array:
        """Return items ``start`` to ``stop`` along the first axis, sharing the array's memory."""

    def held(self) -> AbstractContextManager[None]:
        """Keep the device current in this thread during several calls, which makes each cheaper."""
        return nullcontext()

    def copy(self, array: Array, *, into: Array, graph: str | None = None) -> None:
        """Copy an array into another one, or a slice of one, of the same shape and dtype; only
        asynchronous engines are asked to. ``graph`` is the one that reads the copy, if it is the
        next to be run.
        """
        raise NotImplementedError

    @abstractmethod
    def rows(self, array: Array, top: int, bottom: int) -> Array:
        """Copy the rows ``top`` to ``bottom`` of an array (N, C, H, W)."""

    def join(self, arrays: Sequence[Array]) -> Array | None:
        """Return a copy of arrays joined along the first axis; ``None`` if they cannot be joined on
        the device.
        """
        return None

    def most_at_once(self, height: int, width: int) -> tuple[int, int] | None:
        """Return the most frames per run, and the most rows per run of ``reconstruct``, for frames
        of a size; ``None`` if they are limited by memory alone.

        Raises:
            EngineError: the engine does not take frames of this size at all.
        """
        return None

    @abstractmethod
    def upload(self, array: NDArray[Any]) -> Array:
        """Copy to the device. A CPU engine may use the array in place: leave it unchanged until
        results are read.
        """

    @abstractmethod
    def download(self, array: Array) -> NDArray[Any]:
        """Copy from the device, waiting for pending computations. On a CPU the result may share
        the array's memory.
        """

    @abstractmethod
    def begin_download(self, array: Array) -> Callable[[], NDArray[Any]]:
        """Begin to copy from the device, without waiting.

        The array may be written to or dropped afterwards: that waits for the copy.

        Returns:
            A function to call once, which waits for the copy and returns it.
        """

    @abstractmethod
    def free_memory(self) -> int:
        """Return the free bytes of the device's memory."""

    @abstractmethod
    def describe(self) -> Description:
        """Describe this engine and why it was chosen."""

    @abstractmethod
    def close(self) -> None:
        """Free the device; a closed engine cannot run graphs."""
