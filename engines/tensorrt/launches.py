"""Launches the executables of one set of engines: shapes, addresses, scratch memory, CUDA graphs.

In addition to the memory described in :mod:`rbvsr_deploy.engines.cuda.buffers`, there is one block
of scratch memory per stream, shared by the graphs of that stream because they run one after the
other. A step is captured into one CUDA graph for each set of places that its states come back to;
its small inputs are copied to places of their own.
"""

from __future__ import annotations

import logging
from collections import Counter
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
from rbvsr_deploy.graphs import GRAPHS

__all__ = ["Launches", "frames_of"]

logger = logging.getLogger(__name__)

_CAPTURED = ("backward", "forward")
_COPIED = ("frame", "flow")
"""Inputs of captured graphs that are copied to a place of their own: they come from anywhere, and
are a sixteenth of a state. States stay where they are: the runtime reuses a few places."""

_MOST_GRAPHS = 64
"""CUDA graphs to keep per step; the runtime needs 12, one for each place of a state."""
_MOST_REFUSALS = 6
"""Attempts to capture a step before giving up. After each, twice as many launches pass before the
next one: TensorRT-RTX refuses while it compiles kernels."""


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
    addresses: dict[str, int] = field(default_factory=dict)
    """Addresses at the last launch that was not captured."""
    places: dict[str, DeviceArray] = field(default_factory=dict)
    """Places of inputs and outputs that are copied, with these shapes."""
    captured: dict[tuple[int, ...], int | None] = field(default_factory=dict)
    """CUDA graph by the addresses it was captured with, with these shapes; ``None`` after the first
    launch with these addresses."""
    scratch_loan: Loan | None = None
    """The scratch memory that the CUDA graphs were captured with."""
    launched: int = 0
    """Launches with these shapes."""
    refusals: int = 0
    """Attempts to capture that failed."""
    retry: int = 0
    """Number of the launch from which on to try again."""


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
        self.counts: Counter[str] = Counter()
        """Numbers of CUDA graphs captured, of attempts refused, and of launches of each kind."""
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
        for graph in self._network.graphs:
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
        try:
            self._queues.finish_all()
        except EngineError:
            # It may report an earlier launch, whose error was raised where its result was waited
            # for, instead of waiting.
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
            loaded.captured.clear()
            loaded.places.clear()
            loaded.scratch_loan = None
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
        limits, inputs = self._limits(graph), GRAPHS[graph].inputs
        frames = frames_of(graph, shapes[inputs[0].name][0])
        return frames <= self.candidate.engine_set.profile.batch and all(
            least <= size <= most
            for item in inputs
            for name, least, size, most in zip(
                item.shape,
                limits[item.name][0],
                shapes[item.name],
                limits[item.name][2],
                strict=True,
            )
            if name != "N"
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
        self._set_shapes(loaded, {name: array.shape for name, array in inputs.items()})
        arrays = {**inputs, **outputs}
        captures = graph in _CAPTURED and self._captures and loaded.refusals < _MOST_REFUSALS
        scratch = self._scratch_for(loaded)
        places = {
            name: array
            if array.address % ALIGNMENT == 0 and not (captures and name in _COPIED)
            else self._own_place(loaded, name, array, keep=captures)
            for name, array in arrays.items()
        }
        captures = captures and self._captures  # not after a shortage of memory just now
        handle = self._captured(graph, loaded, places, scratch) if captures else None

        def launch(stream: int) -> None:
            if handle is not None:
                self._driver.launch(handle, stream)
            else:
                self._bind(loaded, places, scratch)
                loaded.executable.enqueue(stream)

        self.counts["launched" if handle is None else "replayed"] += 1
        self._submit(loaded.queue, launch, inputs, outputs, places=places, scratch=scratch)
        loaded.launched += 1

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

    def _set_shapes(self, loaded: _Loaded, shapes: dict[str, tuple[int, ...]]) -> None:
        """Set the shapes of inputs, if they are not those of the last launch."""
        if loaded.shapes == shapes:
            return
        self._forget_graphs(loaded)
        loaded.places.clear()
        loaded.addresses.clear()  # TensorRT divides the scratch memory by the shapes
        loaded.shapes = {}
        for name, shape in shapes.items():
            loaded.executable.set_shape(name, shape)
        loaded.scratch = loaded.executable.scratch_bytes()
        loaded.shapes = shapes
        loaded.launched = loaded.retry = 0

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
        self, loaded: _Loaded, places: Mapping[str, DeviceArray], scratch: Loan | None
    ) -> None:
        """Set the addresses that differ from those of the last launch."""
        addresses = {name: place.address for name, place in places.items()}
        if scratch is not None and loaded.addresses.get("") != scratch.block.address:
            loaded.addresses.pop("", None)
            loaded.executable.set_scratch(scratch.block.address, scratch.block.size)
            loaded.addresses[""] = scratch.block.address
        for name, address in addresses.items():
            if loaded.addresses.get(name) != address:
                loaded.addresses.pop(name, None)
                loaded.executable.set_address(name, address)
                loaded.addresses[name] = address

    def _own_place(
        self, loaded: _Loaded, name: str, array: DeviceArray, *, keep: bool
    ) -> DeviceArray:
        """Return an aligned place for an array; the same one at every launch if it is kept."""
        place = loaded.places.get(name)
        if place is None or not keep:
            place = DeviceArray(array.shape, array.dtype, self._pool.lend(array.nbytes))
            if keep:
                loaded.places[name] = place
        return place

    def _captured(
        self,
        graph: str,
        loaded: _Loaded,
        places: Mapping[str, DeviceArray],
        scratch: Loan | None,
    ) -> int | None:
        """Return the CUDA graph of a launch with these places, from its second launch on; ``None``
        if there is none, or not yet.
        """
        if loaded.scratch_loan is not scratch:
            self._forget_graphs(loaded)
            loaded.scratch_loan = scratch
        key = tuple(place.address for place in places.values())
        handle = loaded.captured.get(key)
        if handle is not None:
            return handle
        if len(loaded.captured) >= _MOST_GRAPHS:
            self._make_room(loaded)
        # The first launch with new shapes includes work in TensorRT that cannot be captured.
        if key in loaded.captured and loaded.launched >= max(1, loaded.retry):
            handle = self._capture(graph, loaded, places, scratch)
        loaded.captured[key] = handle
        return handle

    def _capture(
        self,
        graph: str,
        loaded: _Loaded,
        places: Mapping[str, DeviceArray],
        scratch: Loan | None,
    ) -> int | None:
        """Capture a launch into a CUDA graph; after a failure return ``None``, and try again only
        after some launches.
        """
        stream = loaded.queue.stream
        try:
            self._bind(loaded, places, scratch)
            if not loaded.executable.is_capturable(stream):
                raise EngineError("TensorRT does not support it for the next launch")
            self._driver.begin_capture(stream)
            try:
                loaded.executable.enqueue(stream)
            except BaseException:
                with suppress(EngineError):
                    self._driver.destroy_graph(self._driver.end_capture(stream))
                raise
            handle = self._driver.end_capture(stream)
        except EngineError as error:
            loaded.refusals += 1
            loaded.retry = loaded.launched + 2**loaded.refusals
            self.counts["refused"] += 1
            if loaded.refusals in (1, _MOST_REFUSALS):
                logger.info(
                    "graph '%s' is not captured into a CUDA graph%s: %s",
                    graph,
                    " yet" if loaded.refusals == 1 else f" after {loaded.refusals} attempts",
                    error,
                )
            return None
        self._graphs.append(handle)
        self.counts["captured"] += 1
        return handle

    def _make_room(self, loaded: _Loaded) -> None:
        """Forget the addresses of single launches; if there are only CUDA graphs, those."""
        graphs = {key: handle for key, handle in loaded.captured.items() if handle is not None}
        if len(graphs) == len(loaded.captured):
            self._forget_graphs(loaded)
        else:
            loaded.captured = dict(graphs)

    def _forget_graphs(self, loaded: _Loaded) -> None:
        """Destroy the CUDA graphs of a step."""
        handles = [handle for handle in loaded.captured.values() if handle is not None]
        if handles:
            self._queues.finish_all()
        loaded.captured.clear()
        for handle in handles:
            self._driver.destroy_graph(handle)
            self._graphs.remove(handle)
