"""Says how long to measure, repeats measurements and summarises them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rbvsr_deploy.bench.result import Times

__all__ = ["FULL", "QUICK", "Effort", "percentile", "repeat", "spread", "summarise"]

_FOR_P99 = 100  # measurements below which the 99th percentile is the maximum


@dataclass(frozen=True)
class Effort:
    """Says how long to measure."""

    comparable: bool
    """False if figures must not be compared with those of other machines."""
    queries: int
    """Least number of frames of the latency run."""
    seconds: float
    """Least duration of the latency run and of the throughput run."""
    clips: int
    """Least number of clips of the throughput run."""
    graph_runs: int
    """Least number of runs of each graph."""
    graph_seconds: float
    """Least duration of the runs of each graph, and of the measurement of each ceiling."""


# MLPerf's single-stream scenario takes at least 60 s; 64 is the least number of queries from which
# its early stopping estimates a 90th percentile.
FULL = Effort(comparable=True, queries=64, seconds=60.0, clips=5, graph_runs=20, graph_seconds=3.0)
QUICK = Effort(comparable=False, queries=8, seconds=1.0, clips=2, graph_runs=3, graph_seconds=0.2)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of all values do not exceed (the nearest
    rank, as MLPerf defines it).
    """
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def summarise(seconds: Sequence[float]) -> Times:
    """Summarise measurements in seconds as milliseconds."""
    values = [1000 * value for value in seconds]
    return Times(
        count=len(values),
        p50=statistics.median(values),
        p90=percentile(values, 0.9),
        p99=percentile(values, 0.99) if len(values) >= _FOR_P99 else None,
        minimum=min(values),
        maximum=max(values),
    )


def spread(values: Sequence[float]) -> float:
    """Return the largest minus the smallest value, relative to the median."""
    return (max(values) - min(values)) / statistics.median(values)


def repeat(
    measure: Callable[[], float], *, least_runs: int, least_seconds: float
) -> tuple[list[float], float]:
    """Repeat a measurement until both least numbers are reached.

    Returns:
        What ``measure`` returned each time, and the seconds that everything took.
    """
    results: list[float] = []
    start = time.perf_counter()
    while len(results) < least_runs or time.perf_counter() - start < least_seconds:
        results.append(measure())
    return results, time.perf_counter() - start
