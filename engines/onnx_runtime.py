"""The bundle's graphs under ONNX Runtime: CPU, CUDA or any execution provider by name."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.bundle import Bundle
from rbvsr_deploy.engines.base import Array, Description, Network
from rbvsr_deploy.errors import EngineError, MissingDependencyError, first_line
from rbvsr_deploy.graphs import GRAPHS

__all__ = ["OnnxRuntimeEngine"]

logger = logging.getLogger(__name__)

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class OnnxRuntimeEngine:
    """An :class:`~rbvsr_deploy.engines.base.Engine` on ONNX Runtime. Arrays are ``OrtValue`` on the
    device.

    Args:
        bundle: an opened bundle.
        device: "auto" (CUDA where it works, else the CPU), "cpu", "cuda", or an execution
            provider's own name such as "OpenVINOExecutionProvider".

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        EngineError: the device is not to be had here, or a graph is not what the bundle says.
    """

    def __init__(self, bundle: Bundle, *, device: str = "auto") -> None:
        try:
            import onnxruntime
        except ImportError:
            raise MissingDependencyError(
                "onnxruntime", extra="cpu", purpose=f"running '{bundle.path.name}'"
            ) from None
        self._runtime = onnxruntime
        onnxruntime.set_default_logger_severity(
            3
        )  # warnings are about graph details no user can act on
        self._bundle = bundle
        manifest = bundle.manifest
        self.network = Network(
            channels=manifest.channels,
            has_cleaning=manifest.has_cleaning,
            refine_threshold=manifest.refine_threshold,
            precision=manifest.precision,
        )
        provider, self._reason = self._choose_provider(device)
        self._sessions = {name: self._open_session(name, provider) for name in manifest.graphs}
        self._provider = provider
        # CUDA is the one provider whose arrays stay on its device between graphs; others read the
        # host's memory.
        self._location = "cuda" if provider == _CUDA else "cpu"

    def _choose_provider(self, device: str) -> tuple[str, str]:
        """The execution provider's name, and why it is taken."""
        offered = self._runtime.get_available_providers()
        if device == "auto":
            if _CUDA not in offered:
                return _CPU, "this ONNX Runtime has no CUDA"
            try:
                self._open_session("ingest", _CUDA)
            except EngineError as error:
                logger.warning("CUDA is not used: %s", error)
                return _CPU, "CUDA does not start on this machine"
            return _CUDA, "CUDA is there"
        provider = {"cpu": _CPU, "cuda": _CUDA}.get(device, device)
        if provider not in offered:
            hint = (
                "pip uninstall onnxruntime && pip install 'rbvsr-deploy[cuda]', or "
                if device == "cuda"
                else ""
            )
            raise EngineError(
                f"device '{device}' is not to be had: this ONNX Runtime offers "
                f"{', '.join(offered)}; "
                f"{hint}use --device cpu"
            )
        return provider, f"--device {device}"

    def _open_session(self, name: str, provider: str) -> Any:
        ort = self._runtime
        if provider == _CUDA and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # finds the CUDA libraries that pip installs beside it
        options = ort.SessionOptions()
        options.log_severity_level = (
            4 if provider == _CUDA else 3
        )  # a missing driver is told by the error below
        providers = [provider] if provider == _CPU else [provider, _CPU]
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
                f"{provider} did not start here (no driver or no library for it): use --device cpu"
            )
        self._check_io(name, session)
        return session

    def _check_io(self, name: str, session: Any) -> None:
        """The graph in the file is the one the manifest describes."""
        described = self._bundle.manifest.graphs[name]
        for side, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            got = [(value.name, list(value.shape)) for value in values]
            want = [(item["name"], item["shape"]) for item in described[side]]
            if got != want:
                raise EngineError(
                    f"graph '{name}' of '{self._bundle.path}' has the {side} {got} where {want} "
                    "belong: "
                    "it is of another model; export the checkpoint again"
                )

    def run(self, graph: str, **arrays: Array) -> tuple[Array, ...]:
        try:
            session = self._sessions[graph]
        except KeyError:
            raise EngineError(
                f"there is no graph '{graph}'; open are {', '.join(self._sessions) or 'none'}"
            ) from None
        binding = session.io_binding()
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, array)
        for item in GRAPHS[graph].outputs:
            binding.bind_output(item.name, self._location)
        try:
            session.run_with_iobinding(binding)
        except Exception as error:
            raise EngineError(
                f"graph '{graph}' failed on {self._provider}: {first_line(error)}"
            ) from error
        return tuple(binding.get_outputs())

    def zeros(self, shape: tuple[int, ...], *, dtype: str) -> Array:
        return self.upload(np.zeros(shape, dtype))

    def upload(self, array: NDArray[Any]) -> Array:
        return self._runtime.OrtValue.ortvalue_from_numpy(
            np.ascontiguousarray(array), self._location
        )

    def download(self, array: Array) -> NDArray[Any]:
        values: NDArray[Any] = array.numpy()
        return values

    def describe(self) -> Description:
        return Description(
            engine="onnxruntime",
            version=self._runtime.__version__,
            device={_CPU: "cpu", _CUDA: "cuda"}.get(self._provider, self._provider),
            precision=self.network.precision,
            model=self._bundle.path.name,
            reason=self._reason,
        )

    def close(self) -> None:
        self._sessions = {}

    def __enter__(self) -> OnnxRuntimeEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
