"""Shared options of the commands, and how they print results and report errors.

An error of the library becomes one line and an exit code: 0 success, 1 failure, 2 wrong usage, 130
interrupted by Ctrl-C. Everything heavy is imported inside the command that needs it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import sys
import traceback
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import click

from rbvsr_deploy.commands._hints import with_options
from rbvsr_deploy.commands._process import (
    INTERRUPTED,
    discard,
    exit_if_signalled,
    exit_on_signals,
    prepare_streams,
)
from rbvsr_deploy.errors import MissingDependencyError, RbvsrError
from rbvsr_deploy.printable import printable
from rbvsr_deploy.version import __version__

__all__ = [
    "JSON",
    "PATH",
    "VERBOSE",
    "VERSION",
    "Command",
    "Count",
    "FloatRange",
    "command_errors",
    "memory_size",
    "report",
    "require",
    "show",
    "show_json",
]

PATH = click.Path(path_type=Path)
VERSION = click.version_option(__version__, package_name="rbvsr-deploy")
VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Show more detail.")
JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on standard output."
)

_PASSED_THROUGH = (
    SystemExit,
    click.ClickException,
    click.exceptions.Exit,
    click.Abort,
    BrokenPipeError,
)
"""Exceptions that click itself turns into an exit code."""


class Count(click.types.IntParamType):
    """A whole number up to a limit that is far beyond any use, and that the help leaves out.

    Args:
        least: smallest number allowed.
        most: largest number allowed.
    """

    def __init__(self, least: int = 1, most: int = 10**9) -> None:
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number: int = super().convert(value, param, ctx)
        if not self._least <= number <= self._most:
            allowed = f"a number from {self._least} to {self._most}"
            self.fail(f"{number} is out of range: use {allowed}.", param, ctx)
        return number


class FloatRange(click.FloatRange):
    """A range of numbers that does not contain NaN."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


def memory_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Parse the value of an option that takes a memory size, such as 4GiB, into bytes."""
    from rbvsr_deploy.units import parse_bytes

    try:
        return None if value is None else parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


class Command(click.Command):
    """A command that ends with one line and an exit code even while its options are parsed."""

    def main(self, *args: Any, **settings: Any) -> Any:
        prepare_streams()
        with _one_line_errors(verbose=False):
            return super().main(*args, **settings)


class _Echo(logging.Handler):
    """Writes log records to the current standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        _print_line(self.format(record))


@contextlib.contextmanager
def command_errors(*, verbose: bool = False) -> Iterator[None]:
    """Turn errors and signals inside the block into one line and an exit code.

    Args:
        verbose: also print the traceback of an error, and the library's messages of level INFO.
    """
    logging.basicConfig(
        format="%(message)s",
        level=logging.INFO if verbose else logging.WARNING,
        handlers=[_Echo()],
    )
    with _one_line_errors(verbose=verbose):
        yield


@contextlib.contextmanager
def _one_line_errors(*, verbose: bool) -> Iterator[None]:
    with exit_on_signals() as received:
        try:
            yield
            exit_if_signalled()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                received.append(signal.SIGINT)
            if received:  # some libraries turn an interruption into an error of their own
                first = received[0]
                received.clear()
                _print_line(INTERRUPTED)
                sys.exit(128 + first)
            if isinstance(error, _PASSED_THROUGH):
                raise
            if verbose:
                report(traceback.format_exc())
            _fail(_sentence(error, verbose=verbose))


def _sentence(error: BaseException, *, verbose: bool) -> str:
    """Describe an error to the user, in one sentence."""
    if isinstance(error, RbvsrError):
        return with_options(error)
    if isinstance(error, MemoryError):
        context = click.get_current_context(silent=True)
        if context is not None and "memory" in context.params:
            return "out of memory: lower --memory"
        return "out of memory: close other programs, or use a machine with more memory"
    if isinstance(error, OSError) and error.strerror:
        return f"system error: {error.strerror}{f': {error.filename}' if error.filename else ''}"
    what = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
    how = "" if verbose else "run with -v for the traceback, and "
    return f"internal error: {what}; {how}please report it"


def _fail(message: str) -> NoReturn:
    report(f"Error: {' '.join(message.split())}")
    sys.exit(1)


def report(line: str) -> None:
    """Print a line on standard error; if that fails, the work continues without it.

    Raises:
        SystemExit: the command received a signal to end, and a library has discarded the exception.
    """
    exit_if_signalled()
    _print_line(line)


def _print_line(line: str) -> None:
    try:
        click.echo(printable(line), err=True)
    except OSError:
        discard(2)


def show(text: str, *, err: bool = False) -> None:
    """Print a result; if that fails, the command ends with one sentence."""
    try:
        click.echo(printable(text), err=err)
    except OSError as error:
        discard(2 if err else 1)
        _fail(f"the work is done, but its result cannot be printed ({error.strerror})")


def show_json(value: Any) -> None:
    """Print a result as JSON, with null for numbers that are not finite."""
    show(json.dumps(_finite(value), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def require(package: str, *, extra: str, purpose: str) -> None:
    """Check that an optional package is installed, before long work begins.

    Raises:
        MissingDependencyError: it is not installed.
    """
    if find_spec(package) is None:
        raise MissingDependencyError(package, extra=extra, purpose=purpose)
