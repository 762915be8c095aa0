"""The one place that knows how TensorRT 8.6, 10, 11 and TensorRT-RTX differ.

All of them parse ONNX, take optimisation profiles, build, deserialise and launch
(``set_tensor_address``, ``execute_async_v3``) with the same calls. They differ in how precision is
asked for, in who owns the memory of intermediate results, and in which GPUs can be built for.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from rbvsr_deploy.engine_sets import Flavour
from rbvsr_deploy.engines.memory import failure
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
"""Import name and extra of each flavour, the preferred one first."""

_OLDEST = (8, 6)

# Where in TensorRT's own sources an error was found.
_NOT_FOR_USERS = re.compile(r"^\[[\w.:]+\] | In \w+ at \S+\.(cpp|h|cu):\d+")


def installed_flavours() -> tuple[Flavour, ...]:
    """The flavours whose packages are there, the preferred one first; none is imported."""
    return tuple(name for name, (package, _) in _PACKAGES.items() if find_spec(package))


@functools.cache
def load_flavour(name: Flavour) -> TensorRT:
    """Import a flavour. There is one object of each in a process, as TensorRT keeps the first
    logger it is given.

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
            f"'{package}' is installed but does not load ({first_line(error)}): install it anew "
            "with the libraries of its own version"
        ) from error
    return TensorRT(name, module)


