"""Compiles graphs for one kind of GPU: one engine per graph, for all sizes of a profile.

This uses the builder's own API because Polygraphy selects its TensorRT by an environment variable,
once per process, and both flavours may be used in one process.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rbvsr_deploy.bundle import Manifest
from rbvsr_deploy.bundle.engine_sets import EngineSet, ShapeProfile
from rbvsr_deploy.engines.tensorrt.base import states_are_channels_last
from rbvsr_deploy.engines.tensorrt.cache import cache_folder, cache_key
from rbvsr_deploy.engines.tensorrt.flavours import TensorRT, checked
from rbvsr_deploy.engines.tensorrt.network import check_network
from rbvsr_deploy.engines.tensorrt.tensor_types import inputs_of, outputs_of
from rbvsr_deploy.engines.tensorrt.timing_cache import TimingCache
from rbvsr_deploy.errors import EngineError
from rbvsr_deploy.graphs import GRAPHS, STATES

if TYPE_CHECKING:
    from rbvsr_deploy.engines.cuda.driver import CudaDriver, Gpu

__all__ = [
    "JETSON",
    "BuildOptions",
    "Progress",
    "build_engine_set",
    "check_target",
    "describe_gpu",
    "this_platform",
]

JETSON = ("7.2", "8.7", "10.1", "11.0")
"""Compute capabilities of GPUs that only Jetson modules have: Xavier, Orin, and both of Thor's."""

Progress = Callable[[str, str, int, int], None]
"""Called with graph, builder phase, steps completed and total steps; from any thread."""


@dataclass(frozen=True)
class BuildOptions:
    """Settings of the builder; ``None`` selects TensorRT's own default."""

    workspace: int | None = None
    """Limit on GPU memory a kernel may use for intermediate results, in bytes."""
    optimization_level: int | None = None
    """0 to 5; higher levels search longer for fast kernels."""
    version_compatible: bool = False
    """Allow later versions of TensorRT to run the engines."""
    hardware_compatible: bool = False
    """Allow any GPU of compute capability 8.0 or higher to run the engines."""


def this_platform() -> str:
    """Return the operating system and processor, as in :attr:`EngineSet.platform`."""
    system = {"win32": "windows"}.get(sys.platform, sys.platform)
    machine = platform.machine().lower()
    return f"{system}-{ {'amd64': 'x86_64', 'arm64': 'aarch64'}.get(machine, machine) }"


def describe_gpu(driver: CudaDriver) -> Gpu:
    """Return the properties of a driver's GPU."""
    with driver.current():
        return driver.gpu()


def build_engine_set(
    tensorrt: TensorRT,
    manifest: Manifest,
    graphs: Mapping[str, bytes],
    *,
    profile: ShapeProfile,
    compute_capability: str,
    driver: CudaDriver | None = None,
    options: BuildOptions | None = None,
    progress: Progress = lambda graph, phase, step, steps: None,
) -> tuple[EngineSet, dict[str, bytes]]:
    """Compile all graphs of a bundle.

    Args:
        tensorrt: the flavour to compile with.
        manifest: of the bundle.
        graphs: serialised ONNX model by graph name.
        profile: the sizes and batches that the engines will accept.
        compute_capability: of the GPUs that will run the engines, for example "8.9".
        driver: of this machine's GPU, if it has one; plain TensorRT compiles on this GPU and only
            for it.
        options: of the builder.
        progress: called as the builder advances.

    Returns:
        The set, with the layers of every parsed network, and the serialised engines by graph.

    Raises:
        EngineError: this flavour cannot compile for that compute capability, or a graph was
            rejected, misread or not built; the message includes TensorRT's own.
    """
    options = options or BuildOptions()
    gpu = None if driver is None else describe_gpu(driver)
    check_target(tensorrt, compute_capability, gpu=gpu, options=options)
    timing_cache = None
    if tensorrt.times_kernels and gpu is not None:
        key = cache_key(*tensorrt.on(gpu), options.workspace)
        timing_cache = TimingCache(cache_folder() / "timing" / f"{key}.cache")
    layers, plans = {}, {}
    for name, graph in graphs.items():
        progress(name, "reading", 0, 1)
        build = _Build(tensorrt, name, manifest, profile, compute_capability, options, driver)
        layers[name], plans[name] = build.run(graph, timing_cache, progress)
    engine_set = EngineSet(
        flavour=tensorrt.name,
        version=tensorrt.version,
        compute_capability=compute_capability,
        platform=this_platform(),
        profile=profile,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        layers=layers,
    )
    return engine_set, plans


