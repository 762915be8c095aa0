"""RealBasicVSR deployment: turns a checkpoint into one ``model.plan`` and upscales any video by
four with it.

The modules and packages, in the order a model and then a frame passes through them:

- :mod:`rbvsr_deploy.model`, :mod:`rbvsr_deploy.checkpoint`: the network and its weights (needs
  torch).
- :mod:`rbvsr_deploy.export`: checkpoint to seven ONNX graphs to bundle (needs torch and onnx).
- :mod:`rbvsr_deploy.bundle`: the ``model.plan`` file.
- :mod:`rbvsr_deploy.engines`: runs the graphs on a device.
- :mod:`rbvsr_deploy.video`: reads and writes videos and images.
- :mod:`rbvsr_deploy.runtime`: the recurrent runtime, from input frames to upscaled frames.
- :mod:`rbvsr_deploy.jobs`: upscales one file or several.
- :mod:`rbvsr_deploy.upscaler`: the Python API.
- :mod:`rbvsr_deploy.commands`: the commands.

Importing this package does not load torch, onnx, onnxruntime, tensorrt or av.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rbvsr_deploy.version import __version__

if TYPE_CHECKING:
    from rbvsr_deploy.engines import open_engine
    from rbvsr_deploy.errors import (
        BundleError,
        CheckpointError,
        DeviceMemoryError,
        EngineError,
        ExportError,
        MediaError,
        MissingDependencyError,
        RbvsrError,
    )
    from rbvsr_deploy.jobs.summary import Summary
    from rbvsr_deploy.upscaler import Upscaler
    from rbvsr_deploy.video.options import ReadOptions, WriteOptions

__all__ = [
    "BundleError",
    "CheckpointError",
    "DeviceMemoryError",
    "EngineError",
    "ExportError",
    "MediaError",
    "MissingDependencyError",
    "RbvsrError",
    "ReadOptions",
    "Summary",
    "Upscaler",
    "WriteOptions",
    "__version__",
    "open_engine",
]

# Where the other names come from. Their modules load NumPy and more, so only on request.
_MODULES = {
    "Summary": "rbvsr_deploy.jobs.summary",
    "Upscaler": "rbvsr_deploy.upscaler",
    "ReadOptions": "rbvsr_deploy.video.options",
    "WriteOptions": "rbvsr_deploy.video.options",
    "open_engine": "rbvsr_deploy.engines",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "rbvsr_deploy.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
