"""Runs TensorRT engines with all data in GPU memory.

Graphs, uploads and downloads are submitted to streams and the host continues immediately; the
dependencies between them follow from the arrays (:mod:`rbvsr_deploy.engines.cuda.queues`). The host
waits only for requested values, and when the pinned memory for uploads is used up.

The ownership of memory is described in :mod:`rbvsr_deploy.engines.cuda.buffers` and
:mod:`rbvsr_deploy.engines.tensorrt.launches`.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines.base import Array, Description, Engine, Network
from rbvsr_deploy.engines.cuda.buffers import (
    DeviceArray,
    DevicePool,
    Loan,
    PinnedPool,
    host_array,
)
from rbvsr_deploy.engines.cuda.driver import CudaDriver
from rbvsr_deploy.engines.cuda.queues import Queue, Queues
from rbvsr_deploy.engines.tensorrt.base import Plans, Runtime, states_are_channels_last
from rbvsr_deploy.engines.tensorrt.launches import Launches, frames_of
from rbvsr_deploy.errors import DeviceMemoryError, EngineError, first_line
from rbvsr_deploy.graphs import GRAPHS, TensorSpec

__all__ = ["TensorRTEngine"]

logger = logging.getLogger(__name__)

# The two branches are independent of each other. Outputs are computed while the forward branch
# continues. That branch needs the next flows, which must not queue up after the outputs.
_QUEUE_OF = {
    "ingest": "frames",
    "clean": "frames",
    "flow": "frames",
    "backward": "backward",
    "forward": "forward",
    "reconstruct": "outputs",
    "emit": "outputs",
    "mix": "frames",
    "blend": "outputs",
    "resize": "outputs",
}

_UPLOADS, _RESULTS = 4, 8
"""Maximum numbers of pinned blocks of one size: for uploads, and for results that the caller holds;
further results are copied to pageable memory."""


class TensorRTEngine(Engine):
    """An :class:`~rbvsr_deploy.engines.base.Engine` on TensorRT.

    Any thread may call it, but only one at a time.

    Args:
        network: that the graphs belong to.
        plans: the source of compiled engines.
        runtime: runs them; this engine takes ownership of it.
        driver: of the GPU.
        model: file name of the bundle.
        weights: SHA-256 of the bundle.
        reason: why TensorRT was chosen, as a clause.
        size: H and W of the frames to expect; if ``None``, compiled engines are chosen when the
            first frames arrive.
        batch: maximum number of frames per run of the graphs without recurrence.

    Raises:
        EngineError: none of the compiled engines runs on this machine.
    """

    asynchronous = True

    def __init__(
        self,
        network: Network,
        plans: Plans,
        runtime: Runtime,
        driver: CudaDriver,
        *,
        model: str,
        weights: str,
        reason: str,
        size: tuple[int, int] | None,
        batch: int = 4,
    ) -> None:
        self.network = network
        self._plans, self._runtime, self._driver = plans, runtime, driver
        self._model, self._weights, self._reason = model, weights, reason
        self._size, self._batch = size or (1, 1), batch
        self._closed = self._freed = False
        self._thread = threading.local()
        self._has_runtime = True
        # Arrays being downloaded. Holding the last two makes later arrays use other memory, so that
        # computing them does not wait for the copies.
        self._downloading: deque[DeviceArray] = deque(maxlen=2)
        self._queues = Queues(driver)
        self._device = DevicePool(driver, self._queues, on_shortage=self._free_optional)
        self._pinned = PinnedPool(driver, self._queues)
        self._queue: dict[str, Queue] = {}
        self._launches = Launches(network, driver, self._queues, pool=self._device)
        try:
            with driver.current():
                self._gpu = driver.gpu()
                for name in ("upload", *dict.fromkeys(_QUEUE_OF.values())):
                    self._queue[name] = self._queues.open(urgent=name in ("backward", "forward"))
                # The host waits for single results, and each branch for copies of its own states.
                for name in ("download", "states"):
                    self._queue[name] = self._queues.open(every=1)
                if size is not None:
                    self._load(*size, batch=batch)
        except BaseException:
            self.close()
            raise

    def run(
        self, graph: str, *, into: Sequence[Array] | None = None, **arrays: Array
    ) -> tuple[Array, ...]:
        if graph not in self.network.graphs:
            raise EngineError(f"there is no graph '{graph}' in '{self._model}'")
        spec = GRAPHS[graph]
        with self._entered():
            shapes = {item.name: arrays[item.name].shape for item in spec.inputs}
            self._fit(graph, shapes)
            try:
                outputs = self._outputs(graph, shapes) if into is None else tuple(into)
                named = dict(zip((item.name for item in spec.outputs), outputs, strict=True))
                count, most = shapes[spec.inputs[0].name][0], self._launches.most_frames(graph)
                if count <= most:
                    self._launches.run(graph, arrays, named)
                else:
                    for start in range(0, count, most):
                        stop = min(start + most, count)
                        self._launches.run(
                            graph,
                            _part(spec.inputs, arrays, start, stop),
                            _part(spec.outputs, named, start, stop),
                        )
            except EngineError as error:
                kind = DeviceMemoryError if isinstance(error, DeviceMemoryError) else EngineError
                where = f"cuda:{self._driver.index}"
                raise kind(f"graph '{graph}' failed on {where}: {first_line(error)}") from error
            return outputs

    def empty(self, shape: tuple[int, ...], *, dtype: str) -> Array:
        self._check_open()
        return self._empty(shape, np.dtype(dtype))

    def zeros(self, shape: tuple[int, ...], *, dtype: str) -> Array:
        with self._entered():
            array = self._empty(shape, np.dtype(dtype))
            self._queues.submit(
                self._queue["frames"],
                lambda stream: self._driver.fill(array.address, 0, array.nbytes, stream),
                writes=[array.span],
            )
            return array

    def slice(self, array: Array, start: int, stop: int) -> Array:
        return array.slice(start, stop)

    def held(self) -> AbstractContextManager[None]:
        return self._entered()

    def copy(self, array: Array, *, into: Array, graph: str | None = None) -> None:
        with self._entered():
            self._queues.submit(
                self._queue["states" if graph is None else _QUEUE_OF[graph]],
                lambda stream: self._driver.copy(into.address, array.address, array.nbytes, stream),
                reads=[array.span],
                writes=[into.span],
            )

    def rows(self, array: Array, top: int, bottom: int) -> Array:
        n, channels, height, width = array.shape
        planes, row = n * channels, width * array.dtype.itemsize
        if self._is_channels_last(array.shape, array.dtype):
            planes, row = n, channels * row
        with self._entered():
            copy = self._empty((n, channels, bottom - top, width), array.dtype)
            self._queues.submit(
                self._queue["outputs"],
                lambda stream: self._driver.copy_rows(
                    copy.address,
                    (bottom - top) * row,
                    array.address + top * row,
                    height * row,
                    width=(bottom - top) * row,
                    count=planes,
                    stream=stream,
                ),
                reads=[array.span],
                writes=[copy.span],
            )
            return copy

    def join(self, arrays: Sequence[Array]) -> Array:
        with self._entered():
            count = sum(array.shape[0] for array in arrays)
            joined = self._empty((count, *arrays[0].shape[1:]), arrays[0].dtype)

            def copy(stream: int) -> None:
                address = joined.address
                for array in arrays:
                    self._driver.copy(address, array.address, array.nbytes, stream)
                    address += array.nbytes

            self._queues.submit(
                self._queue["frames"],
                copy,
                reads=[array.span for array in arrays],
                writes=[joined.span],
            )
            return joined

    def most_at_once(self, height: int, width: int) -> tuple[int, int]:
        with self._entered():
            self._fit("ingest", {"image": (1, height, width, 3)})
            return self._launches.most_frames("ingest"), self._launches.most_rows("reconstruct")

    def upload(self, array: NDArray[Any]) -> Array:
        with self._entered():
            loan = self._pinned.lend(array.nbytes, most=_UPLOADS)
            np.copyto(self._host_array(loan, array.shape, array.dtype), array)
            uploaded = self._empty(array.shape, array.dtype)
            block = loan.block
            self._queues.submit(
                self._queue["upload"],
                lambda stream: self._driver.upload(
                    uploaded.address, block.address, uploaded.nbytes, stream
                ),
                reads=[(block, 0, uploaded.nbytes)],
                writes=[uploaded.span],
            )
            return uploaded

    def download(self, array: Array) -> NDArray[Any]:
        return self.begin_download(array)()

    def begin_download(self, array: Array) -> Callable[[], NDArray[Any]]:
        size = array.nbytes
        with self._entered():
            loan = self._pinned.lend(size, most=_RESULTS)
            block = loan.block
            mark = self._queues.submit(
                self._queue["download"],
                lambda stream: self._driver.download(block.address, array.address, size, stream),
                reads=[array.span],
                writes=[(block, 0, size)],
            )
            self._downloading.append(array)

        def finish() -> NDArray[Any]:
            if not mark.is_past:
                with self._entered():
                    self._queues.finish(mark)
            with suppress(ValueError):
                self._downloading.remove(array)
            values = self._host_array(loan, array.shape, array.dtype)
            return values.copy() if self._pinned.count(size) > _RESULTS else values

        return finish

    def free_memory(self) -> int:
        with self._entered():
            return self._driver.free_memory() + self._device.idle_bytes

    def describe(self) -> Description:
        reason, precision = self._reason, self.network.types
        if (candidate := self._launches.candidate) is not None:
            reason += f", engines {candidate.reason}"
            if faster := candidate.engine_set.in_float16:
                precision += f" ({', '.join(faster)} in float16)"
        return Description(
            engine=self._runtime.flavour,
            version=self._runtime.version,
            device=f"cuda:{self._driver.index} {self._gpu.name}",
            precision=precision,
            model=self._model,
            weights=self._weights,
            reason=reason,
        )

    def close(self) -> None:
        """Wait for operations in flight, then free everything except results.

        Pinned blocks of results are freed when the results are garbage collected. If closing was
        interrupted, calling it again resumes.
        """
        self._closed = True
        if self._freed:
            return
        self._downloading.clear()
        with self._driver.current():
            self._launches.unload()
            self._close_runtime()
            self._device.close()
            self._pinned.close()
            self._queues.close()
        self._freed = True

    def _close_runtime(self) -> None:
        if self._has_runtime:
            self._has_runtime = False
            try:
                self._runtime.close()
            except EngineError as error:
                logger.warning("%s", first_line(error))

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """Check that the engine is open, and make the GPU current in this thread."""
        self._check_open()
        if getattr(self._thread, "is_inside", False):
            yield
            return
        with self._driver.current():
            self._thread.is_inside = True
            try:
                yield
            finally:
                self._thread.is_inside = False

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"the engine of '{self._model}' is closed: open a new one")

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        size = math.prod(shape) * dtype.itemsize
        return DeviceArray(tuple(shape), dtype, self._device.lend(size))

    def _is_channels_last(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
        """Return whether an array is a state that the engines hold as (N, H, W, C)."""
        network = self.network
        return (
            states_are_channels_last(network.precision, network.channels)
            and len(shape) == 4
            and shape[1] == network.channels
            and dtype == np.float16
        )

    def _host_array(self, loan: Loan, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the content of pinned memory with the contract's shape, (N, C, H, W) for states:
        other engines may continue from them.
        """
        if not self._is_channels_last(shape, dtype):
            return host_array(loan, shape, dtype)
        n, channels, height, width = shape
        return host_array(loan, (n, height, width, channels), dtype).transpose(0, 3, 1, 2)

    def _outputs(
        self, graph: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[DeviceArray, ...]:
        spec = GRAPHS[graph]
        output_shapes = spec.output_shapes(shapes, channels=self.network.channels)
        dtypes = (item.numpy_dtype(self.network.precision) for item in spec.outputs)
        return tuple(
            self._empty(shape, np.dtype(dtype))
            for shape, dtype in zip(output_shapes, dtypes, strict=True)
        )

    def _free_optional(self) -> None:
        self._downloading.clear()
        self._launches.free_optional()

    def _fit(self, graph: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Load other engines if the loaded ones do not accept inputs of these shapes."""
        if self._launches.covers(graph, shapes):
            return
        first = GRAPHS[graph].inputs[0]
        sizes = dict(zip(first.shape, shapes[first.name], strict=True))
        if "4H" in sizes:
            sizes |= {"H": sizes["4H"] // 4, "W": sizes["4W"] // 4}
        height, width = sizes["H"], sizes["W"]
        if _QUEUE_OF[graph] == "outputs" and width == self._size[1]:
            height = max(height, self._size[0])  # a band of the frames
        self._load(height, width, batch=max(self._batch, frames_of(graph, sizes["N"])))

    def _load(self, height: int, width: int, *, batch: int) -> None:
        """Load the first engines that accept frames of a size."""
        self._launches.unload()
        self._device.release()
        self._size = height, width
        queue_of = {graph: self._queue[name] for graph, name in _QUEUE_OF.items()}
        rejected: EngineError | None = None
        for candidate in self._plans.candidates(height, width, batch=batch):
            if not candidate.engine_set.profile.covers(height, width):
                continue
            try:
                self._launches.load(self._runtime, candidate, queue_of=queue_of)
                if candidate.check is not None:
                    candidate.check(self)
            except DeviceMemoryError:
                raise  # other engines are not smaller
            except EngineError as error:
                logger.warning("engines %s are not used: %s", candidate.reason, first_line(error))
                rejected = error
                self._launches.unload()
            else:
                return
        raise EngineError(
            f"no TensorRT engines for {width}x{height} in batches of {batch} run on this machine"
            + (f" (the last ones failed to load: {first_line(rejected)})" if rejected else "")
            + ": build some with rbvsr-build"
        )


def _part(
    items: Sequence[TensorSpec], arrays: Mapping[str, DeviceArray], start: int, stop: int
) -> dict[str, DeviceArray]:
    """Return the arrays of some frames; those that all frames share stay whole."""
    return {
        item.name: arrays[item.name].slice(start, stop)
        if item.shape[0] == "N"
        else arrays[item.name]
        for item in items
    }
