"""Tests that error messages name a command's options, and only where there are such."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from rbvsr_deploy.commands._hints import with_options
from rbvsr_deploy.commands.compare import compare
from rbvsr_deploy.commands.run import run
from rbvsr_deploy.errors import EngineError, RbvsrError
from rbvsr_deploy.runtime.memory_plan import choose_plan
from tests.project.test_layers import FILES
from tests.support.engine_doubles import ArithmeticEngine


@click.command()
@click.option("--max-scene", type=int)
@click.option("-m", "--memory")
@click.option("--device-name", "device")
@click.argument("lookahead", required=False)
def command(**options: object) -> None:
    error = EngineError("it failed", parameters=("device", "memory", "lookahead", "precision"))
    click.echo(with_options(error))
    click.echo(with_options(RbvsrError("nothing helps")))


def test_options_of_the_running_command_are_named() -> None:
    """In the error's order; arguments and unknown names are left out."""
    lines = CliRunner().invoke(command).stdout.splitlines()
    assert lines == ["it failed (--device-name, -m)", "nothing helps"]


def test_without_a_command_the_message_is_the_librarys() -> None:
    error = EngineError("it failed", parameters=("memory",))
    assert with_options(error) == str(error) == "it failed"


def test_too_little_memory_in_a_command(sample: Path, tiny_bundle: Path) -> None:
    """The Python caller reads a neutral sentence; the commands add their flag to it."""
    with pytest.raises(RbvsrError, match=r"allow more, or scale the input down$") as caught:
        choose_plan(ArithmeticEngine().network, height=9, width=9, memory=1, longest=1, on_cpu=True)
    assert caught.value.parameters == ("memory",)
    model = f"{tiny_bundle}@cpu"
    commands: tuple[list[Any], ...] = (
        [
            run,
            sample,
            "--engine",
            tiny_bundle,
            "--device",
            "cpu",
            "-o",
            tiny_bundle.parent / "a.mkv",
        ],
        [compare, model, model, "--clip", sample],
    )
    for arguments in commands:
        command, *rest = arguments
        done = CliRunner().invoke(command, [*map(str, rest), "--memory", "1KiB"])
        assert done.exit_code == 1
        assert "allow more, or scale the input down (--memory)" in done.stderr


FLAG = re.compile(r"(?<![\w-])--[a-z]")
PIP = re.compile(r"pip install [^,;:]*")


@pytest.mark.slow
def test_library_messages_name_no_flags() -> None:
    """No text in the library holds an option of a command; pip's own may be part of an advice. The
    web page runs commands.
    """
    found = []
    for name, path in FILES.items():
        if name.startswith(("rbvsr_deploy.commands", "rbvsr_deploy.web")):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {
            id(node.value)
            for parent in ast.walk(tree)
            if isinstance(parent, ast.Module | ast.ClassDef | ast.FunctionDef)
            for node in parent.body
            if isinstance(node, ast.Expr)
        }
        found += [
            f"{name}:{node.lineno}: {node.value}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
            and FLAG.search(PIP.sub("", node.value))
        ]
    assert found == []
