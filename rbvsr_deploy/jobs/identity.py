"""Describes everything a job's output depends on: an interrupted run is resumed only if all of it
is the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

from rbvsr_deploy.engines.base import Engine
from rbvsr_deploy.runtime.scenes import SceneCuts
from rbvsr_deploy.runtime.stream import Settings
from rbvsr_deploy.video import ReadOptions, is_pipe

__all__ = ["job_identity"]


_SAME_OUTPUT_SINCE = "0.1.0"
"""The first version with the same output as this one: its unfinished jobs are continued. Set it to
the current version in any change that alters frames or packets.
"""


def job_identity(
    path: Path, *, engine: Engine, settings: Settings, reading: ReadOptions, cuts: SceneCuts
) -> dict[str, str]:
    """Return everything the output depends on, by readable names; the sink adds its own part.

    Args:
        path: the input.
        engine: identified by its network, its version and its device.
        settings: settings of the stream; the memory limit is left out, as it does not affect the
            output.
        reading: options for reading the input.
        cuts: where scenes begin.

    Raises:
        OSError: the input cannot be read.
    """
    described = engine.describe()
    threshold = settings.refine_threshold
    return {
        "input": "standard input" if is_pipe(path) else _fingerprint(path),
        **{
            f"option {name}": "not given" if value is None else str(value)
            for name, value in dataclasses.asdict(reading).items()
            # Changes no output, and is newer than job folders that are still to be resumed.
            if name != "allow_playlists"
        },
        "model": f"{described.model} ({described.weights[:16]})",
        "engine": f"{described.engine} {described.version} on {described.device}",
        "version of rbvsr-deploy": _SAME_OUTPUT_SINCE,
        "scene cuts": cuts.identity,
        "lookahead": "all" if settings.lookahead is None else str(settings.lookahead),
        "longest scene": str(settings.max_scene),
        "refinement threshold": "the model's" if threshold is None else f"{threshold:g}",
        "refinement scope": settings.refine_scope,
        "number of cleanings": "by refinement"
        if settings.cleanings is None
        else str(settings.cleanings),
    }


def _fingerprint(path: Path) -> str:
    """Hash the name, size and modification time of a file, or of all files of a folder; for a file,
    also its first and last megabyte. Reading all of a long film would take minutes.
    """
    digest, size = hashlib.sha256(), 0
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        status = file.lstat()
        size += status.st_size
        digest.update(os.fsencode(f"{file.name} {status.st_size} {status.st_mtime_ns}"))
    if not path.is_dir():
        with path.open("rb") as opened:
            digest.update(opened.read(2**20))
            opened.seek(max(0, path.stat().st_size - 2**20))
            digest.update(opened.read(2**20))
    return f"{path.name} of {size} bytes ({digest.hexdigest()[:16]})"
