"""Counts the processors that computations of this process may use."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

from rbvsr_deploy.engines.control_groups import control_groups

__all__ = ["core_shares", "usable_cores"]

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


def core_shares(shares: int) -> list[list[int]]:
    """Divide the cores that this process may use among processes.

    Args:
        shares: number of processes.

    Returns:
        For each of them the processors to keep to, at least one core; some share cores if there are
        not enough. Empty lists where the system has no affinity.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(shares)]
    cores: dict[str, list[int]] = {}
    for processor in sorted(os.sched_getaffinity(0)):
        cores.setdefault(_siblings(processor), []).append(processor)
    groups = list(cores.values())
    most = max(1, usable_cores() // shares)
    divided = []
    for number in range(shares):
        begin = number * len(groups) // shares
        end = max(begin + 1, (number + 1) * len(groups) // shares)
        divided.append([processor for core in groups[begin:end][:most] for processor in core])
    return divided


def _siblings(processor: int) -> str:
    """Return the processors that share a core with this one, as the kernel writes them."""
    try:
        return (_TOPOLOGY / f"cpu{processor}/topology/thread_siblings_list").read_text("ascii")
    except OSError:
        return str(processor)


def _quota() -> float:
    """Return the smallest quota of the process's control groups, in processors."""
    quotas = [math.inf]
    for folder in control_groups("cpu"):
        with contextlib.suppress(OSError, ValueError):
            # Reads "max 100000" if there is no limit.
            quota, period = (folder / "cpu.max").read_text("ascii").split()
            quotas.append(int(quota) / int(period))
        with contextlib.suppress(OSError, ValueError):
            allowed = int((folder / "cpu.cfs_quota_us").read_text("ascii"))
            if allowed > 0:  # -1 if there is no limit
                quotas.append(allowed / int((folder / "cpu.cfs_period_us").read_text("ascii")))
    return min(quotas)
