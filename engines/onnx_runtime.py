"""Runs the bundle's graphs with ONNX Runtime: on the CPU, CUDA or any execution provider."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.bundle import Bundle
from rbvsr_deploy.engines.base import Array, Description, Engine, Network
from rbvsr_deploy.engines.memory import failure, free_cuda_memory, free_host_memory
from rbvsr_deploy.engines.placement import DEFAULT_SIZE, place, sizes_of
from rbvsr_deploy.engines.processors import usable_cores
from rbvsr_deploy.engines.providers import Provider, find_providers, import_onnxruntime
from rbvsr_deploy.engines.sessions import open_session
from rbvsr_deploy.errors import (
    DeviceMemoryError,
    EngineError,
    MissingDependencyError,
    first_line,
)
from rbvsr_deploy.graphs import GRAPHS, OPTIONAL
from rbvsr_deploy.signals import on_signal

__all__ = ["OnnxRuntimeEngine", "import_onnxruntime"]

logger = logging.getLogger(__name__)

_MOST_SIZES = 4
"""Sizes for which a graph is kept open: those of a frame and of its bands."""


class OnnxRuntimeEngine(Engine):
    """An :class:`~rbvsr_deploy.engines.base.Engine` on ONNX Runtime. Arrays are NumPy's on the
    host, and ``_CudaArray`` under CUDA; they are read and written in place.

    Args:
        bundle: an opened bundle.
        device: "auto" (CUDA where it works, else the CPU and the plug-ins that are measured to be
            faster), "cpu", "cuda", a plug-in such as "openvino" or "webgpu", or an execution
            provider's own name.
        size: gives H and W of the frames to come, if there are plug-ins to measure.
        beside: why no faster engine was chosen, as a clause, for the description.
        report: called with a line before plug-ins are measured.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        EngineError: the device is not available, or a graph is not what the bundle says.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
        size: Callable[[], tuple[int, int]] | None = None,
        beside: str = "",
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        try:
            self._runtime = import_onnxruntime()
            self._providers, missing = find_providers()
        except ImportError:
            raise MissingDependencyError(
                "onnxruntime", extra="cpu", purpose=f"running '{bundle.path.name}'"
            ) from None
        self._options = self._runtime.RunOptions()
        self._options.log_severity_level = 4  # exceptions report everything
        # The default; without it, ONNX Runtime 1.32 takes 30 µs of every run to find that out.
        self._options.add_run_config_entry("gpu_graph_id", "0")
        self._bundle = bundle
        self.network = Network.of(bundle.manifest)
        # By graph and sizes, the least recently used first.
        self._sessions: dict[tuple[str, tuple[tuple[str, int], ...]], Any] = {}
        # By graph: the most frames it has been given at once.
        self._most: dict[str, int] = {}
        # The block of GPU memory that was downloaded last, and its values: frames are downloaded
        # one by one, and ONNX Runtime downloads whole blocks only.
        self._downloaded: tuple[Any, NDArray[Any]] | None = None
        provider, why = self._choose_provider(device, missing)
        self._reason = "; ".join(part for part in (beside, why) if part)
        graphs = bundle.manifest.graphs
        self._placed = dict.fromkeys(graphs, provider)
        candidates = [p for p in self._providers.values() if p.devices]
        if provider.whole:
            self._place_graphs([provider], forced=True, size=size, report=report)
        elif device == "auto" and provider.on_cpu and candidates:
            self._place_graphs(candidates, forced=False, size=size, report=report)
        self._device = "cpu" if provider.on_cpu else provider.name
        for name, placed in self._placed.items():
            if not placed.whole and name not in OPTIONAL:
                self._session(name, placed, sizes={})
        # CUDA is the one provider whose arrays stay on its device between graphs; others read the
        # host's memory.
        self._on_cuda = provider.name == "cuda"

    def _choose_provider(self, device: str, missing: Mapping[str, str]) -> tuple[Provider, str]:
        """Return the execution provider and the reason for it."""
        offered = self._providers
        if device == "auto":
            if "cuda" not in offered:
                return offered["cpu"], "this ONNX Runtime has no CUDA"
            try:
                self._session("ingest", offered["cuda"], sizes={})
            except EngineError as error:
                logger.warning("CUDA is not used: %s", error)
                return offered["cpu"], "CUDA does not start on this machine"
            return offered["cuda"], "CUDA is available"
        for provider in offered.values():
            if device in (provider.name, provider.execution_provider):
                return provider, f"device '{device}' was requested"
        hint = (
            "pip uninstall onnxruntime && pip install 'rbvsr-deploy[cuda]', or "
            if device == "cuda"
            else ""
        )
        why = f"{missing[device]}; " if device in missing else ""
        raise EngineError(
            f"device '{device}' is not available: {why}this ONNX Runtime provides "
            f"{', '.join(offered)}; {hint}use the CPU",
            parameters=("device",),
        )

    def _place_graphs(
        self,
        candidates: Sequence[Provider],
        *,
        forced: bool,
        size: Callable[[], tuple[int, int]] | None,
        report: Callable[[str], None],
    ) -> None:
        """Give each graph to the provider that is measured to be the fastest.

        Raises:
            EngineError: a single provider was requested and takes no graph.
        """
        placement = place(
            self._bundle,
            cpu=self._providers["cpu"],
            candidates=candidates,
            size=DEFAULT_SIZE if size is None else size(),
            forced=forced,
            report=report,
        )
        self._placed = {graph: self._providers[name] for graph, name in placement.chosen.items()}
        if forced and not any(provider.whole for provider in self._placed.values()):
            reason = next(why for refused in placement.refused.values() for why in refused.values())
            raise EngineError(
                f"device '{candidates[0].name}' runs none of the graphs of "
                f"'{self._bundle.path.name}' (the first one {reason}): use the CPU",
                parameters=("device",),
            )

    def _session(self, graph: str, provider: Provider, *, sizes: Mapping[str, int]) -> Any:
        """Return the session of a graph for some sizes, opened when they first occur."""
        key = graph, tuple(sorted(sizes.items()))
        session = self._sessions.pop(key, None)
        if session is None:
            session = open_session(self._bundle, graph, provider, sizes=sizes)
            others = [other for other in self._sessions if other[0] == graph]
            if len(others) >= _MOST_SIZES:
                del self._sessions[others[0]]
        self._sessions[key] = session
        return session

    def _session_for(self, graph: str, arrays: Mapping[str, Array]) -> Any:
        """Return the session that takes these arrays. A plug-in that cannot open the graph for
        their size loses it to the CPU, with a warning.
        """
        provider = self._placed[graph]
        if provider.fixed:
            try:
                return self._session(graph, provider, sizes=sizes_of(graph, arrays))
            except EngineError as error:
                if not provider.whole:
                    raise
                logger.warning("%s is not used for '%s': %s", provider.name, graph, error)
                self._placed[graph] = self._providers["cpu"]
        return self._session(graph, self._placed[graph], sizes={})

    def _at_once(self, graph: str, count: int) -> int:
        """Return how many of some frames to run at once: all, or one.

        A provider with a session per size gets two per graph and frame size: for a full batch,
        and for one frame. The last frames of a scene, fewer than a batch, are run one by one.
        """
        if not self._placed[graph].fixed:
            return count
        self._most[graph] = most = max(count, self._most.get(graph, 1))
        return count if count == most else 1

    def run(
        self, graph: str, *, into: Sequence[Array] | None = None, **arrays: Array
    ) -> tuple[Array, ...]:
        if graph not in self._placed:
            raise EngineError(
                f"there is no graph '{graph}'; available: {', '.join(self._placed) or 'none'}"
            )
        spec = GRAPHS[graph]
        outputs = tuple(into) if into is not None else self._outputs(graph, arrays)
        batched = [item.name for item in spec.inputs if item.shape[0] == "N"]
        count = arrays[batched[0]].shape[0] if batched else 1
        at_once = self._at_once(graph, count)
        if at_once == count:
            self._run(graph, arrays, outputs)
            return outputs
        for n in range(count):
            some = {name: self.slice(arrays[name], n, n + 1) for name in batched}
            self._run(graph, {**arrays, **some}, [self.slice(a, n, n + 1) for a in outputs])
        return outputs

    def _run(self, graph: str, arrays: Mapping[str, Array], outputs: Sequence[Array]) -> None:
        """Run a graph on frames that fit its session, and write its outputs."""
        self._downloaded = None  # its values may change
        session = self._session_for(graph, arrays)
        binding = session.io_binding()
        try:
            for name, array in arrays.items():
                binding.bind_input(name, *self._place(array))
            # Results of other shapes than these are refused when they are to be written.
            for item, array in zip(GRAPHS[graph].outputs, outputs, strict=True):
                binding.bind_output(item.name, *self._place(array))
            with on_signal(self._end_run):
                session.run_with_iobinding(binding, self._options)
        except Exception as error:
            refused = failure(str(error))
            if refused is DeviceMemoryError and self._placed[graph].fixed:
                # Each session keeps the memory of its largest run.
                self._sessions.clear()
                self._most.clear()
            raise refused(
                f"graph '{graph}' failed on {self._placed[graph].execution_provider}: "
                f"{first_line(error)}"
            ) from error

    def _end_run(self) -> None:
        self._options.terminate = True  # ONNX Runtime looks at it between two nodes

    def _outputs(self, graph: str, arrays: dict[str, Array]) -> tuple[Array, ...]:
        spec = GRAPHS[graph]
        shapes = spec.output_shapes(
            {item.name: arrays[item.name].shape for item in spec.inputs},
            channels=self.network.channels,
        )
        return tuple(
            self.empty(shape, dtype=item.numpy_dtype(self.network.precision))
            for item, shape in zip(spec.outputs, shapes, strict=True)
        )

    def _place(self, array: Array) -> tuple[str, int, Any, list[int], int]:
        """Return device, device index, dtype, shape and address, as a binding needs them."""
        if isinstance(array, _CudaArray):
            return "cuda", 0, array.dtype, list(array.shape), array.address
        return "cpu", 0, array.dtype, list(array.shape), array.ctypes.data

    def empty(self, shape: tuple[int, ...], *, dtype: str) -> Array:
        if not self._on_cuda:
            try:
                return np.empty(shape, dtype)
            except MemoryError as error:
                raise DeviceMemoryError(f"out of memory: {first_line(error)}") from error
        value = self._runtime.OrtValue.ortvalue_from_shape_and_type(
            list(shape), np.dtype(dtype), "cuda"
        )
        return _CudaArray(value, start=0, shape=shape, dtype=np.dtype(dtype))

    def zeros(self, shape: tuple[int, ...], *, dtype: str) -> Array:
        return self.upload(np.zeros(shape, dtype))

    def slice(self, array: Array, start: int, stop: int) -> Array:
        if isinstance(array, _CudaArray):
            shape = (stop - start, *array.shape[1:])
            return _CudaArray(array.value, array.start + start, shape=shape, dtype=array.dtype)
        return array[start:stop]

    def rows(self, array: Array, top: int, bottom: int) -> Array:
        # With CUDA this goes through the host: needed only if a whole image does not fit.
        return self.upload(self.download(array)[:, :, top:bottom])

    def upload(self, array: NDArray[Any]) -> Array:
        array = np.ascontiguousarray(array)
        if not self._on_cuda:
            return array
        value = self._runtime.OrtValue.ortvalue_from_numpy(array, "cuda")
        return _CudaArray(value, start=0, shape=array.shape, dtype=array.dtype)

    def download(self, array: Array) -> NDArray[Any]:
        if isinstance(array, _CudaArray):
            if self._downloaded is None or self._downloaded[0] is not array.value:
                self._downloaded = array.value, array.value.numpy()
            array = self._downloaded[1][array.start : array.start + array.shape[0]]
        values: NDArray[Any] = array
        return values

    def begin_download(self, array: Array) -> Callable[[], NDArray[Any]]:
        # Runs of a graph return when they have completed, so nothing can overlap.
        values = np.array(self.download(array))
        return lambda: values

    def free_memory(self) -> int:
        return free_cuda_memory() if self._on_cuda else free_host_memory()

    def describe(self) -> Description:
        return Description(
            engine="onnxruntime",
            version=self._runtime.__version__,
            device=self._device,
            placement=self._placement(),
            precision=self.network.types,
            model=self._bundle.path.name,
            weights=self._bundle.sha256,
            reason=self._reason,
        )

    def _placement(self) -> str:
        """Describe what plug-ins run; with the threads, on which their values may depend."""
        graphs: dict[Provider, list[str]] = {}
        for graph, provider in self._placed.items():
            if provider.whole:
                graphs.setdefault(provider, []).append(graph)
        return "; ".join(
            f"{provider} for {', '.join(names)}" for provider, names in graphs.items()
        ) + (f"; {usable_cores()} threads" if graphs else "")

    def close(self) -> None:
        self._downloaded = None
        self._sessions = {}
        self._placed = {}


@dataclass(frozen=True)
class _CudaArray:
    """A slice, along the first axis, of an ``OrtValue`` in GPU memory."""

    value: Any
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def address(self) -> int:
        item = math.prod(self.shape[1:]) * self.dtype.itemsize
        return int(self.value.data_ptr()) + self.start * item
