"""Samples sensors while something is measured."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Sequence

from rbvsr_deploy.bench.result import SensorSummary
from rbvsr_deploy.bench.sensors.reading import Reader, Reading
from rbvsr_deploy.closing import Closing

__all__ = ["Sampler"]


class Sampler(Closing):
    """Reads sensors in a thread from creation to closing.

    Args:
        readers: of all sources; the total power is that of the first one that knows it.
        seconds: between two samples.
    """

    def __init__(self, readers: Sequence[Reader], *, seconds: float = 0.5) -> None:
        self._readers = readers
        self._seconds = seconds
        self._readings: list[list[Reading]] = [[] for _ in readers]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="sensors", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()

    def summary(self, *, seconds_per_frame: float) -> SensorSummary:
        """Summarise all samples, after closing.

        Args:
            seconds_per_frame: turns power into energy per frame.
        """
        every = [reading for readings in self._readings for reading in readings]
        watts = _by_name(every, lambda reading: reading.watts)
        total = next(filter(None, map(_total, self._readings)), None)
        clocks = _by_name(every, lambda reading: reading.clocks_mhz)
        temperatures = _by_name(every, lambda reading: reading.temperatures)
        throttling = [r.throttling for r in every if r.throttling is not None]
        modes = [r.power_mode for r in self._readers if r.power_mode is not None]
        limits = [r.power_limit_watts for r in self._readers if r.power_limit_watts is not None]
        return SensorSummary(
            sources=[reader.name for reader in self._readers],
            samples=max(map(len, self._readings), default=0),
            watts={name: statistics.fmean(values) for name, values in watts.items()},
            total_watts=total,
            joules_per_frame=None if total is None else total * seconds_per_frame,
            power_mode=modes[0] if modes else None,
            power_limit_watts=limits[0] if limits else None,
            clocks_mhz={name: [min(values), max(values)] for name, values in clocks.items()},
            temperatures={name: max(values) for name, values in temperatures.items()},
            throttling=sorted({x for part in throttling for x in part}) if throttling else None,
        )

    def peak_memory(self) -> int | None:
        """Return the most bytes of GPU memory that this process used."""
        every = (reading.memory_bytes for readings in self._readings for reading in readings)
        return max((used for used in every if used is not None), default=None)

    def _sample(self) -> None:
        while True:
            for reader, readings in zip(self._readers, self._readings, strict=True):
                readings.append(reader.read())
            if self._stop.wait(self._seconds):
                return


def _total(readings: Sequence[Reading]) -> float | None:
    """Return the mean total power of one source."""
    known = [r.total_watts for r in readings if r.total_watts is not None]
    return statistics.fmean(known) if known else None


def _by_name(
    readings: Sequence[Reading], values: Callable[[Reading], dict[str, float]]
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for reading in readings:
        for name, value in values(reading).items():
            found.setdefault(name, []).append(value)
    return found
