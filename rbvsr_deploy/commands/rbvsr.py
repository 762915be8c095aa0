"""``rbvsr``: every command under one name, loaded when it is called."""

from __future__ import annotations

from importlib import import_module

import click

from rbvsr_deploy.commands._common import VERSION

__all__ = ["rbvsr"]

COMMANDS = {
    "run": "run:run",
    "info": "info:info",
    "export": "export:export",
    "build": "build:build",
    "compare": "compare:compare",
    "eval": "evaluate:evaluate",
    "train": "train:train",
    "degradations": "degradations:degradations",
}
"""Name of a command, in the order of ``rbvsr --help`` -> module and function."""


class _LazyGroup(click.Group):
    """Imports a command's module when the command is called or listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"rbvsr_deploy.commands.{module}"), function)
        return command


@click.group(cls=_LazyGroup)
@VERSION
def rbvsr() -> None:
    """Upscale real-world video four times with RealBasicVSR, and everything around it."""
