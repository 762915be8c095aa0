"""Tests workers on a real Ray cluster of two nodes on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rbvsr_deploy.cluster.film import share_file
from rbvsr_deploy.cluster.messages import Setup
from rbvsr_deploy.cluster.ray_workers import RayWorkers
from rbvsr_deploy.cluster.scheduler import Scheduler
from rbvsr_deploy.runtime.stream import Settings
from rbvsr_deploy.video import ReadOptions, WriteOptions
from tests.cluster.conftest import alone
from tests.support.cluster_worker import open_in_actor

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Start a cluster of two nodes with one processor each."""
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


def test_the_same_file_as_one_process(
    address: str, clip: Path, model: Path, tmp_path: Path
) -> None:
    """Two nodes give the bytes of one process, and each does a part of the work."""
    expected = alone(clip, tmp_path / "one.mp4")
    setup = Setup(model, "cpu", trust_engines=False, settings=Settings())
    with RayWorkers(address, None, setup, open_engine=open_in_actor) as workers:
        scheduler = Scheduler(workers)
        summary = share_file(
            clip,
            tmp_path / "two.mp4",
            scheduler=scheduler,
            engine=scheduler.open(),
            settings=Settings(),
            reading=ReadOptions(),
            writing=WriteOptions(),
        )
    assert (tmp_path / "two.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert summary.scenes == expected.scenes
    assert len(summary.workers) == 2
    assert all(worker.frames for worker in summary.workers)
