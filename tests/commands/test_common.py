"""Tests how the commands report errors and print results."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import click
import pytest
from click.testing import CliRunner, Result

from rbvsr_deploy.bundle import open_bundle, write_bundle
from rbvsr_deploy.commands._common import Command, command_errors, show_json
from rbvsr_deploy.commands.info import info
from rbvsr_deploy.commands.rbvsr import COMMANDS, rbvsr
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE

ARGUMENTS = {
    "run": ["a.mp4"],
    "eval": ["a.mp4"],
    "build": ["a.plan"],
    "compare": ["a.plan", "b.plan", "--clip", "a.mp4"],
    "degradations": [__file__],
}
"""What a command needs before its options are read."""

BREAKABLE = {
    "run": ("rbvsr_deploy.engines.open_engine", ["a.mp4"]),
    "info": ("rbvsr_deploy.bundle.open_bundle", ["a.plan"]),
    "export": ("rbvsr_deploy.export.to_bundle.export_bundle", []),
    "build": ("rbvsr_deploy.engines.tensorrt.compile.compile_into_bundle", ["a", "--remove", "b"]),
    "compare": ("rbvsr_deploy.video.open_source", ["a.plan", "b.plan", "--clip", "a.mp4"]),
    "evaluate": ("rbvsr_deploy.training.evaluation.sequences.pair_up", ["a.mp4"]),
    "train": ("rbvsr_deploy.training.config.load_config", ["tiny-stage1", "--output", "a"]),
    "degradations": ("rbvsr_deploy.training.data.contact_sheet.write_contact_sheet", [__file__]),
}
"""Module of a command -> a function it calls, and arguments with which it does."""


def loaded(name: str) -> click.Command:
    command = rbvsr.get_command(click.Context(rbvsr), name)
    assert command is not None
    return command


@pytest.mark.parametrize("name", BREAKABLE)
def test_an_unexpected_error_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1 and how to report it; the traceback is shown with -v only."""
    function, arguments = BREAKABLE[name]

    def fail(*arguments: object, **options: object) -> NoReturn:
        raise LookupError("a bug\nof two lines")

    monkeypatch.setattr(function, fail)
    command = getattr(importlib.import_module(f"rbvsr_deploy.commands.{name}"), name)
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: internal error: LookupError: a bug; run with -v for the traceback, and please "
        "report it\n"
    )
    assert result.stdout == ""
    result = CliRunner().invoke(command, [*arguments, "-v"])
    assert result.exit_code == 1
    *trace, last = result.stderr.splitlines()
    assert trace[0] == "Traceback (most recent call last):"
    assert last == "Error: internal error: LookupError: a bug; please report it"


def test_an_unexpected_error_is_one_line_of_a_process() -> None:
    """Nothing else is printed, at the end of the process either."""
    program = (
        "import rbvsr_deploy.bundle\n"
        "def fail(path): assert path is None, path\n"
        "rbvsr_deploy.bundle.open_bundle = fail\n"
        "from rbvsr_deploy.commands.info import info; info(['a.plan'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: internal error: AssertionError: a.plan; run with -v for")
    assert done.stderr.count("\n") == 1


def call(error: BaseException) -> Result:
    """Run a command that raises an error."""

    @click.command(cls=Command)
    @click.option("--memory")
    def command(memory: str | None) -> NoReturn:
        with command_errors():
            raise error

    return CliRunner().invoke(command, [])


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MediaError("two\n  lines"), "two lines"),
        (MemoryError(), "out of memory: lower --memory"),
        (
            FileNotFoundError(2, "No such file or directory", "a.txt"),
            "system error: No such file or directory: a.txt",
        ),
        (OSError(28, "No space left on device"), "system error: No space left on device"),
        (
            EOFError(),
            "internal error: EOFError; run with -v for the traceback, and please report it",
        ),
        (
            ValueError("a\nb"),
            "internal error: ValueError: a; run with -v for the traceback, and please report it",
        ),
    ],
)
def test_errors_are_one_line(error: Exception, sentence: str) -> None:
    """Exit code 1, one line on standard error, nothing on standard output."""
    result = call(error)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: {sentence}\n"


@pytest.mark.parametrize(
    ("error", "code", "output"),
    [
        (SystemExit(3), 3, ""),
        (click.exceptions.Exit(4), 4, ""),
        (click.UsageError("wrong"), 2, "Error: wrong\n"),
        (click.Abort(), 1, "Aborted!\n"),
        (KeyboardInterrupt(), 130, "Interrupted; run the same command again to continue.\n"),
    ],
)
def test_exits_are_not_errors(error: BaseException, code: int, output: str) -> None:
    """They keep their code."""
    result = call(error)
    assert result.exit_code == code
    assert result.stderr.endswith(output)
    assert "internal error" not in result.stderr


def test_errors_while_options_are_parsed() -> None:
    """They end in one line, too."""

    def fail(*arguments: object) -> NoReturn:
        raise LookupError("in a callback")

    command = Command("test", params=[click.Option(["--size"], callback=fail)])
    result = CliRunner().invoke(command, ["--size", "1"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: internal error: LookupError: in a callback; run with")


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers that JSON does not have are null, at any depth."""
    bad = float("nan"), float("inf"), -float("inf")
    show_json({"a": bad, "b": [{"c": bad[0]}, 1.5], "d": "NaN", "e": None})
    expected = {"a": [None, None, None], "b": [{"c": None}, 1.5], "d": "NaN", "e": None}
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == expected


def test_a_manifest_with_nan_is_refused(tmp_path: Path) -> None:
    """Python's parser would accept it, and ``--json`` could not print it."""
    bundle = open_bundle(DEFAULT_BUNDLE)
    manifest = dataclasses.replace(bundle.manifest, verification={"psnr": float("nan")})
    write_bundle(tmp_path / "nan.plan", manifest, bundle.graphs())
    result = CliRunner().invoke(info, [str(tmp_path / "nan.plan"), "--json"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert "NaN" not in result.stderr


ABSURD = str(10**30)
INTEGERS = [
    (name, option.opts[0])
    for name in COMMANDS
    for option in loaded(name).params
    if isinstance(option, click.Option) and isinstance(option.type, click.types.IntParamType)
]
"""Every option of every command that takes a whole number."""


@pytest.mark.parametrize(("name", "option"), INTEGERS)
@pytest.mark.parametrize("value", [ABSURD, "-" + ABSURD, "9" * 5000])
def test_whole_numbers_have_a_range(name: str, option: str, value: str) -> None:
    """A number beyond any use is wrong usage, and not a defect or a run without an end."""
    result = CliRunner().invoke(rbvsr, [name, *ARGUMENTS.get(name, ()), option, value])
    assert result.exit_code == 2, result.output
    assert f"Invalid value for '{option}'" in result.stderr


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("run", "--lookahead", ABSURD),
        ("eval", "--only-frames", ABSURD),
        ("build", "--max-size", f"{ABSURD}x720"),
        ("build", "--compute-capability", f"{ABSURD}.0"),
        ("run", "--memory", f"{ABSURD}GiB"),
        ("run", "--start", ABSURD),
        ("run", "--end", f"{ABSURD}:00:00"),
        ("run", "--fps", ABSURD),
    ],
)
def test_numbers_in_texts_have_a_range(name: str, option: str, value: str) -> None:
    """The same for options that parse their numbers themselves."""
    result = CliRunner().invoke(rbvsr, [name, *ARGUMENTS.get(name, ()), option, value])
    assert result.exit_code == 2, result.output
    assert f"Invalid value for '{option}'" in result.stderr