def checked(result: T | None) -> T:
    """What TensorRT returned; it returns nothing, or ``False``, where it has failed.

    Raises:
        RuntimeError: that is the case. :meth:`TensorRT.attempt` makes a sentence of it.
    """
    if result is None or result is False:
        raise RuntimeError("TensorRT refused without a word")
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
        # Before 10 the builder chooses precisions, within what flags allow it; from 10 on the
        # graph's own types hold, from 11 on always.
        self._weakly_typed = not self._is_rtx and number < (10, 0)
        self._asks_for_types = not self._is_rtx and (10, 0) <= number < (11, 0)
        self.scratch_by_shape = self._is_rtx or number >= (10, 1)
        """Whether engines take scratch memory for the present shapes; else for their largest."""
        self.logger = _collecting_logger(module)

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """What fails within becomes one sentence: ``what``, and TensorRT's own first error.

        Raises:
            DeviceMemoryError: TensorRT speaks of too little memory.
            EngineError: anything else failed.
        """
        self.logger.errors.clear()
        try:
            yield
        except RbvsrError:
            raise
        except Exception as error:  # the bindings raise whatever pybind11 makes of a failure
            said = next(iter(self.logger.errors), first_line(error))
            raise failure(said)(
                f"{what}: {_NOT_FOR_USERS.sub('', ' '.join(said.split()))}"
            ) from error

    def on(self, gpu: Gpu) -> tuple[str, ...]:
        """What timings, kernels and engines hold for: this TensorRT on a GPU with its driver."""
        driver = gpu.driver_version
        return self.name, self.version, gpu.name, gpu.compute_capability, driver

    # Building

    def compute_capabilities(self) -> tuple[str, ...] | None:
        """What can be built for; ``None`` if only the GPU that builds."""
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
        """Whether a timing cache is of use. TensorRT-RTX times nothing when it builds, and with a
        timing cache it would ask for a GPU.
        """
        return not self._is_rtx

    def create_network(self, builder: Any) -> Any:
        """An empty network whose batch is an explicit dimension and whose types are the graph's,
        where that can be asked for.
        """
        kinds = self.module.NetworkDefinitionCreationFlag
        if self._weakly_typed:
            return checked(builder.create_network(1 << int(kinds.EXPLICIT_BATCH)))
        if self._asks_for_types:
            return checked(builder.create_network(1 << int(kinds.STRONGLY_TYPED)))
        return checked(builder.create_network(0))

    def ask_for_precision(
        self, config: Any, network: Any, *, precision: Precision, quantised: bool
    ) -> None:
        """See to it that layers run in the types the graph gives them."""
        flags = self.module.BuilderFlag
        # float32 means float32: those who want speed take float16.
        config.clear_flag(flags.TF32)
        if not self._weakly_typed:
            return
        if precision == "float16":
            config.set_flag(flags.FP16)
        if quantised:
            config.set_flag(flags.INT8)
        config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
        # With FP16 allowed, coordinates and flow would go to float16 as well.
        float32 = self.module.float32
        for number in range(network.num_layers):
            layer = network.get_layer(number)
            outputs = range(layer.num_outputs)
            if all(layer.get_output(i).dtype == float32 for i in outputs):
                layer.precision = float32
                for i in outputs:
                    layer.set_output_type(i, float32)

    def aim(self, config: Any, *, compute_capability: str) -> None:
        """Build for a compute capability. Plain TensorRT builds for the GPU it runs on."""
        if self._is_rtx:
            name = f"SM{compute_capability.replace('.', '')}"
            config.num_compute_capabilities = 1
            checked(
                config.set_compute_capability(self.module.ComputeCapability.__members__[name], 0)
            )

    def allow_other_versions(self, config: Any) -> None:
        """Let later versions of TensorRT run the engine."""
        config.set_flag(self.module.BuilderFlag.VERSION_COMPATIBLE)

    def allow_other_gpus(self, config: Any) -> None:
        """Let any GPU from compute capability 8.0 on run the engine."""
        config.hardware_compatibility_level = self.module.HardwareCompatibilityLevel.AMPERE_PLUS

    def watch(
        self, config: Any, progress: Callable[[str, int, int], None], stopped: Callable[[], bool]
    ) -> None:
        """Have the builder tell how far it is, where it can (from 10 on).

        Args:
            config: of the builder.
            progress: called with a phase, the number of steps done and that of all steps. The
                builder's own threads call it.
            stopped: asked at every step; ``True`` makes the builder give up.
        """
        if hasattr(self.module, "IProgressMonitor"):
            config.progress_monitor = _progress_monitor(self.module, progress, stopped)

    # Running

    def create_runtime(self) -> Any:
        """What deserialises engines."""
        runtime = checked(self.module.Runtime(self.logger))
        # A version-compatible engine brings the code that runs it: a program, to be trusted as one.
        runtime.engine_host_code_allowed = os.environ.get("RBVSR_TRUST_ENGINES") == "1"
        return runtime

    def create_context(self, engine: Any, kernels: KernelCache) -> Any:
        """An execution context whose scratch memory is given to it from outside."""
        if not self.scratch_by_shape:
            return checked(engine.create_execution_context_without_device_memory())
        managed = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self._is_rtx:
            return checked(engine.create_execution_context(managed))
        config = checked(engine.create_runtime_config())
        config.set_execution_context_allocation_strategy(managed)
        config.cuda_graph_strategy = self.module.CudaGraphStrategy.DISABLED  # we capture ourselves
        kernels.attach(config)
        return checked(engine.create_execution_context(config))

    def scratch_bytes(self, engine: Any, context: Any) -> int:
        """Scratch memory for the context's present shapes, or for the largest."""
        if self.scratch_by_shape:
            return int(context.update_device_memory_size_for_shapes())
        return int(engine.device_memory_size)

    def set_scratch(self, context: Any, address: int, size: int) -> None:
        """Give a context its scratch memory."""
        if self.scratch_by_shape:
            context.set_device_memory(address, size)
        else:
            context.device_memory = address

    def is_capturable(self, context: Any, stream: int) -> bool:
        """Whether the next launch may be captured into a CUDA graph."""
        # TensorRT-RTX may still have to compile kernels for new shapes.
        return bool(context.is_stream_capturable(stream)) if self._is_rtx else True


class KernelCache:
    """The kernels that TensorRT-RTX compiles when it first meets a shape on a GPU, shared by all
    contexts; the other flavours compile when they build.

    Args:
        content: what :meth:`serialize` gave an earlier run, or ``None``.
    """

    def __init__(self, content: bytes | None) -> None:
        self._content = content
        self._cache: Any = None

    def attach(self, config: Any) -> None:
        """Have contexts of a runtime configuration use it."""
        if self._cache is None:
            self._cache = checked(config.create_runtime_cache())
            # One of another GPU or driver is refused, and then filled anew.
            if self._content and not self._cache.deserialize(self._content):
                self._cache.reset()
        checked(config.set_runtime_cache(self._cache))

    def serialize(self) -> bytes | None:
        """What to keep for the next run; ``None`` if nothing has changed."""
        if self._cache is None:
            return None
        content = bytes(checked(self._cache.serialize()))
        return None if content == self._content else content


def _collecting_logger(module: Any) -> Any:
    """A logger that keeps errors for the sentence they belong in, and prints nothing."""

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
