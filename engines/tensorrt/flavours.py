"""Hides the differences between TensorRT 8.6, 10, 11 and TensorRT-RTX.

All of them parse ONNX, accept optimisation profiles, build, deserialise and launch
(``set_tensor_address``, ``execute_async_v3``) with the same calls. They differ in how precision is
requested, who owns the memory of intermediate results, and which GPUs they can build for.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from rbvsr_deploy.bundle.engine_sets import Flavour
from rbvsr_deploy.engines.memory import failure
from rbvsr_deploy.engines.tensorrt.tensor_types import (
    dequantised,
    inputs_of,
    layers_of,
    outputs_of,
    reported_types,
    types_from_graph,
)
from rbvsr_deploy.errors import (
    EngineError,
    MissingDependencyError,
    RbvsrError,
    first_line,
)
from rbvsr_deploy.graphs import Precision

if TYPE_CHECKING:
    from rbvsr_deploy.engines.cuda.driver import Gpu

__all__ = ["TensorRT", "checked", "installed_flavours", "load_flavour"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PACKAGES: dict[Flavour, tuple[str, str]] = {
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt-rtx": ("tensorrt_rtx", "rtx"),
}
"""Import name and pip extra of each flavour, the preferred one first."""

_OLDEST = (8, 6)

# The positions in its own sources that TensorRT adds to errors.
_SOURCE_POSITION = re.compile(r"^\[[\w.:]+\] | In \w+ at \S+\.(cpp|h|cu):\d+")


def installed_flavours() -> tuple[Flavour, ...]:
    """Return the installed flavours, the preferred one first, without importing them."""
    return tuple(name for name, (package, _) in _PACKAGES.items() if find_spec(package))


@functools.cache
def load_flavour(name: Flavour) -> TensorRT:
    """Import a flavour, once per process, because TensorRT keeps the first logger it is given.

    Raises:
        MissingDependencyError: it is not installed.
        EngineError: it is older than 8.6, or does not load.
    """
    package, extra = _PACKAGES[name]
    if find_spec(package) is None:
        raise MissingDependencyError(package, extra=extra, purpose=f"the engine '{name}'")
    try:
        module = importlib.import_module(package)
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            f"'{package}' is installed but does not load ({first_line(error)}): reinstall it "
            "together with the libraries of the same version"
        ) from error
    return TensorRT(name, module)


def checked(result: T | None) -> T:
    """Return a result of TensorRT, which returns ``None`` or ``False`` after a failure.

    Raises:
        RuntimeError: the call failed; :meth:`TensorRT.attempt` turns this into a clear message.
    """
    if result is None or result is False:
        raise RuntimeError("TensorRT failed without an error message")
    return result


class TensorRT:
    """An installed TensorRT of one flavour.

    Args:
        name: its flavour.
        module: its Python bindings.

    Raises:
        EngineError: it is older than 8.6.
    """

    def __init__(self, name: Flavour, module: Any) -> None:
        self.name: Flavour = name
        self.module = module
        self.version = str(module.__version__)
        number = tuple(int(part) for part in re.findall(r"\d+", self.version)[:2])
        if name == "tensorrt" and number < _OLDEST:
            raise EngineError(
                f"TensorRT {self.version} is too old: 8.6 or newer is needed (JetPack 6.0 or newer)"
            )
        self._is_rtx = name == "tensorrt-rtx"
        # Before 10 the builder chooses precisions within the limits set by flags; 10 follows the
        # graph's own types if asked to, and 11 always does.
        self._weakly_typed = not self._is_rtx and number < (10, 0)
        self._requests_strong_typing = not self._is_rtx and (10, 0) <= number < (11, 0)
        self.scratch_by_shape = self._is_rtx or number >= (10, 1)
        """True if scratch memory is sized for the current shapes, not for the largest ones."""
        self.logger = _collecting_logger(module)

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Turn failures within the block into one message: ``what``, and TensorRT's first error.

        Raises:
            DeviceMemoryError: TensorRT reported that memory ran out.
            EngineError: any other failure.
        """
        self.logger.errors.clear()
        try:
            yield
        except RbvsrError:
            raise
        except Exception as error:  # pybind11 maps failures to various types
            said = next(iter(self.logger.errors), first_line(error))
            raise failure(said)(
                f"{what}: {_SOURCE_POSITION.sub('', ' '.join(said.split()))}"
            ) from error

    def on(self, gpu: Gpu) -> tuple[str, ...]:
        """Return what timings and engines depend on: this TensorRT, the GPU and its driver."""
        driver = gpu.driver_version
        return self.name, self.version, gpu.name, gpu.compute_capability, driver

    # Building

    def compute_capabilities(self) -> tuple[str, ...] | None:
        """Return the capabilities it can build for; ``None`` if only for the GPU that builds."""
        if not self._is_rtx:
            return None
        numbers = (
            name.removeprefix("SM")
            for name in self.module.ComputeCapability.__members__
            if name.startswith("SM")
        )
        return tuple(f"{number[:-1]}.{number[-1]}" for number in numbers)

    @property
    def times_kernels(self) -> bool:
        """True if a timing cache is useful.

        TensorRT-RTX does not time kernels when it builds; with a timing cache it would need a GPU.
        """
        return not self._is_rtx

    def create_network(self, builder: Any) -> Any:
        """Create an empty network with an explicit batch dimension, strongly typed if possible."""
        kinds = self.module.NetworkDefinitionCreationFlag
        if self._weakly_typed:
            return checked(builder.create_network(1 << int(kinds.EXPLICIT_BATCH)))
        if self._requests_strong_typing:
            return checked(builder.create_network(1 << int(kinds.STRONGLY_TYPED)))
        return checked(builder.create_network(0))

    def tensor_types(self, network: Any, model: bytes) -> dict[str, str]:
        """Return NumPy's name of the type that each tensor of a parsed network will have.

        Args:
            network: its ``INetworkDefinition``.
            model: the serialised graph that was parsed.

        Raises:
            MissingDependencyError: this is TensorRT before 10, which needs ``onnx`` for this.
        """
        return types_from_graph(network, model) if self._weakly_typed else reported_types(network)

    def set_precision(
        self,
        config: Any,
        network: Any,
        *,
        types: Mapping[str, str],
        precision: Precision,
        quantised: bool,
    ) -> None:
        """Make layers run in the types that the graph specifies.

        Args:
            config: of the builder.
            network: the parsed network.
            types: returned by :meth:`tensor_types`.
            precision: of the bundle.
            quantised: whether it has convolutions in int8.
        """
        flags = self.module.BuilderFlag
        # float32 must be exact: float16 is there for speed.
        config.clear_flag(flags.TF32)
        if not self._weakly_typed:
            return
        if precision == "float16":
            config.set_flag(flags.FP16)
        if quantised:
            config.set_flag(flags.INT8)
        # With FP16 allowed, coordinates and flow would become float16 as well. A preference, as
        # float32 kernels exist for every layer, and float16 ones may not; values are compared.
        config.set_flag(flags.PREFER_PRECISION_CONSTRAINTS)
        rounded = dequantised(network)
        for layer in layers_of(network):
            # These have types of their own, and what reads rounded values is fused into int8.
            is_free = layer.type.name in ("CAST", "CONSTANT", "QUANTIZE", "DEQUANTIZE")
            if is_free or any(tensor.name in rounded for tensor in inputs_of(layer)):
                continue
            for i, tensor in enumerate(outputs_of(layer)):
                dtype = types[tensor.name]
                if dtype in ("float16", "float32"):
                    layer.precision = getattr(self.module, dtype)
                    layer.set_output_type(i, getattr(self.module, dtype))

    def set_compute_capability(self, config: Any, *, compute_capability: str) -> None:
        """Build for a compute capability; plain TensorRT builds for the GPU it runs on."""
        if self._is_rtx:
            name = f"SM{compute_capability.replace('.', '')}"
            config.num_compute_capabilities = 1
            checked(
                config.set_compute_capability(self.module.ComputeCapability.__members__[name], 0)
            )

    def allow_other_versions(self, config: Any) -> None:
        """Allow later versions of TensorRT to run the engine."""
        config.set_flag(self.module.BuilderFlag.VERSION_COMPATIBLE)

    def allow_other_gpus(self, config: Any) -> None:
        """Allow any GPU of compute capability 8.0 or higher to run the engine."""
        config.hardware_compatibility_level = self.module.HardwareCompatibilityLevel.AMPERE_PLUS

    def allow_capture(self, config: Any) -> None:
        """Allow launches to be captured into CUDA graphs, which TensorRT-RTX has to know."""
        flag = getattr(self.module.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
        if self._is_rtx and flag is not None:
            config.set_flag(flag)

    def watch(
        self, config: Any, progress: Callable[[str, int, int], None], stopped: Callable[[], bool]
    ) -> None:
        """Make the builder report its progress, if it can (version 10 or later).

        Args:
            config: of the builder.
            progress: called with a phase, the steps completed and the total steps, in the
                builder's own threads.
            stopped: called at every step; ``True`` makes the builder abort.
        """
        if hasattr(self.module, "IProgressMonitor"):
            config.progress_monitor = _progress_monitor(self.module, progress, stopped)

    # Running

    def create_runtime(self) -> Any:
        """Create the object that deserialises engines."""
        runtime = checked(self.module.Runtime(self.logger))
        # A version-compatible engine contains the code that runs it, so it must be trusted.
        runtime.engine_host_code_allowed = os.environ.get("RBVSR_TRUST_ENGINES") == "1"
        return runtime

    def create_context(self, engine: Any, kernels: KernelCache) -> Any:
        """Create an execution context whose scratch memory the caller provides."""
        if not self.scratch_by_shape:
            return checked(engine.create_execution_context_without_device_memory())
        managed = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self._is_rtx:
            return checked(engine.create_execution_context(managed))
        config = checked(engine.create_runtime_config())
        config.set_execution_context_allocation_strategy(managed)
        config.cuda_graph_strategy = (
            self.module.CudaGraphStrategy.DISABLED
        )  # captured by our own code
        # By default other kernels run until those for a shape are compiled, in the background: the
        # bits of a frame would depend on timing.
        strategies = self.module.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        kernels.attach(config)
        return checked(engine.create_execution_context(config))

    def scratch_bytes(self, engine: Any, context: Any) -> int:
        """Return the scratch memory, in bytes, for the current shapes or for the largest.

        Raises:
            DeviceMemoryError, EngineError: TensorRT reports none; a plain 0 means that no memory is
                needed.
        """
        if not self.scratch_by_shape:
            return int(engine.device_memory_size)
        with self.attempt("TensorRT cannot size the memory for these shapes"):
            size = int(context.update_device_memory_size_for_shapes())
            if size == 0 and self.logger.errors:
                raise RuntimeError
        return size

    def set_scratch(self, context: Any, address: int, size: int) -> None:
        """Set the scratch memory of a context."""
        if self.scratch_by_shape:
            context.set_device_memory(address, size)
        else:
            context.device_memory = address

    def is_capturable(self, context: Any, stream: int) -> bool:
        """Return whether the next launch may be captured into a CUDA graph."""
        # TensorRT-RTX may still have to compile kernels for new shapes.
        return bool(context.is_stream_capturable(stream)) if self._is_rtx else True


class KernelCache:
    """Holds the kernels that TensorRT-RTX compiles when a shape is first used on a GPU.

    All contexts share it. The other flavours compile kernels when they build.

    Args:
        content: returned by :meth:`serialize` in an earlier run, or ``None``.
    """

    def __init__(self, content: bytes | None) -> None:
        self._content = content
        self._cache: Any = None

    def attach(self, config: Any) -> None:
        """Make the contexts of a runtime configuration use it."""
        if self._cache is None:
            self._cache = checked(config.create_runtime_cache())
            # A cache of another GPU or driver is rejected, and then refilled from empty.
            if self._content and not self._cache.deserialize(self._content):
                self._cache.reset()
        checked(config.set_runtime_cache(self._cache))

    def serialize(self) -> bytes | None:
        """Return the content to keep for the next run; ``None`` if it has not changed."""
        if self._cache is None:
            return None
        content = bytes(checked(self._cache.serialize()))
        return None if content == self._content else content


def _collecting_logger(module: Any) -> Any:
    """Create a logger that keeps errors for later messages and prints nothing."""

    class CollectingLogger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if int(severity) <= int(module.ILogger.ERROR):
                self.errors.append(text)
            else:
                logger.debug("%s", text)

    return CollectingLogger()


def _progress_monitor(
    module: Any, progress: Callable[[str, int, int], None], stopped: Callable[[], bool]
) -> Any:
    class ProgressMonitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            steps = self._steps.get(phase, step + 1)
            progress(phase, min(step + 1, steps), steps)
            return not stopped()

    return ProgressMonitor()
