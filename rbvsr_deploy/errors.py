"""Defines the errors that a caller may want to catch.

::

    RbvsrError                      anything this package refuses or fails at, in one sentence
    ├── CheckpointError             not a (Real)BasicVSR checkpoint, or unsafe to load
    ├── BundleError                 a ``model.plan`` that is missing, damaged, foreign or too new
    ├── ExportError                 a graph cannot be exported, or differs from the model
    ├── EngineError                 an engine cannot be opened, or failed while running
    │   ├── DeviceMemoryError       the device ran out of memory: smaller arrays may fit
    │   └── MissingDependencyError  an optional package is not installed; names the extra
    └── MediaError                  an image or video cannot be read or written

Messages say what came, what is allowed and what to do; ``RbvsrError.parameters`` names arguments to
change where that helps. Invalid arguments of Python calls raise ``ValueError`` or ``TypeError``.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    """Base class of this package's errors; commands print its message and exit with 1.

    Args:
        message: one sentence, which names no option of a command.
        parameters: names of the arguments whose values may help, such as "memory"; a command adds
            its options of these names to the message.
    """

    def __init__(self, message: str, *, parameters: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.parameters = tuple(parameters)


class CheckpointError(RbvsrError):
    """The checkpoint cannot be read, is unsafe to read, or does not describe this network."""


class BundleError(RbvsrError):
    """The bundle is missing, damaged, foreign or of a newer format."""


class ExportError(RbvsrError):
    """A graph could not be exported, or its results differ from the torch model's."""


class EngineError(RbvsrError):
    """An engine could not be opened or failed while running a graph."""


class DeviceMemoryError(EngineError):
    """The device ran out of memory; smaller arrays may fit."""


class MissingDependencyError(EngineError):
    """An optional package is not installed.

    Args:
        package: import name of the missing package.
        extra: the extra of this project that installs it.
        purpose: what needs it, as the subject of the sentence.
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed: "
            f"pip install 'rbvsr-deploy[{extra}]'"
        )


class MediaError(RbvsrError):
    """A video or image could not be read or written."""


def first_line(error: BaseException) -> str:
    """Return the first line of a foreign error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
