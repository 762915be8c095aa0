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

from typing import TYPE_CHECKING, Any

from rbvsr_deploy.version import __version__

if TYPE_CHECKING:
    from rbvsr_deploy.upscaler import Upscaler
    from rbvsr_deploy.video.options import ReadOptions, WriteOptions

__all__ = ["ReadOptions", "Upscaler", "WriteOptions", "__version__"]


def __getattr__(name: str) -> Any:
    # Loads NumPy and more, so only on request.
    if name == "Upscaler":
        from rbvsr_deploy.upscaler import Upscaler

        return Upscaler
    if name in ("ReadOptions", "WriteOptions"):
        from rbvsr_deploy.video import options

        return getattr(options, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
