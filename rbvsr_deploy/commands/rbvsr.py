"""``rbvsr``: all commands under one name, each imported when it is called."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module

import click

from rbvsr_deploy.commands._common import VERSION, Command

__all__ = ["rbvsr"]

COMMANDS = {
    "run": "run:run",
    "web": "web:web",
    "info": "info:info",
    "export": "export:export",
    "build": "build:build",
    "compare": "compare:compare",
    "bench": "bench:bench",
    "eval": "evaluate:evaluate",
    "train": "train:train",
    "degradations": "degradations:degradations",
}
"""Name of a command, in the order of ``rbvsr --help`` -> module and function."""


class _LazyGroup(Command, click.Group):
    """Imports a command's module when the command is called or listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"rbvsr_deploy.commands.{module}"), function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"use {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command '{name}': {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # click's own list cuts the sentences to the width of the terminal.
        commands = [(name, self.get_command(ctx, name)) for name in COMMANDS]
        with formatter.section("Commands"):
            formatter.write_dl([(n, c.get_short_help_str(limit=200)) for n, c in commands if c])


@click.group(cls=_LazyGroup)
@VERSION
def rbvsr() -> None:
    """Upscale real-world video by four with RealBasicVSR, on any machine."""
