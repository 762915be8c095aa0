"""Runs the graphs' torch modules directly, as the reference for other engines."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rbvsr_deploy.engines.base import Array, Description, Engine, Network
from rbvsr_deploy.engines.memory import failure, free_host_memory
from rbvsr_deploy.errors import EngineError, first_line
from rbvsr_deploy.graph_modules import graph_modules
from rbvsr_deploy.graphs import GRAPHS, OPTIONAL, Precision, head_channels
from rbvsr_deploy.model import RealBasicVSR

__all__ = ["TorchEngine"]


class TorchEngine(Engine):
    """An :class:`~rbvsr_deploy.engines.base.Engine` on torch. Arrays are tensors on the device.

    Args:
        model: float32; copied, not changed.
        name: of the model, for the description of the engine.
        device: a torch device, or "auto" for CUDA if available and the CPU otherwise.
        precision: float type of the features.
        refine_threshold: default threshold of dynamic refinement, on the 0-255 scale.

    Raises:
        EngineError: the device is unknown to torch or not available.
    """

    def __init__(
        self,
        model: RealBasicVSR,
        *,
        name: str,
        device: str = "auto",
        precision: Precision = "float32",
        refine_threshold: float = 255.0,
    ) -> None:
        there = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._device = torch.device(there if device == "auto" else device)
            modules = graph_modules(model, precision=precision)
            self._modules = {graph: module.to(self._device) for graph, module in modules.items()}
            if self._device.type == "cuda":
                # A float32 reference must be exact, but cuDNN would use TF32, as coarse as float16.
                torch.backends.cudnn.allow_tf32 = False
        except (RuntimeError, AssertionError) as error:
            raise EngineError(
                f"torch has no device '{device}' here ({first_line(error)}): use '{there}'",
                parameters=("device",),
            ) from error
        self._name = name
        self._sha256 = _weights_sha256(model)
        self._reason = "a checkpoint runs in torch" + (
            "" if device == "auto" else f"; device '{device}' was requested"
        )
        self.network = Network(
            channels=model.config.mid_channels,
            head_channels=head_channels(
                channels=model.config.mid_channels, single_shuffle=model.config.single_shuffle
            ),
            has_cleaning=model.has_cleaning,
            refine_threshold=refine_threshold,
            precision=precision,
            optional=tuple(name for name in OPTIONAL if name in modules),
            reconstruction_blocks=model.config.reconstruction_blocks,
        )

    @torch.inference_mode()
    def run(
        self, graph: str, *, into: Sequence[Array] | None = None, **arrays: Array
    ) -> tuple[Array, ...]:
        try:
            module = self._modules[graph]
        except KeyError:
            raise EngineError(
                f"there is no graph '{graph}'; available: {', '.join(self._modules) or 'none'}"
            ) from None
        try:
            outputs = module(*(arrays[item.name] for item in GRAPHS[graph].inputs))
        except RuntimeError as error:
            raise failure(str(error))(
                f"graph '{graph}' failed on {self._device}: {first_line(error)}"
            ) from error
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if into is None:
            # Results depend on the memory layout of inputs: the same one wherever a frame waits.
            return tuple(output.contiguous() for output in outputs)
        for place, output in zip(into, outputs, strict=True):
            place.copy_(output)
        return tuple(into)

    def empty(self, shape: tuple[int, ...], *, dtype: str) -> Array:
        return torch.empty(shape, dtype=getattr(torch, dtype), device=self._device)

    def zeros(self, shape: tuple[int, ...], *, dtype: str) -> Array:
        return torch.zeros(shape, dtype=getattr(torch, dtype), device=self._device)

    def slice(self, array: Array, start: int, stop: int) -> Array:
        return array[start:stop]

    def rows(self, array: Array, top: int, bottom: int) -> Array:
        return array[:, :, top:bottom].contiguous()

    def join(self, arrays: Sequence[Array]) -> Array:
        return torch.cat(tuple(arrays))

    def upload(self, array: NDArray[Any]) -> Array:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def download(self, array: Array) -> NDArray[Any]:
        values: NDArray[Any] = array.cpu().numpy()
        return values

    def begin_download(self, array: Array) -> Callable[[], NDArray[Any]]:
        values = np.array(self.download(array))
        return lambda: values

    def free_memory(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.mem_get_info(self._device)[0])
        return free_host_memory()

    def describe(self) -> Description:
        return Description(
            engine="torch",
            version=torch.__version__,
            device=str(self._device),
            precision=self.network.types,
            model=self._name,
            weights=self._sha256,
            reason=self._reason,
        )

    def close(self) -> None:
        self._modules = {}


def _weights_sha256(model: RealBasicVSR) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
