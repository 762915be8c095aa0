"""The pages in docs/: what they name exists. Commands there that need a GPU cannot be run here."""

from __future__ import annotations

import re
import shlex
from importlib import metadata
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
PROJECT = metadata.distribution("rbvsr-deploy")
SCRIPTS = {script.name: script for script in PROJECT.entry_points}


def commands(page: str) -> list[list[str]]:
    """Every command of ours, in blocks and in running text, in words, without redirections."""
    found = re.findall(r"(?:^|`)(rbvsr-\w+ [^`\n]*)", page, re.MULTILINE)
    plain = [re.split(r" [<>|] ", command)[0] for command in found]
    return [shlex.split(command, comments=True) for command in plain]


def parse(words: list[str]) -> None:
    command: click.Command = SCRIPTS[words[0]].load()
    command.make_context(words[0], words[1:])  # not run


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page: Path) -> None:
    """Every command and option exists and takes such a value."""
    for words in commands(page.read_text(encoding="utf-8")):
        parse(words)


def test_there_are_commands() -> None:
    """The search finds them, or the test above would hold for any page."""
    assert len([page for page in PAGES if commands(page.read_text(encoding="utf-8"))]) > 2


def test_a_wrong_option_would_be_found() -> None:
    (words,) = commands("`rbvsr-run video.mp4 --engines model.plan`")
    with pytest.raises(click.NoSuchOption):
        parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_exist(page: Path) -> None:
    """Links, and files named in the text."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    for name in re.findall(r"`(\w+(?:/\w+)+(?:\.py)?)`", text):
        assert (ROOT / name).exists(), name


def test_the_container_takes_what_there_is() -> None:
    """The extras its recipe installs exist, and its command is ours."""
    recipe = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    (extras,) = re.findall(r"/src\[([\w,]+)\]", recipe)
    assert set(extras.split(",")) <= set(PROJECT.metadata.get_all("Provides-Extra") or [])
    (entry,) = re.findall(r'ENTRYPOINT \["([\w-]+)"\]', recipe)
    assert entry in SCRIPTS
