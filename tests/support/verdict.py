"""What a run on a hostile input may end in, judged from the outside and with plain PyAV.

Either the exit status is 0 and the output is whole, or it is 1, with one sentence and no output.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from rbvsr_deploy.video.images import is_image

_LONGEST_SENTENCE = 500  # characters, besides those of the input's name


@dataclass(frozen=True)
class Outcome:
    """How ``rbvsr-run INPUT --json`` ended."""

    code: int | None
    """Exit status, negative where a signal ended it; ``None``: it was killed when its time was
    over."""
    stdout: str
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        """What it printed; empty where that is no JSON."""
        try:
            parsed = json.loads(self.stdout)
        except ValueError:
            return {}
        return parsed if isinstance(parsed, dict) else {}

    @property
    def error(self) -> str:
        """The sentence it ended with."""
        lines = self.stderr.strip().splitlines()
        return lines[-1] if lines else ""


def violations(outcome: Outcome, *, path: Path) -> list[str]:
    """What is wrong with how a run ended; empty where nothing is.

    Args:
        outcome: of the run, which wrote into the input's folder.
        path: the input, which was alone in its folder.
    """
    beside = sorted(set(path.parent.iterdir()) - {path})
    found = []
    if "Traceback" in outcome.stderr or "Exception" in outcome.stderr:
        found.append("it ended in a traceback")
    if outcome.code is None:
        return [*found, "it hung"]
    if outcome.code == 0:
        return found + _of_success(outcome, path=path, beside=beside)
    if outcome.code != 1:
        return [*found, f"it ended with {outcome.code}"]
    found += [f"{left.name} was left" for left in beside if not _resumable(left)]
    error = outcome.error
    if not error.startswith("Error: "):
        found.append(f"its last line is no error: {error!r}")
    if len(error) > _LONGEST_SENTENCE + error.count(str(path)) * len(str(path)):
        found.append(f"its sentence has {len(error)} characters")
    for code in ("Errno", "0x", "av.error", "returned "):
        if code in error.replace(str(path), ""):
            found.append(f"{code!r} is in its sentence")
    return found


def decodable(path: Path) -> int:
    """How many frames plain PyAV decodes of a file's video, or of a folder's files, as players do:
    what cannot be decoded is passed over.
    """
    if path.is_dir():
        return sum(decodable(file) for file in path.iterdir() if file.is_file())
    frames = 0
    if is_image(path):
        return 1  # of some, PyAV makes a video
    try:
        with av.open(f"file:{path}", metadata_errors="surrogateescape") as container:
            for packet in container.demux(video=0):
                try:
                    frames += len(packet.decode())
                except (av.InvalidDataError, av.ArgumentError):
                    continue
    except (av.FFmpegError, IndexError):
        pass
    return frames


def _of_success(outcome: Outcome, *, path: Path, beside: list[Path]) -> list[str]:
    summary = outcome.summary
    if not summary:
        return ["it printed no summary"]
    output = Path(summary["output"])
    if beside != [output]:
        return [f"beside the input are {', '.join(left.name for left in beside) or 'no files'}"]
    found = []
    try:
        written = _strictly_decoded(output)
    except av.FFmpegError as error:
        return [f"the output cannot be decoded: {error}"]
    if written != summary["frames"]:
        found.append(f"{summary['frames']} frames were told and {written} written")
    readable = decodable(path)
    if written != readable:
        found.append(f"the input has {readable} frames and the output {written}")
    return found


def _strictly_decoded(path: Path) -> int:
    """Raises av.FFmpegError where anything cannot be decoded."""
    if path.is_dir():
        return sum(_strictly_decoded(file) for file in path.iterdir())
    with av.open(f"file:{path}", metadata_errors="surrogateescape") as container:
        return sum(1 for _ in container.decode(video=0))


def _resumable(path: Path) -> bool:
    """Whether it is a job folder with finished parts."""
    return path.name.endswith(".job") and any(path.glob("part-*.json"))
