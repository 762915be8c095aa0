"""Tests the ``rbvsr`` group and the help of every command."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import click
import pytest
from click.testing import CliRunner, Result

from rbvsr_deploy.commands.rbvsr import COMMANDS, rbvsr

SCRIPTS = {
    script.name.removeprefix("rbvsr-"): script
    for script in metadata.distribution("rbvsr-deploy").entry_points
    if script.name.startswith("rbvsr-")
}


def call(*arguments: str, width: int = 80) -> Result:
    return CliRunner(env={"COLUMNS": str(width)}).invoke(rbvsr, arguments)


def command(name: str) -> click.Command:
    found = rbvsr.get_command(click.Context(rbvsr), name)
    assert found is not None
    return found


def test_every_script_is_a_command() -> None:
    """The group offers what is installed as ``rbvsr-*``."""
    assert len(SCRIPTS) >= 7
    assert SCRIPTS.keys() <= COMMANDS.keys()


@pytest.mark.parametrize("width", [50, 80, 200])
def test_help_lists_every_command(width: int) -> None:
    """Each with its whole first sentence, at any width of the terminal."""
    result = call("--help", width=width)
    assert result.exit_code == 0
    assert "..." not in result.stdout.partition("Commands:")[2]
    listed = " ".join(result.stdout.partition("Commands:")[2].split())
    for name in COMMANDS:
        sentence = (command(name).help or "").partition("\n\n")[0]
        assert sentence.endswith(".")
        assert len(sentence) <= 60  # one line of a terminal of 80 columns
        assert f"{name} {sentence.removesuffix('.')}" in listed


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_that_of_its_script(name: str) -> None:
    """Only the usage line differs."""
    of_group = call(name, "--help")
    assert of_group.exit_code == 0
    usage, rest = of_group.stdout.split("\n", 1)
    assert usage.startswith(f"Usage: rbvsr {name} ")
    if name in SCRIPTS:
        of_script = CliRunner(env={"COLUMNS": "80"}).invoke(SCRIPTS[name].load(), ["--help"])
        assert of_script.stdout.split("\n", 1)[1] == rest


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_described(name: str) -> None:
    """A sentence for each, and a value named after what it means instead of its type."""
    for option in command(name).params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            text = option.help.partition("  [default")[0]
            assert text[0].isupper(), option.name
            assert text.endswith("."), option.name
    shown = call(name, "--help").stdout
    for kind in ("INTEGER", "FLOAT", "TEXT", "RANGE"):
        assert kind not in shown


@pytest.mark.parametrize(
    ("wrong", "right"), [("rn", "run"), ("evaluate", "eval"), ("bild", "build"), ("Train", "train")]
)
def test_a_misspelt_command_is_answered_with_the_closest(wrong: str, right: str) -> None:
    """A usage error that names it."""
    result = call(wrong, "--help")
    assert result.exit_code == 2
    assert f"Error: no command '{wrong}': did you mean '{right}'?" in result.stderr


def test_an_unknown_command_is_answered_with_all() -> None:
    """A usage error that names every command; options of the group itself are not commands."""
    result = call("xyz")
    assert result.exit_code == 2
    assert "no command 'xyz': use run, web, info, export," in result.stderr
    assert "No such option" in call("--xyz").stderr


def test_a_command_imports_no_other() -> None:
    """Only the module of the command that is called is imported."""
    program = (
        "import sys\n"
        "from rbvsr_deploy.commands.rbvsr import rbvsr\n"
        "rbvsr(['info', '--help'], standalone_mode=False)\n"
        "modules = [name for name in sys.modules if name.startswith('rbvsr_deploy.commands.')]\n"
        "print('\\n' + ' '.join(sorted(name.rpartition('.')[2] for name in modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "_common _hints _process info rbvsr"
