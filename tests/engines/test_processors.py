"""Tests that affinity and control groups limit the number of cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rbvsr_deploy.engines import control_groups, processors

AFFINITY = hasattr(os, "sched_getaffinity")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of eight processors in four cores, without control groups."""
    monkeypatch.setattr(control_groups, "_ROOT", tmp_path / "_CGROUPS")
    monkeypatch.setattr(control_groups, "_OWN", tmp_path / "_PROCESS")
    monkeypatch.setattr(processors, "_TOPOLOGY", tmp_path / "_TOPOLOGY")
    for number in range(8):
        folder = tmp_path / "_TOPOLOGY" / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        first = number % 4
        (folder / "thread_siblings_list").write_text(f"{first},{first + 4}\n")
    (tmp_path / "_CGROUPS").mkdir()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_two_threads_of_a_core_count_once(machine: Path) -> None:
    assert processors.usable_cores() == 4


@pytest.mark.parametrize(("allowed", "cores"), [({0}, 1), ({1, 5}, 1), ({0, 1, 2, 4}, 3)])
def test_affinity(
    allowed: set[int], cores: int, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: allowed)
    assert processors.usable_cores() == cores


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 4), ("150000 100000", 2), ("50000 100000", 1), ("900000 100000", 4), ("?", 4)],
)
def test_quota_of_a_container(quota: str, cores: int, machine: Path) -> None:
    """The quota is rounded up, and an unknown one ignored."""
    write(machine / "_CGROUPS" / "cpu.max", quota)
    assert processors.usable_cores() == cores


def test_quota_of_an_outer_group(machine: Path) -> None:
    """The smallest quota on the path to the process's group applies, and no other group's."""
    write(machine / "_PROCESS", "0::/user.slice/job.scope\n")
    write(machine / "_CGROUPS" / "user.slice" / "cpu.max", "200000 100000\n")
    write(machine / "_CGROUPS" / "user.slice" / "job.scope" / "cpu.max", "max 100000\n")
    write(machine / "_CGROUPS" / "system.slice" / "cpu.max", "100000 100000\n")
    assert processors.usable_cores() == 2


@pytest.mark.parametrize(("allowed", "cores"), [("-1", 4), ("300000", 3)])
def test_quota_of_version_1(allowed: str, cores: int, machine: Path) -> None:
    write(machine / "_PROCESS", "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n")
    group = machine / "_CGROUPS" / "cpu,cpuacct" / "docker" / "a"
    write(group / "cpu.cfs_quota_us", allowed)
    write(group / "cpu.cfs_period_us", "100000")
    assert processors.usable_cores() == cores


def test_a_group_outside_the_container_is_not_looked_for(machine: Path) -> None:
    write(machine / "_PROCESS", "0::/../../outer\n")
    write(machine / "cpu.max", "100000 100000\n")
    assert processors.usable_cores() == 4


@pytest.mark.skipif(not AFFINITY, reason="the system has no affinity")
def test_one_processor_gives_one_thread() -> None:
    """An engine in a process that is bound to one processor starts no threads."""
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.pretrained import DEFAULT_BUNDLE
before = len(os.listdir("/proc/self/task"))
with open_engine(DEFAULT_BUNDLE, device="cpu"):
    print(len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # ONNX Runtime has a thread of its own for its log.
    assert int(done.stdout) <= 1
