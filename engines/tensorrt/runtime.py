"""Deserialises and launches engines; implements :mod:`rbvsr_deploy.engines.tensorrt.base`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbvsr_deploy.bundle.engine_sets import Flavour
from rbvsr_deploy.engines.tensorrt.cache import (
    cache_folder,
    cache_key,
    read_cached,
    write_cached,
)
from rbvsr_deploy.engines.tensorrt.flavours import KernelCache, TensorRT, checked
from rbvsr_deploy.errors import EngineError
from rbvsr_deploy.graphs import GRAPHS

if TYPE_CHECKING:
    from rbvsr_deploy.engines.cuda.driver import Gpu

__all__ = ["TensorRTExecutable", "TensorRTRuntime"]


class TensorRTRuntime:
    """A :class:`~rbvsr_deploy.engines.tensorrt.base.Runtime`.

    Args:
        tensorrt: the flavour that runs engines.
        gpu: that they run on.

    Raises:
        EngineError: TensorRT does not start.
    """

    def __init__(self, tensorrt: TensorRT, gpu: Gpu) -> None:
        self.flavour: Flavour = tensorrt.name
        self.version = tensorrt.version
        self._tensorrt = tensorrt
        kernels = f"{cache_key(*tensorrt.on(gpu))}.cache"
        self._kernels_path: Path = cache_folder() / "kernels" / kernels
        self._kernels = KernelCache(read_cached(self._kernels_path))
        with tensorrt.attempt(f"{tensorrt.name} {tensorrt.version} does not start"):
            self._runtime = tensorrt.create_runtime()

    def load(self, graph: str, plan: bytes) -> TensorRTExecutable:
        what = f"the engine of graph '{graph}' is refused by {self.flavour} {self.version}"
        with self._tensorrt.attempt(what):
            engine = checked(self._runtime.deserialize_cuda_engine(plan))
            context = self._tensorrt.create_context(engine, self._kernels)
        return TensorRTExecutable(self._tensorrt, graph, engine, context)

    def close(self) -> None:
        with self._tensorrt.attempt(f"{self.flavour} {self.version} did not return its kernels"):
            kernels = self._kernels.serialize()
        if kernels is not None:
            write_cached(self._kernels_path, kernels)
        del self._kernels, self._runtime


class TensorRTExecutable:
    """An :class:`~rbvsr_deploy.engines.tensorrt.base.Executable`."""

    def __init__(self, tensorrt: TensorRT, graph: str, engine: Any, context: Any) -> None:
        self._tensorrt = tensorrt
        self._graph = graph
        self._engine = engine
        self._context = context
        self._shapes: dict[str, tuple[int, ...]] = {}

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(name, shape):
            least, _, most = self._engine.get_tensor_profile_shape(name, 0)
            raise EngineError(
                f"graph '{self._graph}' was compiled for '{name}' between {tuple(least)} and "
                f"{tuple(most)}, not for {shape}"
            )
        self._shapes[name] = shape

    def scratch_bytes(self) -> int:
        self._check_outputs()
        return self._tensorrt.scratch_bytes(self._engine, self._context)

    def _check_outputs(self) -> None:
        """Outputs are written to memory of the contract's sizes: an engine that makes others is not
        launched. Raises EngineError.
        """
        spec = GRAPHS[self._graph]
        channels = [self._shapes[item.name][1] for item in spec.inputs if item.shape[1:2] == ("C",)]
        shapes = spec.output_shapes(self._shapes, channels=channels[0] if channels else 0)
        for item, shape in zip(spec.outputs, shapes, strict=True):
            made = tuple(self._context.get_tensor_shape(item.name))
            if made != shape:
                raise EngineError(
                    f"graph '{self._graph}' gives '{item.name}' the shape {made} instead of "
                    f"{shape}: export the checkpoint again"
                )

    def set_scratch(self, address: int, size: int) -> None:
        self._tensorrt.set_scratch(self._context, address, size)

    def set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"graph '{self._graph}' has no input or output '{name}'")

    def enqueue(self, stream: int) -> None:
        with self._tensorrt.attempt(f"graph '{self._graph}' could not be launched"):
            checked(self._context.execute_async_v3(stream))

    def is_capturable(self, stream: int) -> bool:
        return self._tensorrt.is_capturable(self._context, stream)

    def close(self) -> None:
        # The context must be freed before its engine.
        del self._context, self._engine
