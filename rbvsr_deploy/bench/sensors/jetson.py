"""Reads the power rails, the GPU's clock and the power mode of NVIDIA Jetson boards.

Power is measured by INA3221 chips (and on Thor by an INA238), which the kernel shows in sysfs;
reading them needs no root. What a rail includes depends on the board, so the total is taken from
the rails by name. The names and units are those of NVIDIA's developer guides (r36 and r38) and of
the kernel's documentation of these drivers.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from rbvsr_deploy.bench.sensors.reading import Reader, Reading, read_number, read_text

__all__ = ["JetsonReader", "find_jetson", "parse_power_mode"]

_TOTALS = (
    frozenset({"VIN"}),  # AGX Thor: the INA238 measures the whole board
    frozenset({"VDD_IN"}),  # Orin NX and Nano, and several boards of JetPack 4
    frozenset({"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}),  # AGX Orin
)
"""Rails that add up to the whole board; the first set that is present counts. The others are
within them: VDDQ_VDD2_1V8AO of AGX Orin, for example, is fed by VIN_SYS_5V0.
"""

_NOT_CONNECTED = "NC"

_GPU_NODES = re.compile(r"gpu.*|g[a-z]\d\d[a-z]")
"""Names of the GPU in the device tree ("gpu", or the chip as in "ga10b"), and on Thor those of its
clocks ("gpu-gpc-0").
"""


class JetsonReader(Reader):
    """Reads the sensors of a board.

    Args:
        root: folder that contains ``sys``, ``proc`` and ``etc``.
        power_mode: name of the power mode, which sysfs does not show; see :func:`find_jetson`.
    """

    name = "jetson"

    def __init__(self, root: Path = Path("/"), *, power_mode: str | None = None) -> None:
        self._root = root
        self.power_mode = power_mode
        self.board = read_text(root / "proc/device-tree/model") or "NVIDIA Jetson"

    @property
    def release(self) -> str | None:
        """Version of Linux for Tegra, such as "36.4.3"."""
        text = read_text(self._root / "etc/nv_tegra_release") or ""
        match = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text)
        return f"{match[1]}.{match[2]}" if match else None

    def read(self) -> Reading:
        """Read all rails and the GPU's clocks."""
        rails = dict(self._rails())
        reading = Reading(watts=rails, clocks_mhz=dict(self._clocks()))
        for names in _TOTALS:
            if names <= rails.keys():
                reading.total_watts = sum(rails[name] for name in names)
                break
        return reading

    def _rails(self) -> Iterator[tuple[str, float]]:
        """Yield each rail and its power in watts."""
        sys = self._root / "sys"
        # The same chip may be found in two ways, and hwmon numbers change from boot to boot.
        chips = [*sys.glob("bus/i2c/drivers/ina3221/*/hwmon/hwmon*")]
        chips += [path.parent for path in sys.glob("class/hwmon/hwmon*/name") if _is_ina(path)]
        for chip in sorted({path.resolve() for path in chips}):
            yield from _whole_board(chip) if (chip / "power1_input").exists() else _channels(chip)
        for chip in sorted(sys.glob("bus/i2c/drivers/ina3221x/*/iio:device*")):  # JetPack 4
            for number in range(3):
                rail = read_text(chip / f"rail_name_{number}")
                milliwatts = read_number(chip / f"in_power{number}_input")
                if rail not in (None, _NOT_CONNECTED) and milliwatts is not None:
                    yield str(rail), milliwatts / 1e3

    def _clocks(self) -> Iterator[tuple[str, float]]:
        """Yield the clocks of the GPU in MHz."""
        for device in sorted((self._root / "sys/class/devfreq").glob("*")):
            names = (device.name, read_text(device / "device/of_node/name") or "")
            hertz = read_number(device / "cur_freq")
            if any(map(_GPU_NODES.fullmatch, names)) and hertz is not None:
                yield device.name, hertz / 1e6


def find_jetson(root: Path = Path("/")) -> JetsonReader | None:
    """Return a reader if this machine is a Jetson."""
    model = read_text(root / "proc/device-tree/model") or ""
    if "Jetson" not in model and not (root / "etc/nv_tegra_release").exists():
        return None
    try:
        done = subprocess.run(
            ["nvpmodel", "-q"], capture_output=True, text=True, timeout=10, check=False
        )
        mode = parse_power_mode(done.stdout)
    except (OSError, subprocess.TimeoutExpired):
        mode = None
    return JetsonReader(root, power_mode=mode)


def parse_power_mode(text: str) -> str | None:
    """Return the name of the power mode in what ``nvpmodel -q`` prints. Its number, on the next
    line, means another mode on another board.
    """
    match = re.search(r"NV Power Mode: *(\S+)", text)
    return match[1] if match else None


def _is_ina(name: Path) -> bool:
    return (read_text(name) or "").startswith("ina")


def _channels(chip: Path) -> Iterator[tuple[str, float]]:
    """Yield the rails of an INA3221; its channel 7, the sum of the shunts, is not a rail."""
    for number in (1, 2, 3):
        rail = read_text(chip / f"in{number}_label")
        millivolts = read_number(chip / f"in{number}_input")
        milliamperes = read_number(chip / f"curr{number}_input")
        if rail not in (None, _NOT_CONNECTED) and None not in (millivolts, milliamperes):
            yield str(rail), (millivolts or 0.0) * (milliamperes or 0.0) / 1e6


def _whole_board(chip: Path) -> Iterator[tuple[str, float]]:
    """Yield the one rail of an INA238, which computes its power itself, in microwatts."""
    microwatts = read_number(chip / "power1_input")
    if microwatts is not None:
        yield read_text(chip / "in1_label") or "VIN", microwatts / 1e6
