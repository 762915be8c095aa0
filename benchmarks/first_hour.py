"""Runs, on a machine with an NVIDIA GPU, everything that could not be tried without one.

The parts run in order and unattended, each for ten minutes at most, in a process of its own. After
each, everything found so far is written to ``first_hour.json`` and to a page, ``first_hour.md``.
If the program is interrupted, the same command continues after the last finished part.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click

HERE = Path(__file__).parent
SAMPLE = HERE.parent / "tests" / "data" / "sample.mp4"
LIMIT = 600.0
"""Seconds a part may take."""
_TAIL = 4000  # characters of a part's output that are kept

_FACTS = (
    *("name", "driver_version", "compute_cap", "memory.total", "memory.free"),
    *("clocks.max.sm", "clocks.max.memory", "power.limit", "pstate"),
)

Status = Literal["passed", "failed", "too slow", "left out"]


@dataclass(frozen=True)
class Part:
    """One part: a command whose exit status says whether it passed."""

    name: str
    title: str
    command: tuple[str, ...]
    """``{out}`` is the folder of results, ``{json}`` the file for the part's own figures."""
    needs: str = ""
    """A program without which the part is left out."""
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Outcome of a part."""

    status: Status
    seconds: float
    output: str
    """The end of what it printed."""
    figures: Any = None
    """Its JSON output."""


def _program(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, str(HERE / name), *arguments)


def _toolkit(command: str, *arguments: str) -> tuple[str, ...]:
    code = f"from rbvsr_deploy.commands.{command} import {command}; {command}()"
    return (sys.executable, "-c", code, *arguments)


_BUNDLE = "{out}/published.plan"

PARTS = (
    Part(
        "machine",
        "The machine",
        (
            "nvidia-smi",
            "--format=csv",
            f"--query-gpu={','.join(_FACTS)}",
        ),
        needs="nvidia-smi",
    ),
    Part(
        "tests",
        "The GPU tests",
        (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "default", "tests/gpu"),
        environment=(("RBVSR_REQUIRE_GPU", "1"),),
    ),
    Part(
        "published",
        "The published size with random weights, exported in float16",
        _program("gpu_checks.py", "publish", _BUNDLE),
    ),
    Part(
        "build",
        "Compiled for the default sizes",
        _toolkit("build", _BUNDLE, "--target", "auto", "-o", "{out}/default.plan"),
    ),
    Part(
        "build-960x540",
        "Compiled for at most 960x540",
        _toolkit(
            *("build", _BUNDLE, "--target", "auto", "--max-size", "960x540"),
            *("-o", "{out}/capped.plan"),
        ),
    ),
    *(
        Part(
            f"values-{size}",
            f"Values against ONNX Runtime on the CPU, {size}",
            _program("gpu_checks.py", "values", _BUNDLE, "--size", size, "--json", "{json}"),
        )
        for size in ("320x180", "854x480", "1920x1088")
    ),
    Part(
        "referee",
        "Values according to NVIDIA's Polygraphy",
        _toolkit(
            *("compare", _BUNDLE, "{out}/default.plan", "--clip", str(SAMPLE)),
            *("--frames", "3", "--referee", "--json"),
        ),
    ),
    Part(
        "batches",
        "Batches against single frames, bit by bit, 1280x720 and 1920x1080",
        _program("gpu_checks.py", "batches", _BUNDLE, "--json", "{json}"),
    ),
    Part(
        "repeat",
        "The same clip twice in one process, byte by byte",
        _program("gpu_checks.py", "repeat", _BUNDLE, "--json", "{json}"),
    ),
    Part(
        "bench",
        "Each graph, one frame at a time and whole scenes, 320x180",
        _toolkit("bench", "--engine", _BUNDLE, "--device", "tensorrt", "-o", "{json}"),
    ),
    Part(
        "int8",
        "int8 against float16, the compact model",
        _program("gpu_checks.py", "int8", "{out}", "--clip", str(SAMPLE), "--json", "{json}"),
    ),
    *(
        Part(
            f"speed-{size}",
            f"The whole network, 300 frames of {size}",
            _program("gpu_checks.py", "speed", _BUNDLE, "--size", size, "--json", "{json}"),
        )
        for size in ("320x180", "854x480")
    ),
    Part("host", "The host's own work", _program("host_path.py", "--json", "{json}")),
    Part("conversion", "Conversion for the encoder", _program("conversion.py", "--json", "{json}")),
    Part(
        "timeline",
        "Gaps and copies on the GPU, 300 frames of 320x180 under nsys",
        (
            *("nsys", "profile", "--stats=true", "--force-overwrite=true", "-o", "{out}/timeline"),
            *_program("gpu_checks.py", "speed", _BUNDLE, "--size", "320x180", "--repeats", "1"),
        ),
        needs="nsys",
    ),
)


def run_part(part: Part, out: Path, *, limit: float = LIMIT) -> Outcome:
    """Run a part; end it and everything it started at the limit, or if this is interrupted."""
    if part.needs and shutil.which(part.needs) is None:
        return Outcome("left out", 0.0, f"{part.needs} is not installed")
    figures = out / f"{part.name}.figures.json"
    figures.unlink(missing_ok=True)
    names = {"{out}": str(out), "{json}": str(figures)}
    command = [_filled(word, names) for word in part.command]
    log = out / f"{part.name}.log"
    start = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=HERE.parent,
            env={**os.environ, **dict(part.environment)},
            start_new_session=True,
        )
        try:
            status: Status = "passed" if process.wait(timeout=limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "too slow"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return Outcome(
        status,
        round(time.perf_counter() - start, 1),
        log.read_text(encoding="utf-8", errors="replace")[-_TAIL:],
        json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else None,
    )


def _filled(word: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        word = word.replace(name, value)
    return word


def load(out: Path) -> dict[str, Outcome]:
    """Return the outcomes of an earlier run, by part."""
    path = out / "first_hour.json"
    if not path.exists():
        return {}
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
    return {
        name: Outcome(**{k: v for k, v in p.items() if k != "title"}) for name, p in parts.items()
    }


def save(out: Path, parts: Sequence[Part], outcomes: Mapping[str, Outcome]) -> None:
    """Write the JSON and the page; an interruption leaves the earlier ones."""
    titles = {part.name: part.title for part in parts}
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "parts": {
            name: {"title": titles.get(name, name), **asdict(outcome)}
            for name, outcome in outcomes.items()
        },
    }
    for name, text in (
        ("first_hour.json", json.dumps(report, indent=1)),
        ("first_hour.md", page(parts, outcomes)),
    ):
        unfinished = out / f"{name}.unfinished"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(out / name)


def page(parts: Sequence[Part], outcomes: Mapping[str, Outcome]) -> str:
    """Return the page: a table of all parts, then each part's figures and output."""
    lines = ["# First hour on a GPU", "", "| part | result | seconds |", "|---|---|---:|"]
    for part in parts:
        outcome = outcomes.get(part.name)
        result = "not run" if outcome is None else outcome.status
        seconds = "" if outcome is None else f"{outcome.seconds:.1f}"
        lines.append(f"| {part.title} | {result} | {seconds} |")
    for part in parts:
        outcome = outcomes.get(part.name)
        if outcome is None:
            continue
        lines += ["", f"## {part.title}", "", f"`{part.name}`: {outcome.status}"]
        if outcome.figures is not None:
            lines += ["", "```json", json.dumps(outcome.figures, indent=1), "```"]
        if outcome.output.strip():
            lines += ["", "```text", outcome.output.strip().replace("```", "'''"), "```"]
    return "\n".join(lines) + "\n"