def check_target(
    tensorrt: TensorRT, compute_capability: str, *, gpu: Gpu | None, options: BuildOptions
) -> None:
    """Check before long work that engines can be compiled.

    Raises:
        EngineError: this flavour cannot compile for that compute capability, or not with these
            options.
    """
    offered = tensorrt.compute_capabilities()
    if offered is not None and compute_capability not in offered:
        raise EngineError(
            f"{tensorrt.name} {tensorrt.version} compiles for the compute capabilities "
            f"{', '.join(offered)}, not for {compute_capability}: "
            "compile with TensorRT on such a GPU"
        )
    if offered is not None and options.hardware_compatible:
        raise EngineError(
            f"{tensorrt.name} has no hardware-compatible engines: give the compute capability of "
            "every GPU to compile for, such as 8.6,8.9,12.0",
            parameters=("compute_capabilities",),
        )
    if options.hardware_compatible and compute_capability in JETSON:
        raise EngineError(
            f"{tensorrt.name} has no hardware-compatible engines on Jetson (compute capability "
            f"{compute_capability}): compile for this GPU alone",
            parameters=("hardware_compatible",),
        )
    if offered is None and gpu is None:
        raise EngineError(
            f"{tensorrt.name} {tensorrt.version} compiles on the GPU that will run the engines, "
            "and there is none here: compile there, or for the target tensorrt-rtx",
            parameters=("target",),
        )
    if offered is None and gpu is not None and compute_capability != gpu.compute_capability:
        raise EngineError(
            f"{tensorrt.name} {tensorrt.version} compiles for the GPU it runs on only, which is "
            f"{gpu.name} of compute capability {gpu.compute_capability}, not "
            f"{compute_capability}: compile on such a GPU, or for the target tensorrt-rtx",
            parameters=("target",),
        )


@dataclass(frozen=True)
class _Build:
    """Compiles one graph into an engine."""

    tensorrt: TensorRT
    graph: str
    manifest: Manifest
    profile: ShapeProfile
    compute_capability: str
    options: BuildOptions
    driver: CudaDriver | None

    def run(
        self, model: bytes, timing_cache: TimingCache | None, progress: Progress
    ) -> tuple[dict[str, int], bytes]:
        """Return the table of layers and the serialised engine."""
        stopped = threading.Event()
        # TensorRT calls back while it builds. Ctrl-C is raised in the main thread, which must not
        # be in a callback then, so the main thread only waits.
        with ThreadPoolExecutor(1) as worker:
            future = worker.submit(self._run, model, timing_cache, progress, stopped)
            try:
                return future.result()
            finally:
                stopped.set()

    def _run(self, *arguments: Any) -> tuple[dict[str, int], bytes]:
        """Run in the worker thread, where the GPU must be made current too."""
        with contextlib.nullcontext() if self.driver is None else self.driver.current():
            return self._build(*arguments)

    def _build(
        self,
        model: bytes,
        timing_cache: TimingCache | None,
        progress: Progress,
        stopped: threading.Event,
    ) -> tuple[dict[str, int], bytes]:
        tensorrt, module = self.tensorrt, self.tensorrt.module
        where = f"graph '{self.graph}'"
        named = f"{tensorrt.name} {tensorrt.version}"
        with tensorrt.attempt(f"{named} does not start"):
            builder = checked(module.Builder(tensorrt.logger))
            network = tensorrt.create_network(builder)
            parser = checked(module.OnnxParser(network, tensorrt.logger))
        with tensorrt.attempt(f"{where} was rejected by the parser of {named}"):
            checked(parser.parse(model))
        types = tensorrt.tensor_types(network, model)
        layers = check_network(
            tensorrt, network, model, types, graph=self.graph, precision=self.manifest.precision
        )
        with tensorrt.attempt(f"{where} could not be compiled by {named}"):
            config = checked(builder.create_builder_config())
            self._configure(builder, network, config, types)
            tensorrt.watch(
                config,
                lambda phase, step, steps: progress(self.graph, phase, step, steps),
                stopped.is_set,
            )
            if timing_cache is not None:
                timing_cache.attach(config)
            plan = bytes(checked(builder.build_serialized_network(network, config)))
            if timing_cache is not None:
                timing_cache.keep(config)
        return layers, plan

    def _shared_workspace(self) -> int | None:
        """Return a limit for a GPU that shares the host's memory, which TensorRT would take whole;
        ``None`` for others.
        """
        if self.driver is None or not self.driver.gpu().is_integrated:
            return None
        return max(2**28, self.driver.free_memory() // 4)

    def _configure(self, builder: Any, network: Any, config: Any, types: Mapping[str, str]) -> None:
        tensorrt, options = self.tensorrt, self.options
        tensorrt.set_precision(
            config,
            network,
            types=types,
            precision=self.manifest.precision,
            quantised=self.manifest.quantisation is not None,
        )
        tensorrt.set_compute_capability(config, compute_capability=self.compute_capability)
        tensorrt.allow_capture(config)
        workspace = options.workspace or self._shared_workspace()
        if workspace is not None:
            pool = tensorrt.module.MemoryPoolType.WORKSPACE
            config.set_memory_pool_limit(pool, workspace)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.version_compatible:
            tensorrt.allow_other_versions(config)
        if options.hardware_compatible:
            tensorrt.allow_other_gpus(config)
        profile = checked(builder.create_optimization_profile())
        limits = self.profile.shapes(
            GRAPHS[self.graph],
            channels=self.manifest.channels,
            head_channels=self.manifest.head_channels,
        )
        for name, shapes in limits.items():
            profile.set_shape(name, *shapes)
        if states_are_channels_last(self.manifest.precision, self.manifest.channels):
            for tensor in (*inputs_of(network), *outputs_of(network)):
                if tensor.name in STATES:
                    tensor.allowed_formats = 1 << int(tensorrt.module.TensorFormat.HWC8)
        if config.add_optimization_profile(profile) < 0:
            raise RuntimeError(f"TensorRT rejected the sizes {self.profile}")
