"""Times the whole way from RGB arrays to RGB arrays: frame by frame, and scene by scene."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.bench.ceilings import compare_with_ceilings
from rbvsr_deploy.bench.costs import GraphCosts
from rbvsr_deploy.bench.counting import CountingEngine, Counts
from rbvsr_deploy.bench.graph_timing import counted
from rbvsr_deploy.bench.machine import PeakMemory
from rbvsr_deploy.bench.result import Ceilings, LatencyResult, SensorSummary, ThroughputResult
from rbvsr_deploy.bench.sensors.reading import Reader
from rbvsr_deploy.bench.sensors.sampler import Sampler
from rbvsr_deploy.bench.timing import Effort, repeat, spread, summarise
from rbvsr_deploy.upscaler import Upscaler

__all__ = ["CLEANINGS", "Pipeline"]

CLEANINGS = 1
"""Cleaning passes per frame: fixed, as a decision would depend on the clip."""


@dataclass(frozen=True, eq=False)
class Pipeline:
    """Upscales a clip again and again."""

    engine: CountingEngine
    clip: NDArray[np.uint8]
    """(T, H, W, 3) RGB, a scene."""
    effort: Effort
    memory: int | None
    """Bytes to use on the device; ``None``: half of the free memory."""

    def first_image(self) -> None:
        """Upscale one frame of a live stream."""
        with self._upscaler(lookahead=0) as upscaler:
            upscaler.push(self.clip[0])

    def measure_latency(self) -> LatencyResult:
        """Upscale one frame at a time, with no lookahead."""
        frames = self._endless()
        with self._upscaler(lookahead=0) as upscaler:
            upscaler.push(next(frames))

            def query() -> float:
                frame = next(frames)
                start = time.perf_counter()
                (_,) = upscaler.push(frame)
                return time.perf_counter() - start

            seconds, total = repeat(
                query, least_runs=self.effort.queries, least_seconds=self.effort.seconds
            )
        return LatencyResult(queries=len(seconds), seconds=total, latency_ms=summarise(seconds))

    def measure_throughput(
        self, *, costs: GraphCosts, ceilings: Ceilings, graphs_ms: float, readers: Sequence[Reader]
    ) -> tuple[ThroughputResult, SensorSummary]:
        """Upscale whole scenes, after one to warm up.

        Args:
            costs: of the engine's bundle.
            ceilings: of the engine's device.
            graphs_ms: what the graphs take by themselves, per frame.
            readers: of the sensors to read.
        """
        firsts: list[float] = []
        networks: list[float] = []
        frames = len(self.clip)

        def upscale() -> float:
            self.engine.counts = Counts()
            start, first = time.perf_counter(), 0.0
            for _ in upscaler.frames(self.clip):
                first = first or time.perf_counter() - start
            firsts.append(first)
            networks.append(self.engine.counts.seconds / frames)
            return (time.perf_counter() - start) / frames

        peak = PeakMemory()
        with self._upscaler() as upscaler:
            upscale()
            firsts.clear()
            networks.clear()
            with Sampler(readers) as sampler:
                totals, _ = repeat(
                    upscale, least_runs=self.effort.clips, least_seconds=self.effort.seconds
                )
        counts, per_frame = self.engine.counts, statistics.median(totals)
        cost = counts.cost(costs)
        network = statistics.median(networks)
        result = ThroughputResult(
            clips=len(totals),
            frames_per_second=1 / per_frame,
            total_ms=summarise(totals),
            network_ms=summarise(networks),
            network_spread=spread(networks),
            network_over_graphs=1000 * network / graphs_ms,
            first_image_of_scene_seconds=statistics.median(firsts),
            peak_host_bytes=peak.bytes(),
            peak_device_bytes=sampler.peak_memory(),
            bytes_to_device=counts.uploaded_bytes / frames,
            bytes_from_device=counts.downloaded_bytes / frames,
            launches=counts.launches.total() / frames,
            allocations=counts.allocations / frames,
            device_copies=counts.device_copies / frames,
            counted=counted(cost, frames=frames),
            attained=compare_with_ceilings(cost, network * frames, ceilings, frames=frames),
        )
        return result, sampler.summary(seconds_per_frame=per_frame)

    def _upscaler(self, *, lookahead: int | None = None) -> Upscaler:
        return Upscaler(self.engine, lookahead=lookahead, memory=self.memory, cleanings=CLEANINGS)

    def _endless(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames back and forth, without a cut."""
        return itertools.cycle([*self.clip, *self.clip[-2:0:-1]])
