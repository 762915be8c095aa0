"""Tests what is read of any Linux machine, on trees of sysfs files."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rbvsr_deploy.bench.sensors.linux import LinuxReader
from tests.bench.sensors.test_jetson import make_tree

RAPL = "sys/class/powercap/intel-rapl:0"


def test_power_is_the_energy_between_two_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only whole packages are read, not their parts; a counter that wraps gives no figure."""
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    files = {f"{RAPL}/name": "package-0", f"{RAPL}/energy_uj": 5_000_000}
    files |= {f"{RAPL}/constraint_0_power_limit_uw": 65_000_000}
    files |= {f"{RAPL}:0/name": "core", f"{RAPL}:0/energy_uj": 1}
    reader = LinuxReader(make_tree(tmp_path, files))
    assert reader.power_limit_watts == 65
    clock[0] += 2
    make_tree(tmp_path, {f"{RAPL}/energy_uj": 75_000_000})
    reading = reader.read()
    assert reading.watts == pytest.approx({"package-0": 35})
    assert reading.total_watts == pytest.approx(35)
    clock[0] += 1
    make_tree(tmp_path, {f"{RAPL}/energy_uj": 100})
    assert reader.read().total_watts is None


def test_clocks_and_throttling(tmp_path: Path) -> None:
    """Throttling is reported in the reading after the count has risen."""
    cpu = "sys/devices/system/cpu"
    count = f"{cpu}/cpu1/thermal_throttle/core_throttle_count"
    files = {f"{cpu}/cpufreq/policy0/scaling_cur_freq": 2_400_000, count: 3}
    reader = LinuxReader(make_tree(tmp_path, files))
    assert reader.read().throttling == []
    make_tree(tmp_path, {count: 4})
    reading = reader.read()
    assert reading.throttling == ["CPU temperature"]
    assert reading.clocks_mhz == {"cpu policy0": 2400}
    assert reader.read().throttling == []


def test_a_machine_without_counters_does_not_claim_that_it_is_cool(tmp_path: Path) -> None:
    assert LinuxReader(tmp_path).read().throttling is None
