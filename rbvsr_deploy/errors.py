"""The errors a caller may want to catch.

::

    RbvsrError                      anything this package refuses or fails at: one sentence
    ├── CheckpointError             a checkpoint that is no (Real)BasicVSR, or unsafe to load
    ├── BundleError                 a ``model.plan`` that is missing, damaged, foreign or too new
    ├── ExportError                 a graph not exported, or one that differs from the model
    ├── EngineError                 an engine that cannot be opened, or failed while running
    │   ├── DeviceMemoryError       the device has too little memory left: less at once may do
    │   └── MissingDependencyError  an optional package is not installed; the extra is named
    └── MediaError                  a picture or video that cannot be read or written

Messages say what came, what is allowed and what to do. Bad arguments of Python calls stay
``ValueError``/``TypeError``.
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "CheckpointError",
    "DeviceMemoryError",
    "EngineError",
    "ExportError",
    "MediaError",
    "MissingDependencyError",
    "RbvsrError",
    "first_line",
]


class RbvsrError(Exception):
    """Base class: the command line prints the message as one line and exits with 1."""


class CheckpointError(RbvsrError):
    """The checkpoint cannot be read, is unsafe to read, or does not describe this network."""


class BundleError(RbvsrError):
    """The bundle is missing, damaged, foreign or of a newer format."""


class ExportError(RbvsrError):
    """A graph could not be exported, or its results differ from the torch model's."""


class EngineError(RbvsrError):
    """An engine could not be opened or failed while running a graph."""


class DeviceMemoryError(EngineError):
    """The device has too little memory left for what was asked of it; less at once may do."""


class MissingDependencyError(EngineError):
    """An optional package is not installed.

    Args:
        package: import name of the missing package.
        extra: the extra of this project that brings it.
        purpose: what needed it, as the subject of the sentence.
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed: "
            f"pip install 'rbvsr-deploy[{extra}]'"
        )


class MediaError(RbvsrError):
    """A video or picture could not be read or written."""


def first_line(error: BaseException) -> str:
    """What a foreign error says, cut to its first line; the name of its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
