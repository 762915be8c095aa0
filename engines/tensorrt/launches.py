"""Launches the executables of one set of engines: shapes, addresses, scratch memory, CUDA graphs.

In addition to the memory described in :mod:`rbvsr_deploy.engines.cuda.buffers`, there is one block
of scratch memory per stream, shared by the graphs of that stream because they run one after the
other. Each captured graph owns its inputs and outputs and the scratch memory it was captured with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from rbvsr_deploy.bundle.engine_sets import Shapes
from rbvsr_deploy.engines.base import Network
from rbvsr_deploy.engines.cuda.buffers import ALIGNMENT, DeviceArray, DevicePool, Loan
from rbvsr_deploy.engines.cuda.driver import CudaDriver
from rbvsr_deploy.engines.cuda.queues import Queue, Queues, free_each
from rbvsr_deploy.engines.tensorrt.base import Candidate, Executable, Runtime
from rbvsr_deploy.errors import EngineError
from rbvsr_deploy.graphs import GRAPHS, graph_names

__all__ = ["Launches", "frames_of"]

logger = logging.getLogger(__name__)

_CAPTURED = ("backward", "forward")
_MOST_CAPTURED_STATE = 16 * 2**20
"""Size of a state, in bytes, above which steps are launched one by one.

A step of the published model is about 90 launches of 3 microseconds, 270 in total. Each of its 41
convolutions reads and writes a map of the state's size: 82 states of traffic. So the GPU, not the
launching, is the bottleneck once 82 x state / bandwidth > 270 microseconds: from 14 MB on (480x270
in float16) with the 4.3 TB/s of an H200, and earlier with less bandwidth. A captured step has its
own inputs and outputs, and copying the state in and out costs four states of traffic, 5 % of the
step. This pays off only for smaller states.
"""


def frames_of(graph: str, count: int) -> int:
    """Return the batch that a number of inputs belongs to: ``flow`` has two pairs for each frame,
    and the recurrent steps take one frame at a time.
    """
    return {"flow": -(-count // 2), "backward": 1, "forward": 1}.get(graph, count)


@dataclass
class _Loaded:
    """The executable of a graph and its state."""

    executable: Executable
    queue: Queue
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of the inputs at the last launch."""
    scratch: int = 0
    """Scratch memory for these shapes, in bytes."""
    captured: _Captured | None = None
    """A captured launch with these shapes."""


@dataclass(frozen=True)
class _Captured:
    """A launch captured as a CUDA graph."""

    graph: int
    places: Mapping[str, DeviceArray]
    """Its own inputs and outputs by name."""
    scratch: Loan | None


