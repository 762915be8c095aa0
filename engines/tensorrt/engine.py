"""The device runtime: TensorRT's engines with everything in the GPU's memory.

Graphs, uploads and downloads are given to streams and the host goes on at once; what waits for what
follows from the arrays (:mod:`rbvsr_deploy.engines.cuda.queues`). The host waits only where values
are asked for, and where it is so far ahead that the pinned memory for uploads is used up.

Who owns which memory is said in :mod:`rbvsr_deploy.engines.cuda.buffers` and
:mod:`rbvsr_deploy.engines.tensorrt.launches`.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines.base import Array, Description, Engine, Network
from rbvsr_deploy.engines.cuda.buffers import DeviceArray, DevicePool, PinnedPool, host_array
from rbvsr_deploy.engines.cuda.driver import CudaDriver
from rbvsr_deploy.engines.cuda.queues import Queue, Queues
from rbvsr_deploy.engines.tensorrt.base import Plans, Runtime
from rbvsr_deploy.engines.tensorrt.launches import Launches
from rbvsr_deploy.errors import DeviceMemoryError, EngineError, first_line
from rbvsr_deploy.graphs import GRAPHS, graph_names

__all__ = ["TensorRTEngine"]

logger = logging.getLogger(__name__)

# The two branches do not depend on each other. Pictures are made while the forward branch goes on,
# which needs the next flows: these must not stand in line behind the pictures.
_QUEUE_OF = {
    "ingest": "frames",
    "clean": "frames",
    "flow": "frames",
    "backward": "backward",
    "forward": "forward",
    "reconstruct": "pictures",
    "emit": "pictures",
}

_UPLOADS, _RESULTS = 4, 8
"""Pinned blocks of one size: on their way to the GPU; held by results, beyond which results are
copied to plain memory."""


class TensorRTEngine(Engine):
    """An :class:`~rbvsr_deploy.engines.base.Engine` on TensorRT. Calls may come from any thread,
    from one at a time.

    Args:
        network: what the graphs are of.
        plans: where compiled engines come from.
        runtime: runs them; belongs to the engine from now on.
        driver: of the GPU.
        model: file name of the bundle.
        weights: SHA-256 of the bundle.
        reason: why TensorRT was taken, as a clause.
        size: H and W of the frames that are to come; if ``None``, compiled engines are looked for
            when the first come.
        batch: frames per run of the graphs without recurrence, at most.

    Raises:
        EngineError: none of the compiled engines runs here.
    """

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
        self._has_runtime = True
        # Arrays that are being downloaded: as long as the last two are held, later ones get other
        # memory, and computing them does not wait for the copies.
        self._leaving: deque[DeviceArray] = deque(maxlen=2)
        self._queues = Queues(driver)
        self._device = DevicePool(driver, self._queues, on_shortage=self._let_go)
        self._pinned = PinnedPool(driver, self._queues)
        self._queue: dict[str, Queue] = {}
        self._launches = Launches(network, driver, self._queues, pool=self._device)
        try:
            with driver.current():
                self._gpu = driver.gpu()
                for name in ("upload", *dict.fromkeys(_QUEUE_OF.values()), "download"):
                    self._queue[name] = self._queues.open()
                if size is not None:
                    self._load(*size, batch=batch)
        except BaseException:
            self.close()
            raise

    def run(
        self, graph: str, *, into: Sequence[Array] | None = None, **arrays: Array
    ) -> tuple[Array, ...]:
        if graph not in graph_names(has_cleaning=self.network.has_cleaning):
            raise EngineError(f"there is no graph '{graph}' in '{self._model}'")
        spec = GRAPHS[graph]
        with self._entered():
            shapes = {item.name: arrays[item.name].shape for item in spec.inputs}
            self._fit(graph, shapes)
            try:
                outputs = self._outputs(graph, shapes) if into is None else tuple(into)
                named = dict(zip((item.name for item in spec.outputs), outputs, strict=True))
                self._launches.run(graph, arrays, named)
            except EngineError as error:
                kind = DeviceMemoryError if isinstance(error, DeviceMemoryError) else EngineError
                where = f"cuda:{self._driver.index}"
                raise kind(f"graph '{graph}' failed on {where}: {first_line(error)}") from error
            return outputs

    def empty(self, shape: tuple[int, ...], *, dtype: str) -> Array:
        with self._entered():
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

    def rows(self, array: Array, top: int, bottom: int) -> Array:
        n, channels, height, width = array.shape
        row = width * array.dtype.itemsize
        with self._entered():
            some = self._empty((n, channels, bottom - top, width), array.dtype)
            self._queues.submit(
                self._queue["pictures"],
                lambda stream: self._driver.copy_rows(
                    some.address,
                    (bottom - top) * row,
                    array.address + top * row,
                    height * row,
                    width=(bottom - top) * row,
                    count=n * channels,
                    stream=stream,
                ),
                reads=[array.span],
                writes=[some.span],
            )
            return some

    def upload(self, array: NDArray[Any]) -> Array:
        with self._entered():
            loan = self._pinned.lend(array.nbytes, most=_UPLOADS)
            np.copyto(host_array(loan, array.shape, array.dtype), array)
            there = self._empty(array.shape, array.dtype)
            block = loan.block
            self._queues.submit(
                self._queue["upload"],
                lambda stream: self._driver.upload(
                    there.address, block.address, there.nbytes, stream
                ),
                reads=[(block, 0, there.nbytes)],
                writes=[there.span],
            )
            return there

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
            self._leaving.append(array)

        def finish() -> NDArray[Any]:
            if not mark.is_past:
                with self._entered():
                    self._queues.finish(mark)
            with suppress(ValueError):
                self._leaving.remove(array)
            values = host_array(loan, array.shape, array.dtype)
            return values.copy() if self._pinned.count(size) > _RESULTS else values

        return finish

    def free_memory(self) -> int:
        with self._entered():
            return self._driver.free_memory() + self._device.idle_bytes

    def describe(self) -> Description:
        reason = self._reason
        if self._launches.candidate is not None:
            reason += f", engines {self._launches.candidate.reason}"
        return Description(
            engine=self._runtime.flavour,
            version=self._runtime.version,
            device=f"cuda:{self._driver.index} {self._gpu.name}",
            precision=self.network.types,
            model=self._model,
            weights=self._weights,
            reason=reason,
        )

    def close(self) -> None:
        """Free everything, after what is in flight is done. Results stay, and so do their pinned
        blocks until they are garbage. Closing again goes on where it was interrupted.
        """
        self._closed = True
        if self._freed:
            return
        self._leaving.clear()
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
        """The GPU is the present thread's, and the engine is open."""
        if self._closed:
            raise EngineError(f"the engine of '{self._model}' is closed: open another")
        with self._driver.current():
            yield

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        size = math.prod(shape) * dtype.itemsize
        return DeviceArray(tuple(shape), dtype, self._device.lend(size))

    def _outputs(
        self, graph: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[DeviceArray, ...]:
        spec = GRAPHS[graph]
        of_outputs = spec.output_shapes(shapes[spec.inputs[0].name], channels=self.network.channels)
        dtypes = (item.numpy_dtype(self.network.precision) for item in spec.outputs)
        return tuple(
            self._empty(shape, np.dtype(dtype))
            for shape, dtype in zip(of_outputs, dtypes, strict=True)
        )

    def _let_go(self) -> None:
        self._leaving.clear()
        self._launches.let_go()

    def _fit(self, graph: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Load other engines where those that are loaded do not take such inputs."""
        if self._launches.covers(graph, shapes):
            return
        first = GRAPHS[graph].inputs[0]
        sizes = dict(zip(first.shape, shapes[first.name], strict=True))
        if "4H" in sizes:
            sizes |= {"H": sizes["4H"] // 4, "W": sizes["4W"] // 4}
        height, width = sizes["H"], sizes["W"]
        if _QUEUE_OF[graph] == "pictures" and width == self._size[1]:
            height = max(height, self._size[0])  # a band of the frames
        self._load(height, width, batch=max(self._batch, sizes["N"]))

    def _load(self, height: int, width: int, *, batch: int) -> None:
        """Load the first engines that fit frames of a size."""
        self._launches.unload()
        self._device.release()
        self._size = height, width
        queue_of = {graph: self._queue[name] for graph, name in _QUEUE_OF.items()}
        refused: EngineError | None = None
        for candidate in self._plans.candidates(height, width, batch=batch):
            if not candidate.engine_set.profile.covers(height, width, batch=batch):
                continue
            try:
                self._launches.load(self._runtime, candidate, queue_of=queue_of)
            except DeviceMemoryError:
                raise  # others are no smaller
            except EngineError as error:
                logger.warning("engines %s are not used: %s", candidate.reason, first_line(error))
                refused = error
                self._launches.unload()
            else:
                return
        raise EngineError(
            f"there are no TensorRT engines for {width}x{height}, {batch} at once, that run here"
            + (f" (the last was refused: {first_line(refused)})" if refused else "")
            + ": build some with rbvsr-build"
        )
