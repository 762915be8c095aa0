"""Tests that free memory respects every limit on this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbvsr_deploy.engines import control_groups, memory

MIB = 2**20


def group(folder: Path, *, limit: str, used: int, cached: int = 0, version: int = 2) -> None:
    names = ("memory.max", "memory.current")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\nactive_file 2\n")


@pytest.mark.parametrize(
    ("own", "free"),
    [
        ("0::/user.slice/job.scope", 40),  # its own
        ("0::/user.slice/other.scope", 60),  # that of the group above it
        ("0::/", 900),
        ("0::/../../elsewhere", 900),  # the container sees only a part of the hierarchy
        ("0::/vanished", 900),
        ("1:name=systemd:/x\n4:cpu,memory:/slurm/job_7\n0::/", 25),  # version 1
        ("3:cpu:/a:b", 1000),
    ],
)
def test_the_smallest_limit_counts(
    own: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, listed = tmp_path / "cgroup", tmp_path / "own"
    group(groups, limit=str(1000 * MIB), used=100 * MIB)
    group(groups / "user.slice", limit=str(80 * MIB), used=30 * MIB, cached=10 * MIB)
    group(groups / "user.slice/job.scope", limit=str(50 * MIB), used=10 * MIB)
    group(groups / "user.slice/other.scope", limit="max", used=10 * MIB)
    group(groups / "memory/slurm/job_7", limit=str(30 * MIB), used=5 * MIB, version=1)
    listed.write_text(f"{own}\n")
    monkeypatch.setattr(control_groups, "_ROOT", groups)
    monkeypatch.setattr(control_groups, "_OWN", listed)
    monkeypatch.setattr(memory, "_available", lambda: 1000 * MIB)
    assert memory.free_host_memory() == free * MIB


def test_a_full_group_has_no_memory_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group(tmp_path, limit="1000", used=2000)
    (tmp_path / "own").write_text("0::/\n")
    monkeypatch.setattr(control_groups, "_ROOT", tmp_path)
    monkeypatch.setattr(control_groups, "_OWN", tmp_path / "own")
    assert memory.free_host_memory() == 0
