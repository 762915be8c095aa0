"""Runs one of this project's parsers on mutated files, led by code coverage (atheris).

atheris is in no extra: ``pip install atheris``, for Python 3.11 to 3.13 on Linux. A crash, a hang
of 10 seconds and more than 2 GiB of memory end the program and leave the input in this folder.
The corpus it finds can be kept in a folder and given again. ``tests/security/test_parsers.py`` runs
the same parsers on the seeds and a few simple mutations.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

_SLOWEST, _MEMORY = 10, 2048  # seconds, MiB


@click.command()
@click.argument("name")
@click.option("--seconds", default=3600, show_default=True, help="How long to run.")
@click.option("--corpus", type=click.Path(path_type=Path), help="Folder of further inputs.")
def main(name: str, seconds: int, corpus: Path | None) -> None:
    """Fuzz the parser NAME, such as scene-list."""
    import atheris

    with atheris.instrument_imports(include=["rbvsr_deploy"]):
        from tests.support.parsers import PARSERS, seeds_of
    if name not in PARSERS:
        raise click.UsageError(f"{name!r} is not one of {', '.join(map(repr, PARSERS))}")
    parse = PARSERS[name]
    with tempfile.TemporaryDirectory() as scratch:
        seeds = Path(scratch) / "seeds"
        seeds.mkdir()
        for number, data in enumerate(seeds_of(name)):
            (seeds / str(number)).write_bytes(data)
        folder = Path(scratch) / "work"
        folder.mkdir()
        with atheris.instrument_imports(include=["rbvsr_deploy"]):
            for data in seeds_of(name):  # imports what is imported late
                parse(data, folder)
        arguments = [sys.argv[0], f"-max_total_time={seconds}", f"-timeout={_SLOWEST}"]
        arguments += [f"-rss_limit_mb={_MEMORY}", "-print_final_stats=1", "-max_len=200000"]
        folders = [str(path) for path in (corpus, seeds) if path is not None]
        atheris.Setup(arguments + folders, lambda data: parse(data, folder))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
