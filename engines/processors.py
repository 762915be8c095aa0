"""Counts the processors that computations of this process may use."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["usable_cores"]

_CGROUPS = Path("/sys/fs/cgroup")
_PROCESS = Path("/proc/self/cgroup")
_TOPOLOGY = Path("/sys/devices/system/cpu")


def usable_cores() -> int:
    """Return the number of physical cores that this process may keep busy: those of its affinity
    (``taskset``), and no more than the quota of its control groups, rounded up.

    Two threads on one core compute convolutions no faster than one.

    Returns:
        0 on macOS and Windows, which have no such limits: ONNX Runtime then takes all cores.
    """
    if not hasattr(os, "sched_getaffinity"):
        return 0
    cores = {_siblings(processor) for processor in os.sched_getaffinity(0)}
    return math.ceil(max(1, min(len(cores), _quota())))


def _siblings(processor: int) -> str:
    """Return the processors that share a core with this one, as the kernel writes them."""
    try:
        return (_TOPOLOGY / f"cpu{processor}/topology/thread_siblings_list").read_text("ascii")
    except OSError:
        return str(processor)


def _quota() -> float:
    """Return the smallest quota of the process's control groups, in processors."""
    quotas = [math.inf]
    for folder in _groups():
        with contextlib.suppress(OSError, ValueError):
            # Reads "max 100000" if there is no limit.
            quota, period = (folder / "cpu.max").read_text("ascii").split()
            quotas.append(int(quota) / int(period))
        with contextlib.suppress(OSError, ValueError):
            allowed = int((folder / "cpu.cfs_quota_us").read_text("ascii"))
            if allowed > 0:  # -1 if there is no limit
                quotas.append(allowed / int((folder / "cpu.cfs_period_us").read_text("ascii")))
    return min(quotas)


def _groups() -> Iterator[Path]:
    """Yield the folders of the control groups that limit this process, of either version."""
    try:
        lines = _PROCESS.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    yield from (_CGROUPS, _CGROUPS / "cpu")
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers not in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
            continue
        folder = _CGROUPS / controllers
        for name in Path(path).parts[1:]:
            if name == "..":  # the group lies outside what this container sees
                break
            folder /= name
            yield folder
