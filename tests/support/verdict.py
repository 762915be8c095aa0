"""Judges the outcome of a run on a hostile input from the outside and with plain PyAV.

The exit status must be 0 with a complete output, or 1 with one error sentence and no output.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from rbvsr_deploy.video.images import is_image

_LONGEST_SENTENCE = 500  # characters, without the input's path


@dataclass(frozen=True)
class Outcome:
    """The outcome of ``rbvsr-run INPUT --json``."""

    code: int | None
    """Exit status, negative if a signal ended the run; ``None``: killed after a timeout."""
    stdout: str
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        """Return the printed summary; empty if it is not a JSON object."""
        try:
            parsed = json.loads(self.stdout)
        except ValueError:
            return {}
        return parsed if isinstance(parsed, dict) else {}

    @property
    def error(self) -> str:
        """Return the last line of standard error."""
        lines = self.stderr.strip().splitlines()
        return lines[-1] if lines else ""


def violations(outcome: Outcome, *, path: Path) -> list[str]:
    """Return what is wrong with the outcome of a run, or an empty list.

    Args:
        outcome: outcome of the run, which wrote into the input's folder.
        path: the input, which was alone in its folder before the run.
    """
    created = sorted(set(path.parent.iterdir()) - {path})
    found = []
    if "Traceback" in outcome.stderr or "Exception" in outcome.stderr:
        found.append("the run ended in a traceback")
    if outcome.code is None:
        return [*found, "the run hung"]
    if outcome.code == 0:
        return found + _output_violations(outcome, path=path, created=created)
    if outcome.code != 1:
        return [*found, f"the exit status is {outcome.code}"]
    found += [f"{left.name} was left" for left in created if not _resumable(left)]
    error = outcome.error
    if not error.startswith("Error: "):
        found.append(f"the last line is not an error: {error!r}")
    if len(error) > _LONGEST_SENTENCE + error.count(str(path)) * len(str(path)):
        found.append(f"the error has {len(error)} characters")
    for code in ("Errno", "0x", "av.error", "returned "):
        if code in error.replace(str(path), ""):
            found.append(f"the error contains {code!r}")
    return found


def decodable(path: Path) -> int:
    """Return how many frames plain PyAV decodes from a video or from the files of a folder.

    As in players, packets that cannot be decoded are skipped, whatever error the decoder gives.
    """
    if path.is_dir():
        return sum(decodable(file) for file in path.iterdir() if file.is_file())
    frames = 0
    # PyAV opens some images as videos; raw Motion JPEG begins like a JPEG.
    if is_image(path) and path.suffix not in (".mjpeg", ".mjpg"):
        return 1
    try:
        with av.open(f"file:{path}", metadata_errors="surrogateescape") as container:
            for packet in container.demux(video=0):
                try:
                    frames += len(packet.decode())
                except av.FFmpegError:
                    continue
    except (av.FFmpegError, IndexError):
        pass
    return frames


def _output_violations(outcome: Outcome, *, path: Path, created: list[Path]) -> list[str]:
    summary = outcome.summary
    if not summary:
        return ["the run printed no summary"]
    output = Path(summary["output"])
    if created != [output]:
        return [f"the run created {', '.join(left.name for left in created) or 'no files'}"]
    found = []
    try:
        written = _strictly_decoded(output)
    except av.FFmpegError as error:
        return [f"the output cannot be decoded: {error}"]
    if written != summary["frames"]:
        found.append(f"{summary['frames']} frames were reported but {written} written")
    readable = decodable(path)
    if written != readable:
        found.append(f"the input has {readable} frames but the output {written}")
    return found


def _strictly_decoded(path: Path) -> int:
    """Return the number of frames; raises av.FFmpegError if a packet cannot be decoded."""
    if path.is_dir():
        return sum(_strictly_decoded(file) for file in path.iterdir())
    with av.open(f"file:{path}", metadata_errors="surrogateescape") as container:
        return sum(1 for _ in container.decode(video=0))


def _resumable(path: Path) -> bool:
    """Return whether a path is a job folder with finished parts."""
    return path.name.endswith(".job") and any(path.glob("part-*.json"))
