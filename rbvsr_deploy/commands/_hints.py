"""Adds a command's own options to the library's error messages, which do not know them."""

from __future__ import annotations

import click

from rbvsr_deploy.errors import RbvsrError

__all__ = ["with_options"]


def with_options(error: RbvsrError) -> str:
    """Return the error's message, followed by the options of the running command that set the
    parameters it names.
    """
    context = click.get_current_context(silent=True)
    options = {
        parameter.name: parameter.opts[0]
        for parameter in (context.command.params if context is not None else ())
        if isinstance(parameter, click.Option)
    }
    found = [options[name] for name in error.parameters if name in options]
    return f"{error} ({', '.join(found)})" if found else str(error)
