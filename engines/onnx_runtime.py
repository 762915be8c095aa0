"""Runs the bundle's graphs with ONNX Runtime: on the CPU, CUDA or any execution provider."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.bundle import Bundle
from rbvsr_deploy.engines.base import Array, Description, Engine, Network
from rbvsr_deploy.engines.memory import failure, free_cuda_memory, free_host_memory
from rbvsr_deploy.errors import (
    DeviceMemoryError,
    EngineError,
    MissingDependencyError,
    first_line,
)
from rbvsr_deploy.graphs import GRAPHS

__all__ = ["OnnxRuntimeEngine", "import_onnxruntime"]

logger = logging.getLogger(__name__)

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class OnnxRuntimeEngine(Engine):
    """An :class:`~rbvsr_deploy.engines.base.Engine` on ONNX Runtime. Arrays are NumPy's on the
    host, and ``_CudaArray`` under CUDA; they are read and written in place.

    Args:
        bundle: an opened bundle.
        device: "auto" (CUDA where it works, else the CPU), "cpu", "cuda", or an execution
            provider's own name such as "OpenVINOExecutionProvider".
        beside: why no faster engine was chosen, as a clause, for the description.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        EngineError: the device is not available, or a graph is not what the bundle says.
    """

    def __init__(self, bundle: Bundle, *, device: str = "auto", beside: str = "") -> None:
        try:
            self._runtime = import_onnxruntime()
        except ImportError:
            raise MissingDependencyError(
                "onnxruntime", extra="cpu", purpose=f"running '{bundle.path.name}'"
            ) from None
        self._bundle = bundle
        self.network = Network.of(bundle.manifest)
        provider, why = self._choose_provider(device)
        self._reason = "; ".join(part for part in (beside, why) if part)
        graphs = bundle.manifest.graphs
        self._sessions = {name: self._open_session(name, provider) for name in graphs}
        self._provider = provider
        # CUDA is the one provider whose arrays stay on its device between graphs; others read the
        # host's memory.
        self._on_cuda = provider == _CUDA

    def _choose_provider(self, device: str) -> tuple[str, str]:
        """Return the execution provider's name and the reason for it."""
        offered = self._runtime.get_available_providers()
        if device == "auto":
            if _CUDA not in offered:
                return _CPU, "this ONNX Runtime has no CUDA"
            try:
                self._open_session("ingest", _CUDA)
            except EngineError as error:
                logger.warning("CUDA is not used: %s", error)
                return _CPU, "CUDA does not start on this machine"
            return _CUDA, "CUDA is available"
        provider = {"cpu": _CPU, "cuda": _CUDA}.get(device, device)
        if provider not in offered:
            hint = (
                "pip uninstall onnxruntime && pip install 'rbvsr-deploy[cuda]', or "
                if device == "cuda"
                else ""
            )
            raise EngineError(
                f"device '{device}' is not available: this ONNX Runtime provides "
                f"{', '.join(offered)}; {hint}use the CPU",
                parameters=("device",),
            )
        return provider, f"device '{device}' was requested"

    def _open_session(self, name: str, provider: str) -> Any:
        ort = self._runtime
        if provider == _CUDA and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # finds the CUDA libraries that pip installs with it
        options = ort.SessionOptions()
        # With CUDA, only fatal errors: the exception below reports a missing driver.
        options.log_severity_level = 4 if provider == _CUDA else 3
        # The bytes were checked as ONNX and must not be parsed as ONNX Runtime's own format.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        # The check has refused graphs with external files. As a second barrier, ONNX Runtime 1.23
        # and later searches only this folder, and a device contains no files.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", os.devnull
        )
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        # Each graph has a thread pool of its own, and one graph runs at a time. Threads that spin
        # while they wait take the cores from those that work: twice the CPU time per frame.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # A plan of the whole run's memory is one more block beside those of the first run: at
        # 320x180 the published head takes 0.7 GB without it and 1.1 GB with it.
        options.enable_mem_pattern = False
        providers: list[Any] = [provider] if provider == _CPU else [provider, _CPU]
        if provider == _CUDA:
            providers[0] = (_CUDA, {"arena_extend_strategy": "kSameAsRequested"})
        try:
            session = ort.InferenceSession(self._bundle.graph(name), options, providers=providers)
        except KeyError:
            raise EngineError(
                f"'{self._bundle.path}' lacks the graph '{name}': export the checkpoint again"
            ) from None
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise EngineError(
                f"graph '{name}' of '{self._bundle.path}' cannot be opened on {provider}: "
                f"{first_line(error)}"
            ) from error
        if provider not in session.get_providers():
            raise EngineError(
                f"{provider} did not start here, as its driver or a library is missing: use "
                "the CPU",
                parameters=("device",),
            )
        self._check_io(name, session)
        return session

    def _check_io(self, name: str, session: Any) -> None:
        """Check that the graph in the file is the one the manifest describes."""
        described = self._bundle.manifest.graphs[name]
        for side, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            got = [(value.name, list(value.shape)) for value in values]
            want = [(item["name"], item["shape"]) for item in described[side]]
            if got != want:
                raise EngineError(
                    f"graph '{name}' of '{self._bundle.path}' has the {side} {got} instead of "
                    f"{want}: it belongs to another model; export the checkpoint again"
                )

    def run(
        self, graph: str, *, into: Sequence[Array] | None = None, **arrays: Array
    ) -> tuple[Array, ...]:
        try:
            session = self._sessions[graph]
        except KeyError:
            raise EngineError(
                f"there is no graph '{graph}'; available: {', '.join(self._sessions) or 'none'}"
            ) from None
        outputs = tuple(into) if into is not None else self._outputs(graph, arrays)
        binding = session.io_binding()
        try:
            for name, array in arrays.items():
                binding.bind_input(name, *self._place(array))
            # Results of other shapes than these are refused when they are to be written.
            for item, array in zip(GRAPHS[graph].outputs, outputs, strict=True):
                binding.bind_output(item.name, *self._place(array))
            session.run_with_iobinding(binding)
        except Exception as error:
            raise failure(str(error))(
                f"graph '{graph}' failed on {self._provider}: {first_line(error)}"
            ) from error
        return outputs

    def _outputs(self, graph: str, arrays: dict[str, Array]) -> tuple[Array, ...]:
        spec = GRAPHS[graph]
        shapes = spec.output_shapes(
            arrays[spec.inputs[0].name].shape, channels=self.network.channels
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
            array = array.value.numpy()[array.start : array.start + array.shape[0]]
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
            device={_CPU: "cpu", _CUDA: "cuda"}.get(self._provider, self._provider),
            precision=self.network.types,
            model=self._bundle.path.name,
            weights=self._bundle.sha256,
            reason=self._reason,
        )

    def close(self) -> None:
        self._sessions = {}


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


def import_onnxruntime() -> Any:
    """Import onnxruntime, with telemetry and warnings disabled.

    Raises:
        ImportError: it is not installed.
    """
    # Its wheels (1.32, on Linux too) contain telemetry that starts a session on import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    # Warnings concern details of graphs that users cannot change.
    onnxruntime.set_default_logger_severity(3)
    return onnxruntime


@functools.cache
def _share_arena() -> None:
    """Share one pool of host memory for the intermediate results of all graphs.

    Graphs never run at the same time. The pool grows by the requested size: at 320x180 it takes
    0.2 GB in total instead of 0.4.
    """
    onnxruntime = import_onnxruntime()
    onnxruntime.create_and_register_allocator(
        onnxruntime.OrtMemoryInfo(
            "Cpu",
            onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
            0,
            onnxruntime.OrtMemType.DEFAULT,
        ),
        onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1}),  # 1: grow by the requested size
    )
