"""Runs graphs on a device: bundles with TensorRT or ONNX Runtime, checkpoints with torch."""

from __future__ import annotations

if __name__ != "rbvsr_deploy.engines":
    raise ImportError(
        f"this folder is the package 'rbvsr_deploy.engines', but was imported as '{__name__}': "
        "install the project (pip install -e .) and import it by its full name"
    )

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rbvsr_deploy.engines.base import Description, Engine, Network
from rbvsr_deploy.errors import EngineError

if TYPE_CHECKING:
    from rbvsr_deploy.bundle import Bundle

__all__ = ["CHECKPOINT_SUFFIXES", "Description", "Engine", "Network", "open_engine"]

logger = logging.getLogger(__name__)

CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def open_engine(
    model: Path,
    *,
    device: str = "auto",
    size: Callable[[], tuple[int, int]] | None = None,
    trust_engines: bool = False,
    report: Callable[[str], None] = lambda line: None,
    progress: Callable[[str, str, int, int], None] = lambda graph, phase, step, steps: None,
) -> Engine:
    """Open the engine that fits a model file and this machine.

    Args:
        model: a bundle (``model.plan``), run by TensorRT or ONNX Runtime; or a checkpoint, run by
            torch as the reference.
        device: of a bundle: "auto" (TensorRT, else CUDA, else the CPU), "tensorrt" (or
            TensorRT-RTX), "cuda", "cpu", "openvino", "webgpu", or an ONNX Runtime execution
            provider's name; of a checkpoint: "auto" or any torch device.
        size: gives H and W of the frames to come: TensorRT's engines for them are then compiled
            now, if there are none, and "auto" falls back if that fails; plug-ins of ONNX Runtime
            are measured at a similar size.
        trust_engines: whether to run the compiled engines of a bundle, whoever compiled them; they
            are machine code. Otherwise only those of this user are run.
        report: called with a line before TensorRT compiles, which may take minutes, or plug-ins
            are measured.
        progress: called with graph, phase, steps completed and total steps.

    Raises:
        BundleError, CheckpointError: the file is not what its suffix promises, damaged or unsafe.
        EngineError: the device is not available, or a package is missing.
    """
    match model.suffix:
        case suffix if suffix in CHECKPOINT_SUFFIXES:
            try:
                import torch  # noqa: F401
            except ImportError:
                from rbvsr_deploy.errors import MissingDependencyError

                raise MissingDependencyError(
                    "torch",
                    extra="export",
                    purpose=f"running the checkpoint '{model.name}' directly",
                ) from None
            from rbvsr_deploy.checkpoint import load_checkpoint
            from rbvsr_deploy.engines.pytorch import TorchEngine

            loaded = load_checkpoint(model)
            return TorchEngine(
                loaded.model,
                name=model.name,
                device=device,
                refine_threshold=loaded.refine_threshold,
            )
        case _:
            from rbvsr_deploy.bundle import open_bundle
            from rbvsr_deploy.engines.onnx_runtime import OnnxRuntimeEngine

            bundle = open_bundle(model)
            if device not in ("auto", "tensorrt"):
                return OnnxRuntimeEngine(bundle, device=device, size=size, report=report)
            from rbvsr_deploy.engines.tensorrt.open import open_tensorrt

            reason = "TensorRT is available" if device == "auto" else "TensorRT was requested"
            try:
                return open_tensorrt(
                    bundle,
                    size=size,
                    reason=reason,
                    trust_engines=trust_engines,
                    report=report,
                    progress=progress,
                )
            except EngineError as error:
                if device == "tensorrt":
                    raise
                logger.log(logging.WARNING if _has_gpu() else logging.INFO, "%s", error)
                return OnnxRuntimeEngine(
                    bundle,
                    size=size,
                    beside=_why_not_tensorrt(bundle, error),
                    report=report,
                )


def _has_gpu() -> bool:
    """Return whether CUDA finds a GPU: then its user wants to know why it is not used."""
    from rbvsr_deploy.engines.cuda.open import open_driver

    try:
        open_driver()
    except EngineError:
        return False
    return True


def _why_not_tensorrt(bundle: Bundle, error: EngineError) -> str:
    """Return a clause for the description, if it is useful; the log contains the remedy."""
    from rbvsr_deploy.engines.tensorrt.flavours import installed_flavours

    what, _, _ = str(error).partition(": ")
    if not bundle.manifest.engine_sets:
        return f"no TensorRT, as {what}" if installed_flavours() else ""
    held = {s.compute_capability for s in bundle.manifest.engine_sets}
    capabilities = ", ".join(sorted(held, key=float))
    return f"the bundle's engines for compute capability {capabilities} are not used, as {what}"
