"""Where the commands meet the user: shared options, and the library's errors turned into one line
and an exit code: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C.

With ``progress.py`` the modules of this folder are the only ones that know click and rich: they
parse, call the library and show. Everything heavy is imported inside the command that needs it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import click

from rbvsr_deploy import __version__
from rbvsr_deploy.errors import MissingDependencyError, RbvsrError
from rbvsr_deploy.printable import printable

__all__ = ["JSON", "PATH", "VERBOSE", "VERSION", "edge", "memory_size", "require", "say", "show"]

PATH = click.Path(path_type=Path)
VERSION = click.version_option(__version__, package_name="rbvsr-deploy")
VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Say more about what is done.")
JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on standard output."
)


def memory_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Callback of an option that takes a size of memory, such as 4GiB."""
    from rbvsr_deploy.plan import parse_bytes

    try:
        return None if value is None else parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


class _Echo(logging.Handler):
    """Logs to standard error as it is at the time: a progress bar puts its own in the way, which
    writes above the bar.
    """

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(printable(self.format(record)), err=True)


@contextlib.contextmanager
def edge(*, verbose: bool = False) -> Iterator[None]:
    """The library's errors become one line and an exit code."""

    def stop(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)  # unwinds, so that unfinished outputs are removed

    signal.signal(signal.SIGTERM, stop)
    logging.basicConfig(
        format="%(message)s",
        level=logging.INFO if verbose else logging.WARNING,
        handlers=[_Echo()],
    )
    try:
        yield
    except RbvsrError as error:
        if verbose:
            logging.getLogger(__name__).info("where it happened:", exc_info=True)
        _fail(str(error))
    except MemoryError:
        _fail("the memory of this machine does not suffice: allow less with --memory")
    except KeyboardInterrupt:
        click.echo("Stopped; the same command continues where it can.", err=True)
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    click.echo(f"Error: {printable(' '.join(message.split()))}", err=True)
    sys.exit(1)


def say(line: str) -> None:
    """Print a line about the work, on standard error."""
    click.echo(printable(line), err=True)


def show(text: str, *, err: bool = False) -> None:
    """Print a result; where it cannot be, the command ends with a sentence that says so."""
    try:
        click.echo(printable(text), err=err)
    except OSError as error:
        # What waits to be printed would fail again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2 if err else 1)
        _fail(f"the work is done, and its result cannot be printed ({error.strerror})")


def require(package: str, *, extra: str, purpose: str) -> None:
    """Refuse to begin without a package that will be needed.

    Raises:
        MissingDependencyError: it is not installed.
    """
    if find_spec(package) is None:
        raise MissingDependencyError(package, extra=extra, purpose=purpose)
