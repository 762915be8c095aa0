"""Is a worker process whose network takes a fixed time per frame and enlarges by repeating pixels.

``cluster.py`` starts it, so that any number of workers can be measured on few processors.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.cluster.process import main
from rbvsr_deploy.engines import Description, Engine, Network

SECONDS = "BENCHMARK_SECONDS_PER_FRAME"
"""Variable of the environment with the time for a frame."""


class TimedEngine(Engine):
    """Sleeps in ``reconstruct``. States and flows are zero."""

    def __init__(self, seconds: float) -> None:
        self.network = Network(
            channels=1,
            head_channels=1,
            has_cleaning=False,
            refine_threshold=5.0,
            precision="float32",
        )
        self._seconds = seconds

    def run(
        self, graph: str, *, into: Sequence[Any] | None = None, **arrays: Any
    ) -> tuple[Any, ...]:
        output = self._output(graph, **arrays)
        if into is None:
            return (output,)
        into[0][...] = output
        return tuple(into)

    def _output(self, graph: str, **arrays: Any) -> Any:
        match graph:
            case "ingest":
                return arrays["image"].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
            case "flow":
                return np.zeros_like(arrays["reference"][:, :2])
            case "backward" | "forward":
                return np.zeros_like(arrays["frame"][:, :1])
            case "reconstruct":
                time.sleep(self._seconds * len(arrays["frame"]))
                return arrays["frame"].repeat(4, axis=2).repeat(4, axis=3)
            case _:
                return np.rint(arrays["picture"].transpose(0, 2, 3, 1) * 255).astype(np.uint8)

    def empty(self, shape: tuple[int, ...], *, dtype: str) -> NDArray[Any]:
        return np.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], *, dtype: str) -> NDArray[Any]:
        return np.zeros(shape, dtype)

    def slice(self, array: Any, start: int, stop: int) -> Any:
        return array[start:stop]

    def rows(self, array: Any, top: int, bottom: int) -> Any:
        return array[:, :, top:bottom].copy()

    def upload(self, array: NDArray[Any]) -> Any:
        return array

    def download(self, array: Any) -> NDArray[Any]:
        return np.asarray(array)

    def begin_download(self, array: Any) -> Any:
        values = array.copy()
        return lambda: values

    def free_memory(self) -> int:
        return 2**30

    def describe(self) -> Description:
        return Description(
            engine="onnxruntime",
            version="0",
            device="cpu",
            precision="float32",
            model="timed",
            weights="0",
            reason="a benchmark",
        )

    def close(self) -> None:
        pass


def open_timed(model: Path, **options: Any) -> Engine:
    """Open the engine that the environment describes."""
    return TimedEngine(float(os.environ[SECONDS]))


if __name__ == "__main__":
    main(open_timed)
