"""The command line: one module per command; names of shared modules begin with an underscore.

These are the only modules that know click and rich: they parse, call the library and print.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

__all__: list[str] = []


# Ctrl-C while a command is still being imported: exit without a traceback. Where the interrupt hits
# a callback, Python would ignore it.


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        os._exit(130)
    _show_error(kind, error, trace)


def _unraisablehook(unraisable: UnraisableHookArgs) -> None:
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        os._exit(130)
    _show_ignored(unraisable)


_show_error, sys.excepthook = sys.excepthook, _excepthook
_show_ignored, sys.unraisablehook = sys.unraisablehook, _unraisablehook
