"""Runs a small job once for every call that it makes to the file system, each time with another one
failing. ``faults.c`` has to be preloaded::

    cc -shared -fPIC -o faults.so tests/support/faults.c -ldl
    LD_PRELOAD=./faults.so python -m tests.support.faults out.mp4 EIO,ENOSPC

Prints the outcomes as JSON. A defect is an error that is not one sentence with the path, an output
without its job being done, or a next run that does not complete the same output.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from rbvsr_deploy.errors import MediaError, RbvsrError
from rbvsr_deploy.jobs import segments
from rbvsr_deploy.jobs.upscale_file import upscale_file
from tests.support import media
from tests.support.engine_doubles import BicubicEngine


class Faults:
    """Runs jobs in children of this process."""

    def __init__(self, folder: Path, output: str) -> None:
        self._folder, self._output = folder, output
        self._library = ctypes.CDLL(None)
        self._library.arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
        self._library.failed_call.restype = ctypes.c_char_p
        # Several parts, each a scene.
        segments.LONGEST = segments.SHORTEST = 4
        (folder / "cuts.txt").write_text("4\n8\n")
        self._clip = media.make_video(folder / "clip.mkv", size=(16, 16), codec="ffv1", audio="aac")
        (folder / "plain").mkdir()
        self.run(folder / "plain")
        self._expected = self._contents(folder / "plain")

    def run(self, place: Path) -> None:
        cuts = self._folder / "cuts.txt"
        upscale_file(self._clip, place / self._output, engine=BicubicEngine(), scene_list=cuts)

    def outcome(self, number: int, error: int) -> tuple[str, bool, str]:
        """Run a job whose n-th call fails; return the name of the call, whether the job completed,
        and the defect, if any.
        """
        place = self._folder / "place"
        place.mkdir()
        try:
            call, said = self._in_child(lambda: self._failing(place, number, error))
            if not call:
                return "", True, ""
            return call, said == "completed", self._defect(place, said)
        finally:
            shutil.rmtree(place)

    def _failing(self, place: Path, number: int, error: int) -> tuple[str, str]:
        said = "completed"
        self._library.arm(os.fsencode(place), number, error)
        try:
            self.run(place)
        except RbvsrError as refusal:
            said = str(refusal)
        except BaseException as other:
            said = f"\n{type(other).__name__}: {other}"
        self._library.disarm()
        return (self._library.failed_call() or b"").decode(), said

    def _defect(self, place: Path, said: str) -> str:
        if said != "completed" and ("\n" in said or str(place) not in said):
            return f"not one sentence with the path: {said!r}"
        if said == "completed" and not (place / self._output).exists():
            return "completed without an output"
        if not (place / self._output).exists():
            try:
                self.run(place)
            except MediaError as refusal:
                return f"the next run ends: {refusal}"
            if list(place.iterdir()) != [place / self._output]:
                return "the next run leaves something"
        if self._contents(place) != self._expected:
            return f"another output: {said}"
        return ""

    def _contents(self, place: Path) -> dict[str, bytes]:
        """Return the contents of the output's files; those of the job folder do not matter."""
        output = place / self._output
        files = [output] if output.is_file() else sorted(output.iterdir())
        return {file.name: file.read_bytes() for file in files}

    def _in_child(self, work: Callable[[], tuple[str, str]]) -> tuple[str, str]:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(writing, json.dumps(work())[:60_000].encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            data = file.read()
        os.waitpid(child, 0)
        call, said = json.loads(data) if data else ("killed", "\nthe process died")
        return call, said


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", help="out.mp4 or frames")
    parser.add_argument("errors", help="names of errors, used in turn")
    parser.add_argument("--every", type=int, default=1, help="let only every n-th call fail")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    errors = [getattr(errno, name) for name in given.errors.split(",")]
    number, outcomes, defects = 0, list[bool](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        faults = Faults(Path(folder), given.output)
        while True:
            wrong = errors[len(outcomes) % len(errors)]
            call, completed, defect = faults.outcome(number, wrong)
            if not call:
                break
            outcomes.append(completed)
            if defect:
                defects.append(f"{call} ({number}), {errno.errorcode[wrong]}: {defect}")
            number += given.every
    done = sum(outcomes)
    result = {"completed": done, "refused": len(outcomes) - done, "defects": defects}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
