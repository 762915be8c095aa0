"""Reads what Linux shows of any machine: CPU clocks, temperatures, package power, throttling."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from rbvsr_deploy.bench.sensors.reading import Reader, Reading, read_number, read_text

__all__ = ["LinuxReader"]


class LinuxReader(Reader):
    """Reads sysfs; on other systems it finds nothing.

    Args:
        root: folder that contains ``sys``.
    """

    name = "sysfs"

    def __init__(self, root: Path = Path("/")) -> None:
        self._sys = root / "sys"
        # Intel's and AMD's energy counters of whole packages; most systems show them only to root.
        self._packages = sorted((self._sys / "class/powercap").glob("intel-rapl:?"))
        limits = [read_number(p / "constraint_0_power_limit_uw") for p in self._packages]
        self.power_limit_watts = sum(x for x in limits if x is not None) / 1e6 or None
        self._energy = dict(self._energies())
        self._read_at = time.perf_counter()
        self._throttled = self._throttle_count()

    def read(self) -> Reading:
        """Read everything; power and throttling are those since the last reading."""
        reading = Reading(clocks_mhz=dict(self._clocks()), temperatures=dict(self._temperatures()))
        energy, now = dict(self._energies()), time.perf_counter()
        passed = max(now - self._read_at, 1e-9)
        for name in energy.keys() & self._energy.keys():
            if energy[name] >= self._energy[name]:  # the counter wraps
                reading.watts[name] = (energy[name] - self._energy[name]) / passed
        reading.total_watts = sum(reading.watts.values()) or None
        self._energy, self._read_at = energy, now
        count = self._throttle_count()
        if count is not None and self._throttled is not None:
            reading.throttling = ["CPU temperature"] if count > self._throttled else []
        self._throttled = count
        return reading

    def _clocks(self) -> Iterator[tuple[str, float]]:
        for policy in sorted((self._sys / "devices/system/cpu/cpufreq").glob("policy*")):
            kilohertz = read_number(policy / "scaling_cur_freq")
            if kilohertz is not None:
                yield f"cpu {policy.name}", kilohertz / 1e3

    def _temperatures(self) -> Iterator[tuple[str, float]]:
        for zone in sorted((self._sys / "class/thermal").glob("thermal_zone*")):
            millidegrees = read_number(zone / "temp")
            # Sensors of parts that are switched off answer with absurd numbers, if at all.
            if millidegrees is not None and -50_000 < millidegrees < 200_000:
                yield read_text(zone / "type") or zone.name, millidegrees / 1e3

    def _energies(self) -> Iterator[tuple[str, float]]:
        """Yield the energy of every package so far, in joules."""
        for package in self._packages:
            microjoules = read_number(package / "energy_uj")
            if microjoules is not None:
                yield read_text(package / "name") or package.name, microjoules / 1e6

    def _throttle_count(self) -> float | None:
        counts = [
            read_number(path)
            for path in (self._sys / "devices/system/cpu").glob(
                "cpu[0-9]*/thermal_throttle/core_throttle_count"
            )
        ]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None
