"""The command line: one module per command; names of shared modules begin with an underscore.

These are the only modules that know click and rich: they parse, call the library and print.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType

__all__: list[str] = []


def _exit_on_interrupt(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Exit with 130 instead of a traceback on Ctrl-C while a command is still being imported."""
    if issubclass(kind, KeyboardInterrupt):
        os._exit(130)
    _show_error(kind, error, trace)


_show_error, sys.excepthook = sys.excepthook, _exit_on_interrupt
