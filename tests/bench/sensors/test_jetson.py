"""Tests the reader of Jetson boards on trees of sysfs files.

The trees are made from documentation (NVIDIA's developer guides r36 and r38 and the kernel's
documentation of ina3221 and ina238), not recorded on boards: this project has none. The numbers in
them are invented; the names, paths and units are the documented ones.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from rbvsr_deploy.bench.sensors.find import find_sensors
from rbvsr_deploy.bench.sensors.jetson import JetsonReader, find_jetson, parse_power_mode
from rbvsr_deploy.bench.sensors.linux import LinuxReader
from rbvsr_deploy.bench.sensors.sampler import Sampler

I2C = "sys/bus/i2c/drivers/ina3221"


def make_tree(root: Path, files: Mapping[str, object]) -> Path:
    """Write files with one value each, as sysfs shows them."""
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n", encoding="utf-8")
    return root


def channels(chip: str, *rails: tuple[str, int, int]) -> dict[str, object]:
    """Return the files of an INA3221: label, mV and mA by channel, and the sum of the shunts."""
    files: dict[str, object] = {f"{chip}/name": "ina3221"}
    for number, (label, millivolts, milliamperes) in enumerate(rails, start=1):
        files |= {
            f"{chip}/in{number}_label": label,
            f"{chip}/in{number}_input": millivolts,
            f"{chip}/curr{number}_input": milliamperes,
        }
    total = sum(rail[2] for rail in rails)
    return files | {
        f"{chip}/in7_label": "sum of shunt voltages",
        f"{chip}/in7_input": 12,
        f"{chip}/curr4_input": total,
    }


AGX_ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic",
    **channels(
        f"{I2C}/1-0040/hwmon/hwmon3",
        ("VDD_GPU_SOC", 19_000, 1_000),
        ("VDD_CPU_CV", 19_000, 200),
        ("VIN_SYS_5V0", 5_000, 1_500),
    ),
    # Its second chip measures what VIN_SYS_5V0 already includes.
    **channels(
        f"{I2C}/1-0041/hwmon/hwmon4",
        ("NC", 5_000, 9_999),
        ("VDDQ_VDD2_1V8AO", 5_000, 300),
        ("NC", 0, 0),
    ),
    "sys/class/devfreq/17000000.gpu/device/of_node/name": "gpu\0",
    "sys/class/devfreq/17000000.gpu/cur_freq": 1_300_500_000,
    "sys/class/devfreq/15340000.vic/device/of_node/name": "vic\0",
    "sys/class/devfreq/15340000.vic/cur_freq": 115_200_000,
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": 51_250,
    "sys/class/thermal/thermal_zone1/type": "cv0-thermal",
    "sys/class/thermal/thermal_zone1/temp": -256_000,
}
ORIN_NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic",
    **channels(
        f"{I2C}/1-0040/hwmon/hwmon1",
        ("VDD_IN", 5_000, 2_960),
        ("VDD_CPU_GPU_CV", 5_000, 1_240),
        ("VDD_SOC", 5_000, 400),
    ),
    "sys/class/devfreq/17000000.gpu/device/of_node/name": "gpu\0",
    "sys/class/devfreq/17000000.gpu/cur_freq": 1_020_000_000,
}
THOR = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic",
    **channels(
        "sys/class/hwmon/hwmon5",
        ("VDD_GPU", 12_000, -8),  # slightly below zero when gated
        ("VDD_CPU_SOC_MSS", 12_000, 1_250),
        ("VIN_SYS_5V0", 5_000, 2_000),
    ),
    "sys/class/hwmon/hwmon6/name": "ina238",
    "sys/class/hwmon/hwmon6/in1_input": 20_000,
    "sys/class/hwmon/hwmon6/curr1_input": 1_905,
    "sys/class/hwmon/hwmon6/power1_input": 38_100_000,
    "sys/class/hwmon/hwmon0/name": "nvme",
    "sys/class/hwmon/hwmon0/temp1_input": 40_000,
    "sys/class/devfreq/gpu-gpc-0/cur_freq": 1_575_000_000,
    "sys/class/devfreq/gpu-nvd-0/cur_freq": 1_692_000_000,
    "sys/class/devfreq/gpu-nvd-0/device/of_node/name": "pcie\0",
}
NANO_JETPACK_4 = {
    "proc/device-tree/model": "NVIDIA Jetson TX2 Developer Kit\0",
    "etc/nv_tegra_release": "# R32 (release), REVISION: 7.1, GCID: 29689809, BOARD: t186ref",
    "sys/bus/i2c/drivers/ina3221x/0-0041/iio:device1/rail_name_0": "VDD_IN",
    "sys/bus/i2c/drivers/ina3221x/0-0041/iio:device1/in_power0_input": 4_350,
    "sys/bus/i2c/drivers/ina3221x/0-0041/iio:device1/rail_name_1": "VDD_SYS_CPU",
    "sys/bus/i2c/drivers/ina3221x/0-0041/iio:device1/in_power1_input": 760,
}

BOARDS = {
    "AGX Orin": (
        AGX_ORIN,
        {"VDD_GPU_SOC": 19, "VDD_CPU_CV": 3.8, "VIN_SYS_5V0": 7.5, "VDDQ_VDD2_1V8AO": 1.5},
        30.3,
        {"17000000.gpu": 1300.5},
        "36.4.3",
    ),
    "Orin Nano": (
        ORIN_NANO,
        {"VDD_IN": 14.8, "VDD_CPU_GPU_CV": 6.2, "VDD_SOC": 2},
        14.8,
        {"17000000.gpu": 1020},
        "36.4.4",
    ),
    "Thor": (
        THOR,
        {"VDD_GPU": -0.096, "VDD_CPU_SOC_MSS": 15, "VIN_SYS_5V0": 10, "VIN": 38.1},
        38.1,
        {"gpu-gpc-0": 1575, "gpu-nvd-0": 1692},
        "38.2.0",
    ),
    "JetPack 4": (NANO_JETPACK_4, {"VDD_IN": 4.35, "VDD_SYS_CPU": 0.76}, 4.35, {}, "32.7.1"),
}


@pytest.mark.parametrize("board", BOARDS)
def test_watts_and_clocks(tmp_path: Path, board: str) -> None:
    """Every rail that is connected, the total that the board's documentation gives, and the GPU's
    clocks only.
    """
    files, watts, total, clocks, release = BOARDS[board]
    reader = find_jetson(make_tree(tmp_path, files))
    assert reader is not None
    reading = reader.read()
    assert reading.watts == pytest.approx(watts)
    assert reading.total_watts == pytest.approx(total)
    assert reading.clocks_mhz == pytest.approx(clocks)
    assert reader.release == release
    assert reader.board == str(files["proc/device-tree/model"]).strip("\0")


@pytest.mark.parametrize("number", [0, 7, 42])
def test_hwmon_numbers_change_from_boot_to_boot(tmp_path: Path, number: int) -> None:
    files = {name.replace("hwmon3", f"hwmon{number}"): value for name, value in AGX_ORIN.items()}
    assert JetsonReader(make_tree(tmp_path, files)).read().total_watts == pytest.approx(30.3)


def test_a_chip_that_is_listed_twice_counts_once(tmp_path: Path) -> None:
    """The kernel lists the same chip under its bus and under its class."""
    root = make_tree(tmp_path, AGX_ORIN)
    listed = root / "sys/class/hwmon/hwmon3"
    listed.parent.mkdir(parents=True)
    listed.symlink_to(root / I2C / "1-0040/hwmon/hwmon3")
    reading = JetsonReader(root).read()
    assert reading.total_watts == pytest.approx(30.3)
    assert len(reading.watts) == 4


def test_a_rail_that_cannot_be_read_leaves_no_wrong_total(tmp_path: Path) -> None:
    """The driver may fail for one rail; a sum without it would look like a saving."""
    root = make_tree(tmp_path, AGX_ORIN)
    (root / I2C / "1-0040/hwmon/hwmon3/curr2_input").unlink()
    reading = JetsonReader(root).read()
    assert reading.watts.keys() == {"VDD_GPU_SOC", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}
    assert reading.total_watts is None


def test_unknown_rails_have_no_total(tmp_path: Path) -> None:
    """Rails of a board that nobody documented are reported, and not added up."""
    files = channels(f"{I2C}/7-0040/hwmon/hwmon1", ("VDD_NEW", 5_000, 1_000), ("NC", 1, 1))
    reading = JetsonReader(make_tree(tmp_path, files)).read()
    assert reading.watts == {"VDD_NEW": 5}
    assert reading.total_watts is None


def test_another_machine_is_not_a_jetson(tmp_path: Path) -> None:
    assert find_jetson(tmp_path) is None
    make_tree(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"})
    assert find_jetson(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", "MAXN"),
        ("NV Power Mode: MAXN_SUPER\n2\n", "MAXN_SUPER"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n0\n", "15W"),
        ("nvpmodel: permission denied\n", None),
    ],
)
def test_power_mode(text: str, mode: str | None) -> None:
    """The name counts; the number on the next line differs between boards."""
    assert parse_power_mode(text) == mode


def test_joules_per_frame(tmp_path: Path) -> None:
    """Power times the duration of a frame; the reader that knows the board comes first."""
    readers, missing = find_sensors("cuda:0", make_tree(tmp_path, AGX_ORIN))
    assert [reader.name for reader in readers] == ["jetson", "sysfs"]
    assert missing == {"power_mode": "nvpmodel did not answer"}
    with Sampler(readers, seconds=0.001) as sampler:
        time.sleep(0.02)
    summary = sampler.summary(seconds_per_frame=0.05)
    assert summary.samples > 1
    assert summary.total_watts == pytest.approx(30.3)
    assert summary.joules_per_frame == pytest.approx(1.515)
    assert summary.clocks_mhz["17000000.gpu"] == [1300.5, 1300.5]
    assert summary.temperatures == {"cpu-thermal": 51.25}


def test_no_sensors_are_no_figures(tmp_path: Path) -> None:
    with Sampler([LinuxReader(tmp_path)], seconds=0.001) as sampler:
        pass
    summary = sampler.summary(seconds_per_frame=1)
    assert [summary.total_watts, summary.joules_per_frame, summary.throttling] == [None] * 3
    assert not summary.watts
    assert not summary.clocks_mhz
    assert not summary.temperatures
