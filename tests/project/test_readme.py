"""Checks README: every command and example is run, here or by CI, and gives what the page shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.pages import ROOT, blocks, make_workspace, run_command, run_python

BLOCKS = blocks(ROOT / "README.md")
COMMANDS = [command for block in BLOCKS if block.not_run is None for command in block.commands]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_bundle: Path
) -> Path:
    """A folder with the files that the page takes as given."""
    return make_workspace(
        tmp_path_factory.mktemp("readme"), checkpoint=tiny_checkpoint, bundle=tiny_bundle
    )


def numbers_replaced(line: str) -> str:
    """Return a line with every number, and the plural after it, made equal."""
    return re.sub(r"(scene|time)s\b", r"\1", re.sub(r"\d+(\.\d+)?", "N", line))


def test_the_page_is_short() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") < 140


@pytest.mark.slow
def test_commands_and_what_they_write(folder: Path) -> None:
    """All commands but those of make and pip succeed and write the files they name."""
    ran = 0
    for command in COMMANDS:
        if not command.startswith(("make ", "pip ")):
            run_command(command, folder)
            ran += 1
    assert ran >= 7
    written = "video_x4.mp4 larger.mkv video_x4.html excerpt.mp4 all.mp4 page.html upscaled.y4m"
    for name in written.split():
        assert (folder / name).stat().st_size > 0
    assert {p.name for p in (folder / "upscaled").iterdir()} == {"frames_x4", "image_x4.png"}


@pytest.mark.slow
def test_the_output_shown_is_what_one_sees(folder: Path) -> None:
    """Apart from numbers, the command's result reads as on the page."""
    (block,) = (block for block in BLOCKS if block.language == "console")
    (command,) = block.commands
    printed = run_command(f"{command} --overwrite", folder)
    assert numbers_replaced(printed.strip()) == numbers_replaced(block.outputs[-1])


@pytest.mark.slow
def test_python_example(folder: Path) -> None:
    (block,) = (block for block in BLOCKS if block.language == "python")
    assert run_python(block.text, folder=folder) == "10 frames\n"
    assert (folder / "from_python.mp4").stat().st_size > 0


def test_the_image_is_made_by_a_program() -> None:
    """The program that makes the documentation's images names the one at the top of the page."""
    first = re.search(r"!\[.+\]\(docs/images/(.+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert first is not None
    assert f'"{first[1]}"' in (ROOT / "docs" / "make_images.py").read_text(encoding="utf-8")