def run_parts(
    parts: Sequence[Part], out: Path, *, again: Sequence[str] = (), limit: float = LIMIT
) -> dict[str, Outcome]:
    """Run the parts that have no outcome yet, and those to run again."""
    out.mkdir(parents=True, exist_ok=True)
    outcomes = {name: outcome for name, outcome in load(out).items() if name not in again}
    for part in parts:
        if part.name not in outcomes:
            print(f"{part.title} ...", flush=True)
            outcomes[part.name] = run_part(part, out, limit=limit)
            save(out, parts, outcomes)
        print(f"{part.title}: {outcomes[part.name].status}", flush=True)
    save(out, parts, outcomes)
    return outcomes


@click.command()
@click.option(
    "--out",
    default="first_hour",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the results; an earlier run there is continued.",
)
@click.option("--again", multiple=True, metavar="PART", help="Run a finished part again.")
def main(out: Path, again: tuple[str, ...]) -> None:
    """Run everything that needs a GPU, in order, and write one JSON file and one page."""
    names = [part.name for part in PARTS]
    if unknown := [name for name in again if name not in names]:
        raise click.BadParameter(f"{unknown[0]!r} is not a part: choose from {', '.join(names)}")
    outcomes = run_parts(PARTS, out.resolve(), again=again)
    print(f"Results: {out / 'first_hour.md'}, {out / 'first_hour.json'}")
    if any(outcome.status in ("failed", "too slow") for outcome in outcomes.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
