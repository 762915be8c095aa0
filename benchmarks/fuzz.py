"""Runs ``rbvsr-run`` on hundreds of damaged, mislabelled and uncommon inputs, one process each.

Every run must finish within the time and memory limits: either with exit code 0 and an output that
has as many frames as reported and as plain PyAV reads from the input, or with exit code 1, one
sentence and no output. The program exits with 1 if any run did not.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
from common import environment

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.support.corpus import Case, cases  # noqa: E402
from tests.support.verdict import Outcome, violations  # noqa: E402

_PRELOADED = (
    "av",
    "onnxruntime",
    "rbvsr_deploy.commands.run",
    "rbvsr_deploy.engines.onnx_runtime",
    "rbvsr_deploy.jobs.upscale_file",
)
_ADDRESS_SPACE = 8 * 2**30  # allocations beyond it fail, to protect the machine
_MIB = 2**20


def run_command(arguments: list[str], folder: str) -> None:
    """Run ``rbvsr-run`` in this process; its output and peak memory go to files."""
    import resource  # POSIX only, like the whole method

    from rbvsr_deploy.commands.run import run

    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        run.main(arguments, prog_name="rbvsr-run")
    finally:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        Path(folder, "peak").write_text(str(peak // 1024))


class Runner:
    """Runs the command on one case after another, each in a fresh process that has already
    imported everything.
    """

    def __init__(self, options: list[str], *, seconds: float, folder: Path) -> None:
        self._options = options
        self._seconds = seconds
        self._log = folder
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(list(_PRELOADED))

    def run(self, path: Path) -> tuple[Outcome, float, int]:
        """Return the outcome, the seconds it took, and its peak memory in MiB."""
        shutil.rmtree(self._log, ignore_errors=True)
        self._log.mkdir()
        arguments = [*self._options, "--", str(path)]
        process = self._processes.Process(target=run_command, args=(arguments, str(self._log)))
        start = time.perf_counter()
        process.start()
        process.join(self._seconds)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        seconds = time.perf_counter() - start
        outcome = Outcome(code, self._text("stdout"), self._text("stderr"))
        return outcome, seconds, int(self._text("peak") or 0)

    def _text(self, name: str) -> str:
        file = self._log / name
        return file.read_text(errors="replace") if file.exists() else ""


def judge(case: Case, runner: Runner, *, memory: int) -> dict[str, Any]:
    """Run a case and list what was wrong with its outcome."""
    outcome, seconds, peak = runner.run(case.path)
    wrong = violations(outcome, path=case.path)
    if peak > memory:
        wrong.append(f"it took {peak} MiB of memory")
    return {
        "case": case.name,
        "code": outcome.code,
        "seconds": round(seconds, 2),
        "peak_mib": peak,
        "frames": outcome.summary.get("frames"),
        "frames_of_seed": case.frames,
        "message": outcome.error,
        "wrong": wrong,
    }


def ending(result: dict[str, Any]) -> str:
    """Return a word for the outcome of a case."""
    if result["wrong"]:
        return "WRONG"
    if result["code"]:
        return "refused"
    if result["frames_of_seed"] is None or result["frames"] == result["frames_of_seed"]:
        return "all frames"
    return "fewer frames" if result["frames"] < result["frames_of_seed"] else "more frames"


@click.command()
@click.option("--count", default=300, show_default=True, help="Number of randomly damaged files.")
@click.option("--seed", default=0, show_default=True, help="Seed of the damage.")
@click.option("--engine", type=click.Path(path_type=Path), help="As for rbvsr-run.")
@click.option("--seconds", default=10.0, show_default=True, help="Time limit per file.")
@click.option("--memory", default=1024, show_default=True, help="Memory limit per file, in MiB.")
@click.option("--only", default="", help="Run only cases whose name contains this.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder to keep failing files in.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    count: int,
    seed: int,
    engine: Path | None,
    seconds: float,
    memory: int,
    only: str,
    keep: Path | None,
    json_path: Path | None,
) -> None:
    """Run all handmade cases, and COUNT randomly damaged ones."""
    options = ["--json", "--device", "cpu", "--memory", "512MiB"]
    options += [] if engine is None else ["--engine", str(engine.resolve())]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        temporary = folder / "temporary"
        temporary.mkdir()
        os.environ["TMPDIR"] = str(temporary)
        runner = Runner(options, seconds=seconds, folder=folder / "log")
        (folder / "cases").mkdir()
        for case in cases(folder / "cases", seed=seed, count=count):
            if only in case.name:
                result = judge(case, runner, memory=memory)
                results.append(result)
                print(
                    f"{len(results):>4} {ending(result):<12} {result['seconds']:5.2f} s "
                    f"{result['peak_mib']:5} MiB  {case.name}: "
                    f"{'; '.join(result['wrong']) or result['message']}",
                    flush=True,
                )
                if result["wrong"] and keep is not None:
                    shutil.copytree(case.path.parent, keep / f"{seed}-{len(results):04}")
            shutil.rmtree(case.path.parent)
    endings = Counter(ending(result) for result in results)
    summary = {
        **environment(),
        "seed": seed,
        "endings": dict(sorted(endings.items())),
        "slowest_seconds": max(result["seconds"] for result in results),
        "most_mib": max(result["peak_mib"] for result in results),
        "cases": results,
    }
    if json_path is not None:
        json_path.write_text(json.dumps(summary, indent=1), encoding="utf-8")
    print(
        f"{len(results)} files: "
        + ", ".join(f"{number} {name}" for name, number in sorted(endings.items()))
        + f"; at most {summary['slowest_seconds']} s and {summary['most_mib']} MiB"
    )
    sys.exit(1 if endings["WRONG"] else 0)


if __name__ == "__main__":
    main()
