"""Tests workers on a real Ray cluster of several nodes on this machine."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rbvsr_deploy.cluster.film import share_file
from rbvsr_deploy.cluster.messages import Setup
from rbvsr_deploy.cluster.ray_workers import RayWorkers
from rbvsr_deploy.cluster.scheduler import Scheduler
from rbvsr_deploy.errors import EngineError
from rbvsr_deploy.jobs.summary import Summary
from rbvsr_deploy.runtime.output_size import OutputSize
from rbvsr_deploy.runtime.stream import Settings
from rbvsr_deploy.video import ReadOptions, WriteOptions
from tests.cluster.conftest import alone, shared
from tests.support.cluster_worker import open_in_actor

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]

DRIVER = """
import sys
from pathlib import Path
from tests.cluster.test_ray import shared_on_ray
from tests.support.cluster_worker import short_segments
short_segments()
address, clip, output, model = sys.argv[1:]
shared_on_ray(address, Path(clip), Path(output), Path(model))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Start a cluster of two nodes with one processor each, whose network takes 50 ms per frame."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOUBLE_SECONDS", "0.05")
        cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        cluster.add_node(num_cpus=1)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def shared_on_ray(
    address: str,
    clip: Path,
    output: Path,
    model: Path,
    report: Callable[[str], None] = lambda line: None,
    stage: bool = False,
) -> Summary:
    setup = Setup(model, "cpu", trust_engines=False, settings=Settings())
    with RayWorkers(address, None, setup, open_engine=open_in_actor) as workers:
        scheduler = Scheduler(workers, report=report)
        return share_file(
            clip,
            output,
            scheduler=scheduler,
            engine=scheduler.open(),
            settings=Settings(),
            size=OutputSize(),
            reading=ReadOptions(),
            writing=WriteOptions(),
            stage=stage,
        )


def actors() -> list[int]:
    """Return the processes of actors of these tests."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if b"rbvsr-run" in (folder / "cmdline").read_bytes().split(b"\0")[0]:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], object], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("stage", [False, True])
def test_the_same_file_as_one_process(
    stage: bool, cluster: Any, clip: Path, model: Path, tmp_path: Path
) -> None:
    """Two nodes give the bytes of one process; each does a part, and nothing is left."""
    before = set(Path(tempfile.gettempdir()).glob("rbvsr-worker-*"))
    expected = alone(clip, tmp_path / "one.mp4")
    summary = shared_on_ray(cluster.address, clip, tmp_path / "two.mp4", model, stage=stage)
    assert (tmp_path / "two.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert summary.scenes == expected.scenes
    assert len(summary.workers) == 2
    assert all(worker.frames for worker in summary.workers)
    wait_for(lambda: not actors(), seconds=20)
    assert set(Path(tempfile.gettempdir()).glob("rbvsr-worker-*")) <= before


def test_a_driver_that_is_killed(cluster: Any, clip: Path, model: Path, tmp_path: Path) -> None:
    """Its actors end by themselves, and processes of this machine finish the work."""
    alone(clip, tmp_path / "one.mp4")
    output = tmp_path / "two.mp4"
    command = [sys.executable, "-c", DRIVER, cluster.address, clip, output, model]
    process = subprocess.Popen(command)
    units = tmp_path / ".two.mp4.job" / "units"
    wait_for(lambda: list(units.glob("*/part-000001.json")), seconds=120)
    process.kill()
    process.wait()
    wait_for(lambda: not actors(), seconds=90)
    assert not output.exists()
    summary = shared(clip, output, model=model)
    assert summary.resumed_frames > 0
    assert output.read_bytes() == (tmp_path / "one.mp4").read_bytes()


def test_a_node_that_is_lost(cluster: Any, clip: Path, model: Path, tmp_path: Path) -> None:
    """Its unit is done by another node, and a node that joins meanwhile takes part."""
    alone(clip, tmp_path / "one.mp4")
    lost, lines = cluster.add_node(num_cpus=1), list[str]()
    units = tmp_path / ".two.mp4.job" / "units"

    def lose() -> None:
        wait_for(lambda: list(units.glob("*/part-000001.packets")), seconds=120)
        cluster.remove_node(lost, allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    try:
        summary = shared_on_ray(
            cluster.address, clip, tmp_path / "two.mp4", model, report=lines.append
        )
    finally:
        thread.join()
    assert (tmp_path / "two.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert len(summary.workers) == 3
    left_out = [line for line in lines if "is left out" in line]
    assert len(left_out) <= 1  # none if the others end before the cluster notices
    assert all("left the cluster" in line or "did not answer" in line for line in left_out)
    assert sum(worker.frames > 0 for worker in summary.workers) >= 2


def test_a_cluster_that_is_not_there(model: Path) -> None:
    """One sentence says so."""
    setup = Setup(model, "cpu", trust_engines=False, settings=Settings())
    with pytest.raises(EngineError, match=r"the Ray cluster ray://127.0.0.1:9 cannot be reached"):
        RayWorkers("ray://127.0.0.1:9", None, setup)
