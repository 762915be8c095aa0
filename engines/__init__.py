"""A graph of the network on a device: ONNX Runtime for bundles, torch for checkpoints."""

from __future__ import annotations

if __name__ != "rbvsr_deploy.engines":
    raise ImportError(
        f"this folder is the package 'rbvsr_deploy.engines', but was imported as '{__name__}': "
        "install the project (pip install -e .) and import it by its full name"
    )

from pathlib import Path

from rbvsr_deploy.engines.base import Description, Engine, Network

__all__ = ["CHECKPOINT_SUFFIXES", "Description", "Engine", "Network", "open_engine"]

CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def open_engine(model: Path, *, device: str = "auto") -> Engine:
    """Open the engine that fits a model file.

    Args:
        model: a bundle (``model.plan``), run by ONNX Runtime; or a checkpoint, run by torch as the
            reference.
        device: "auto", "cpu", "cuda", an ONNX Runtime execution provider's name, or for a
            checkpoint any torch device.

    Raises:
        BundleError, CheckpointError: the file is not what its suffix promises, damaged or unsafe.
        EngineError: the device is not to be had, or a package is missing.
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

            return OnnxRuntimeEngine(open_bundle(model), device=device)
