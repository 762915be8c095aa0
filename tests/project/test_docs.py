"""Checks the project's pages: every command is run or says why not, every name in them exists."""

from __future__ import annotations

import ast
import contextlib
import importlib
import itertools
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from tests.support.pages import (
    PAGES,
    PROJECT,
    ROOT,
    SCRIPTS,
    Block,
    blocks,
    call_command,
    make_workspace,
    run_python,
)

BLOCKS = [block for page in PAGES for block in blocks(page)]
DOCS = sorted((ROOT / "docs").glob("*.md"))
BY_CI = ("make ", ".ci/run")
BY_THE_DEMO = "pip install '.[cpu]'"
"""``make demo`` installs the package in this way into an empty environment."""


def ids(value: object) -> str:
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else str(value)


def to_run(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.not_run is None]


# ------------------------------------------------------------------------------------ commands run


@pytest.mark.slow
@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("page", [page for page in DOCS if any(to_run(page))], ids=ids)
def test_examples_run(page: Path, tmp_path: Path, tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    """The shell commands and Python programs of a page succeed, in order, in one folder."""
    folder = make_workspace(tmp_path, checkpoint=tiny_checkpoint, bundle=tiny_bundle)
    for language, group in itertools.groupby(to_run(page), key=lambda block: block.language):
        run = list(group)
        if language == "python":
            run_python(*(block.text for block in run), folder=folder)
        for command in (command for block in run for command in block.commands):
            if not command.startswith((*BY_CI, BY_THE_DEMO)):
                call_command(command, folder)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.not_run], ids=str)
def test_examples_that_cannot_run(block: Block) -> None:
    """They are skipped for the reason that the page states, after their syntax was checked."""
    if block.language == "python":
        ast.parse(block.text)
    for command in block.commands:
        if command.split()[0] in SCRIPTS or "benchmarks/" in command:
            parse(shlex.split(command))
    pytest.skip(f"{block.not_run}")


def test_commands_for_ci() -> None:
    """CI runs every make target that a page names without a reason not to, and the demo installs as
    the pages say.
    """
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make ([\w -]+)$", script, re.MULTILINE))
    run_by_ci = {target for line in targets for target in line.split()}
    named = [c for b in BLOCKS if b.not_run is None for c in b.commands if c.startswith("make ")]
    assert len(named) > 3
    assert {target for command in named for target in command.split()[1:2]} <= run_by_ci
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "pip install --quiet --upgrade '.[cpu]'" in makefile


# ------------------------------------------------------------------------- commands that are parsed


def parse(words: list[str]) -> None:
    """Parse a command without running it.

    Raises:
        click.UsageError: it has an option or a value that does not exist.
    """
    words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    if words[0] == "python":
        program = Path(words[1]).stem
        sys.path.insert(0, str(ROOT / "benchmarks"))
        try:
            command: click.Command = importlib.import_module(program).main
        finally:
            sys.path.remove(str(ROOT / "benchmarks"))
        words = words[1:]
    else:
        module, function = SCRIPTS[words[0]].split(":")
        command = getattr(importlib.import_module(module), function)
    arguments = words[1:]
    while isinstance(command, click.Group) and not arguments[0].startswith("-"):
        name, *arguments = arguments
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"{words[0]} has no command {name}"
        command = found
    # A page may name files that do not exist here, but every other value must be valid.
    for parameter in command.params:
        if isinstance(parameter.type, click.Path):
            parameter.type.exists = False
    with contextlib.suppress(click.exceptions.Exit):  # of --help and --version
        command.make_context(words[0], arguments)


def inline_commands(page: Path) -> list[list[str]]:
    """Return the commands in running text, in words, without what they are piped to."""
    found = re.findall(r"`(rbvsr(?:-\w+)? [^`\n]*)`", page.read_text(encoding="utf-8"))
    plain = [re.split(r" [<>|] ", command)[0] for command in found]
    return [shlex.split(command, comments=True) for command in plain if "…" not in command]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_in_running_text(page: Path) -> None:
    """Every command, option and value exists."""
    if "MODEL_CARD" in page.name or "CHANGELOG" in page.name:
        return  # what was true of an earlier version
    for words in inline_commands(page):
        if words[0] in SCRIPTS:
            with contextlib.suppress(click.MissingParameter):  # the text need not name an input
                parse(words)


def test_a_wrong_option_would_be_found() -> None:
    for command in (
        "rbvsr-run video.mp4 --engines model.plan",
        "rbvsr degradations video.mp4 --sed 3",
        "python benchmarks/overlap.py clip.mp4 --repeat 3",
    ):
        with pytest.raises(click.NoSuchOption):
            parse(command.split())


# ---------------------------------------------------------------------------------- files and names


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_and_files_exist(page: Path) -> None:
    """Links, and files named in the text."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    for name in re.findall(r"`(\w+(?:/\w+)+(?:\.py)?)`", re.sub(r"`[^`]* of mmagic", "", text)):
        if name.split("/")[0] in ("rbvsr_deploy", "export", "engines", "training", "tests"):
            assert (ROOT / name).exists(), name


def test_install_names_an_extra_that_exists() -> None:
    """Every ``pip install 'rbvsr-deploy[…]'`` and ``'.[…]'`` names existing extras, in quotes."""
    extras = set(PROJECT["optional-dependencies"])
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.findall(r"(?:rbvsr-deploy|[ '\"]\.)\[([\w,-]+)\]", text):
            assert set(found.split(",")) <= extras, f"{page}: {found}"
        assert not re.search(r'pip install (-e )?"?\.\[', text), f"{page}: single quotes"


def test_the_recipe_in_the_training_data_page() -> None:
    """Its keys exist and its values are allowed."""
    from rbvsr_deploy.training.data.training_set import DataConfig

    (block,) = (b for b in blocks(ROOT / "docs" / "training-data.md") if b.language == "toml")
    msgspec.convert(msgspec.toml.decode(block.text)["data"], DataConfig)


def test_the_container_takes_what_there_is() -> None:
    """The extras its recipe installs exist, and its command is ours."""
    recipe = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    (extras,) = re.findall(r"/src\[([\w,]+)\]", recipe)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    (entry,) = re.findall(r'ENTRYPOINT \["([\w-]+)"\]', recipe)
    assert entry in SCRIPTS


# ----------------------------------------------------------------------------------------- messages


def messages() -> Iterator[str]:
    """Yield every text in the sources of the package, with a NUL in place of each value."""
    for folder in ("rbvsr_deploy", "export", "engines", "training"):
        for path in (ROOT / folder).rglob("*.py"):
            if not path.is_symlink():
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                    if isinstance(node, ast.JoinedStr):
                        parts = (
                            n.value if isinstance(n, ast.Constant) else "\0" for n in node.values
                        )
                        yield "".join(map(str, parts))
                    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                        yield node.value.replace("%s", "\0").replace("%d", "\0")


@pytest.mark.slow
def test_messages_in_troubleshooting_are_the_programs_own() -> None:
    """Every message quoted on the page, where … stands for something, is in the sources."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    assert len(quoted) > 25
    known = list(messages())
    missing = []
    for message in quoted:
        pattern = ".*".join(re.escape(part) for part in message.split("…"))
        if not any(re.search(pattern, text, re.DOTALL) for text in known):
            missing.append(message)
    assert missing == []
