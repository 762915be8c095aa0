"""RealBasicVSR deployment: a checkpoint goes in, one ``model.plan`` comes out, any video comes out
four times larger.

The rooms, in the order a model and then a frame goes through them:

- :mod:`rbvsr_deploy.model`, :mod:`rbvsr_deploy.checkpoint`: the network and its weights (needs
  torch).
- :mod:`rbvsr_deploy.export`: checkpoint -> seven ONNX graphs -> bundle (needs torch and onnx).
- :mod:`rbvsr_deploy.bundle`: the ``model.plan`` file.
- :mod:`rbvsr_deploy.engines`: a graph on a device.
- :mod:`rbvsr_deploy.video`: video and pictures, in and out.
- :mod:`rbvsr_deploy.runtime`: the recurrent runtime, frames in and pictures out.
- :mod:`rbvsr_deploy.jobs`: a file or several.
- :mod:`rbvsr_deploy.upscaler`: the Python API.
- :mod:`rbvsr_deploy.commands`: the commands.

Importing this package loads none of torch, onnx, onnxruntime, tensorrt or av.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rbvsr_deploy.version import __version__

if TYPE_CHECKING:
    from rbvsr_deploy.upscaler import Upscaler
    from rbvsr_deploy.video.options import ReadOptions, WriteOptions

__all__ = ["ReadOptions", "Upscaler", "WriteOptions", "__version__"]


def __getattr__(name: str) -> Any:
    # Loads NumPy and more, so not before it is asked for.
    if name == "Upscaler":
        from rbvsr_deploy.upscaler import Upscaler

        return Upscaler
    if name in ("ReadOptions", "WriteOptions"):
        from rbvsr_deploy.video import options

        return getattr(options, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
