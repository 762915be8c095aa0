"""Measures what the host does per frame for a GPU: CPU time, calls of the driver and of TensorRT.

The driver and the executables do nothing, so this needs no GPU: whatever time is left is the
project's own. One scene of the given lengths runs through the whole chain except decoding, scene
detection and encoding.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import environment, parse_numbers, parse_size

from rbvsr_deploy.bundle.engine_sets import EngineSet, ShapeProfile
from rbvsr_deploy.engines.base import Network
from rbvsr_deploy.engines.cuda.driver import Gpu
from rbvsr_deploy.engines.tensorrt.base import Candidate
from rbvsr_deploy.engines.tensorrt.engine import TensorRTEngine
from rbvsr_deploy.graphs import GRAPHS
from rbvsr_deploy.runtime.stream import Settings, Stream

NETWORK = Network(
    channels=64,
    head_channels=1024,
    has_cleaning=True,
    refine_threshold=5.0,
    precision="float16",
)
"""The published size."""

_QUIET = {"malloc", "free", "malloc_host", "free_host", "create_stream", "create_event"}
"""Calls of the driver that only the first scene makes."""


class NullDriver:
    """A driver that counts its calls and executes nothing; every event has already happened."""

    index = 0

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._last = 2**40
        self._pinned: dict[int, Any] = {}

    @contextmanager
    def current(self) -> Iterator[None]:
        self.calls["current"] += 1
        yield

    def gpu(self) -> Gpu:
        return Gpu("no-op", "9.0", "13.0", 2**37)

    def free_memory(self) -> int:
        return 2**36

    def malloc(self, size: int) -> int:
        self._last += -(-size // 512) * 512
        return self._last - size // 512 * 512

    def malloc_host(self, size: int) -> int:
        memory = np.zeros(size, np.uint8)
        self._pinned[memory.ctypes.data] = memory
        return int(memory.ctypes.data)

    def free_host(self, address: int) -> None:
        del self._pinned[address]

    def create_stream(self, **options: Any) -> int:
        self._last += 512
        return self._last

    create_event = create_stream

    def is_done(self, event: int) -> bool:
        self.calls["is_done"] += 1
        return True

    def begin_capture(self, stream: int) -> None:
        self.calls["begin_capture"] += 1

    def end_capture(self, stream: int) -> int:
        return self.create_stream()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> None:
            self.calls[name] += 1

        setattr(self, name, call)
        return call


class NullExecutable:
    """An executable that counts its calls and launches nothing."""

    def __init__(self, calls: Counter[str]) -> None:
        self._calls = calls

    def scratch_bytes(self) -> int:
        self._calls["scratch_bytes"] += 1
        return 2**20

    def is_capturable(self, stream: int) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> None:
            self._calls[name] += 1

        setattr(self, name, call)
        return call


class NullRuntime:
    """Loads executables that do nothing, for any frame size."""

    flavour = "tensorrt"
    version = "0"

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def load(self, graph: str, plan: bytes) -> NullExecutable:
        return NullExecutable(self.calls)

    def close(self) -> None:
        pass

    def candidates(self, height: int, width: int, *, batch: int) -> Iterator[Candidate]:
        size = height, width
        profile = ShapeProfile((1, 1), size, size, batch=batch)
        engine_set = EngineSet("tensorrt", "0", "9.0", "linux-x86_64", profile)
        yield Candidate(engine_set, dict.fromkeys(GRAPHS, b""), "no-op")


def measure(frames: int, *, size: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Run scenes of some frames; return the CPU time and the calls per frame of the best one."""
    driver, runtime = NullDriver(), NullRuntime()
    width, height = size
    clip = np.random.default_rng(0).integers(0, 256, (8, height, width, 3), np.uint8)
    engine = TensorRTEngine(
        NETWORK,
        runtime,
        runtime,  # type: ignore[arg-type]
        driver,
        model="no-op",
        weights="0",
        reason="a measurement",
        size=(height, width),
    )
    best = math.inf
    with engine, Stream(engine, Settings(), size=(height, width)) as stream:
        for _ in range(repeats + 1):
            driver.calls.clear()
            runtime.calls.clear()
            start = time.thread_time()
            done = 0
            for i in range(frames):
                done += sum(1 for _ in stream.push(clip[i % 8]))
            done += sum(1 for _ in stream.flush())
            best = min(best, time.thread_time() - start)
            assert done == frames
        calls = {
            "driver": {k: v for k, v in driver.calls.items() if k not in _QUIET},
            "tensorrt": dict(runtime.calls),
        }
    per_frame = {
        side: {name: round(count / frames, 2) for name, count in sorted(counts.items())}
        for side, counts in calls.items()
    }
    totals = {side: round(sum(counts.values()) / frames, 2) for side, counts in calls.items()}
    return {
        "frames": frames,
        "milliseconds": round(1000 * best / frames, 3),
        "calls": totals,
        "by_name": per_frame,
    }


@click.command()
@click.option("--frames", default="24,100,300", show_default=True, help="Lengths of the scene.")
@click.option("--size", default="320x180", show_default=True, help="Width x height of the input.")
@click.option("--repeats", default=5, show_default=True, help="Scenes per length; the best counts.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="JSON file to write.")
def main(frames: str, size: str, repeats: int, json_path: Path | None) -> None:
    """Measure the host's work per frame with a GPU that does nothing."""
    results = [
        measure(count, size=parse_size(size), repeats=repeats) for count in parse_numbers(frames)
    ]
    print(f"{'frames':>8}{'ms CPU':>9}{'driver':>9}{'TensorRT':>10}   calls per frame")
    for result in results:
        calls = result["calls"]
        print(
            f"{result['frames']:>8}{result['milliseconds']:>9.3f}"
            f"{calls['driver']:>9.2f}{calls['tensorrt']:>10.2f}"
        )
    for side, counts in results[-1]["by_name"].items():
        print(f"{side}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    if json_path is not None:
        report = {**environment(), "size": size, "results": results}
        json_path.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
