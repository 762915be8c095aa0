"""Runs a worker process with an engine double, and shorter segments than usual."""

from __future__ import annotations

import dataclasses
import os
import resource
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from rbvsr_deploy.cluster import staging
from rbvsr_deploy.engines import Description, Engine
from rbvsr_deploy.errors import BundleError, EngineError
from rbvsr_deploy.jobs import segments
from tests.support.engine_doubles import BicubicEngine

LONGEST, SHORTEST = 12, 5
"""Frames of a segment, and of one that ends with its scene."""


def short_segments() -> None:
    """Let segments be short, in this process."""
    segments.LONGEST, segments.SHORTEST = LONGEST, SHORTEST


class TimedEngine(BicubicEngine):
    """Takes a fixed time for every frame; fails or differs on request.

    Args:
        seconds: time per frame.
        version: of the engine.
        fails: whether every run fails.
    """

    def __init__(self, seconds: float, *, version: str = "0", fails: bool = False) -> None:
        super().__init__()
        self._seconds, self._version, self._fails = seconds, version, fails

    def _outputs(self, graph: str, n: int, **arrays: Any) -> tuple[Any, ...]:
        if graph == "reconstruct":
            time.sleep(n * self._seconds)
            if (log := os.environ.get("DOUBLE_LOG")) is not None:
                with open(log, "ab") as file:
                    for frame in arrays["frame"]:
                        file.write(zlib.crc32(frame.tobytes()).to_bytes(4, "little"))
            if self._fails:
                raise EngineError("graph 'reconstruct' failed on cpu: the device is gone")
        return super()._outputs(graph, n, **arrays)

    def empty(self, shape: tuple[int, ...], *, dtype: str) -> Any:
        return np.full(shape, np.nan, dtype)

    def zeros(self, shape: tuple[int, ...], *, dtype: str) -> Any:
        return np.zeros(shape, dtype)

    def describe(self) -> Description:
        return dataclasses.replace(super().describe(), version=self._version)


def open_double(model: Path, **options: Any) -> Engine:
    """Open an engine double that the environment of the process describes."""
    if "DOUBLE_WITHOUT_MODEL" in os.environ:
        raise BundleError(f"{model} does not exist")
    if limit := os.environ.get("DOUBLE_FILE_LIMIT"):  # as on a disk that gets full
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    return TimedEngine(
        float(os.environ.get("DOUBLE_SECONDS", "0")),
        version=os.environ.get("DOUBLE_VERSION", "0"),
        fails="DOUBLE_FAILS" in os.environ,
    )


def open_in_actor(model: Path, **options: Any) -> Engine:
    """Open an engine double in a Ray actor, which has the usual segments otherwise."""
    short_segments()
    staging.PIECE = int(os.environ.get("DOUBLE_PIECE", staging.PIECE))
    return open_double(model, **options)


if __name__ == "__main__":
    from rbvsr_deploy.cluster.process import main

    short_segments()
    main(open_double)