class Launches:
    """Loads and launches the executables of one set of engines at a time.

    Args:
        network: that the graphs belong to.
        driver: of the GPU.
        queues: of the GPU.
        pool: of the GPU's memory.
    """

    def __init__(
        self,
        network: Network,
        driver: CudaDriver,
        queues: Queues,
        *,
        pool: DevicePool,
    ) -> None:
        self._network = network
        self._driver = driver
        self._queues = queues
        self._pool = pool
        self._loaded: dict[str, _Loaded] = {}
        self._executables: list[Executable] = []
        self._graphs: list[int] = []
        self._scratch: dict[Queue, Loan] = {}
        self._captures = True
        self.candidate: Candidate | None = None
        """The loaded set; ``None`` if no set is completely loaded."""

    def load(
        self, runtime: Runtime, candidate: Candidate, *, queue_of: Mapping[str, Queue]
    ) -> None:
        """Deserialise a set; call :meth:`unload` first to free the previous one.

        Args:
            runtime: the TensorRT that deserialises it.
            candidate: the set.
            queue_of: the queue to submit launches to, by graph.

        Raises:
            EngineError: an engine is missing or does not load; the set is then not loaded.
        """
        for graph in graph_names(has_cleaning=self._network.has_cleaning):
            plan = candidate.plans.get(graph)
            if plan is None:
                raise EngineError(f"the engine for graph '{graph}' is missing")
            executable = runtime.load(graph, plan)
            self._executables.append(executable)
            self._loaded[graph] = _Loaded(executable, queue_of[graph])
        self.candidate = candidate

    def unload(self) -> None:
        """Wait for operations in flight, then free the executables and everything they use."""
        self.candidate = None
        # An error of an earlier launch was already raised where its result was waited for.
        with suppress(EngineError):
            self._queues.finish_all()
        self._loaded.clear()
        self._scratch.clear()
        free_each(self._graphs, self._driver.destroy_graph)
        free_each(self._executables, lambda executable: executable.close())

    def free_optional(self) -> None:
        """Free the memory that is not required.

        Captured graphs are freed and no more are captured, because they take extra memory.
        """
        self._captures = False
        self._queues.finish_all()
        for loaded in self._loaded.values():
            loaded.captured = None
        self._scratch.clear()
        free_each(self._graphs, self._driver.destroy_graph)

    def covers(self, graph: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether the loaded set accepts inputs of these shapes, as many at a time as
        :meth:`most_frames` says.
        """
        if self.candidate is None:
            return False
        if self._loaded[graph].shapes == shapes:
            return True
        limits = self._limits(graph)
        frames = frames_of(graph, shapes[GRAPHS[graph].inputs[0].name][0])
        return frames <= self.candidate.engine_set.profile.batch and all(
            least <= size <= most
            for name, shape in shapes.items()
            for least, size, most in zip(
                limits[name][0][1:], shape[1:], limits[name][2][1:], strict=True
            )
        )

    def most_frames(self, graph: str) -> int:
        """Return how many frames the loaded set takes at once."""
        return self._limits(graph)[GRAPHS[graph].inputs[0].name][2][0]

    def most_rows(self, graph: str) -> int:
        """Return how many rows of (N, C, H, W) the loaded set takes at once."""
        return self._limits(graph)[GRAPHS[graph].inputs[0].name][2][2]

    def _limits(self, graph: str) -> dict[str, Shapes]:
        assert self.candidate is not None
        return self.candidate.engine_set.profile.shapes(
            GRAPHS[graph],
            channels=self._network.channels,
            head_channels=self._network.head_channels,
        )

    def run(
        self,
        graph: str,
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray],
    ) -> None:
        """Submit a graph to its queue.

        Raises:
            DeviceMemoryError: there is not enough memory for scratch memory.
            EngineError: the launch failed.
        """
        loaded = self._loaded[graph]
        unchanged = self._set_shapes(loaded, {name: array.shape for name, array in inputs.items()})
        # The first launch with new shapes includes work in TensorRT that cannot be captured.
        if unchanged and loaded.captured is None and self._should_capture(graph, outputs):
            loaded.captured = self._capture(graph, loaded, {**inputs, **outputs})
        captured = loaded.captured
        if captured is not None:
            self._submit(
                loaded.queue,
                lambda stream: self._driver.launch(captured.graph, stream),
                inputs,
                outputs,
                places=captured.places,
                scratch=captured.scratch,
            )
            return
        scratch = self._scratch_for(loaded)
        places = {
            name: array if array.address % ALIGNMENT == 0 else self._like(array)
            for name, array in {**inputs, **outputs}.items()
        }

        def launch(stream: int) -> None:
            self._bind(loaded.executable, places, scratch)
            loaded.executable.enqueue(stream)

        self._submit(loaded.queue, launch, inputs, outputs, places=places, scratch=scratch)

    def _submit(
        self,
        queue: Queue,
        launch: Callable[[int], None],
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray],
        *,
        places: Mapping[str, DeviceArray],
        scratch: Loan | None,
    ) -> None:
        """Submit a launch, and copy inputs and outputs whose place differs from their array."""
        moved = [(array, places[name]) for name, array in inputs.items()]
        moved = [(array, place) for array, place in moved if array is not place]

        def work(stream: int) -> None:
            for array, place in moved:
                self._driver.copy(place.address, array.address, array.nbytes, stream)
            launch(stream)

        writes = [place.span for _, place in moved]
        writes += [places[name].span for name in outputs]
        if scratch is not None:
            writes.append((scratch.block, 0, scratch.block.size))
        self._queues.submit(
            queue, work, reads=[array.span for array in inputs.values()], writes=writes
        )
        for name, array in outputs.items():
            self._copy_out(queue, places[name], array)

    def _copy_out(self, queue: Queue, place: DeviceArray, array: DeviceArray) -> None:
        if place is not array:
            self._queues.submit(
                queue,
                lambda stream: self._driver.copy(
                    array.address, place.address, array.nbytes, stream
                ),
                reads=[place.span],
                writes=[array.span],
            )

    def _set_shapes(self, loaded: _Loaded, shapes: dict[str, tuple[int, ...]]) -> bool:
        """Set the shapes of inputs; return whether they are those of the last launch."""
        if loaded.shapes == shapes:
            return True
        if loaded.captured is not None:
            self._queues.finish_all()
            self._graphs.remove(loaded.captured.graph)
            self._driver.destroy_graph(loaded.captured.graph)
            loaded.captured = None
        loaded.shapes = {}
        for name, shape in shapes.items():
            loaded.executable.set_shape(name, shape)
        loaded.scratch = loaded.executable.scratch_bytes()
        loaded.shapes = shapes
        return False

    def _scratch_for(self, loaded: _Loaded) -> Loan | None:
        if loaded.scratch == 0:
            return None
        loan = self._scratch.get(loaded.queue)
        if loan is None or loan.block.size < loaded.scratch:
            loan = None
            self._scratch.pop(loaded.queue, None)
            loan = self._scratch[loaded.queue] = self._pool.lend(loaded.scratch)
        return loan

    def _bind(
        self, executable: Executable, places: Mapping[str, DeviceArray], scratch: Loan | None
    ) -> None:
        for name, place in places.items():
            executable.set_address(name, place.address)
        if scratch is not None:
            executable.set_scratch(scratch.block.address, scratch.block.size)

    def _like(self, array: DeviceArray) -> DeviceArray:
        return DeviceArray(array.shape, array.dtype, self._pool.lend(array.nbytes))

    def _should_capture(self, graph: str, outputs: Mapping[str, DeviceArray]) -> bool:
        return (
            self._captures
            and graph in _CAPTURED
            and all(array.nbytes <= _MOST_CAPTURED_STATE for array in outputs.values())
        )

    def _capture(
        self, graph: str, loaded: _Loaded, arrays: Mapping[str, DeviceArray]
    ) -> _Captured | None:
        """Capture a launch with its own places; on failure return ``None`` and stop capturing."""
        stream = loaded.queue.stream
        try:
            scratch = self._scratch_for(loaded)
            places = {name: self._like(array) for name, array in arrays.items()}
            self._bind(loaded.executable, places, scratch)
            if not loaded.executable.is_capturable(stream):
                raise EngineError("TensorRT does not support it")
            self._driver.begin_capture(stream)
            try:
                loaded.executable.enqueue(stream)
            except BaseException:
                with suppress(EngineError):
                    self._driver.destroy_graph(self._driver.end_capture(stream))
                raise
            handle = self._driver.end_capture(stream)
        except EngineError as error:
            logger.info("graph '%s' is not captured into a CUDA graph: %s", graph, error)
            self._captures = False
            return None
        self._graphs.append(handle)
        return _Captured(handle, places, scratch)
