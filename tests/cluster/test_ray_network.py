"""Tests workers on a Ray cluster whose nodes have networks and addresses of their own.

Each node runs in a network namespace, connected by a bridge that a test can cut. It needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import alone, make_clip

pytest.importorskip("ray")

pytestmark = pytest.mark.slow

_RAY = str(Path(sys.executable).with_name("ray"))
_PIECE = 5000
_DRIVER = """
import dataclasses, json, os, sys
from pathlib import Path
from rbvsr_deploy.cluster import film, staging
from rbvsr_deploy.cluster.ray_workers import RayWorkers
from tests.cluster.test_ray import shared_on_ray
from tests.support.cluster_worker import short_segments

address, clip, output, stage = sys.argv[1:]
short_segments()
film.WHOLE, staging.MARGIN, staging._FRAMES = 0, 3000, 20
staging.PIECE = int(os.environ["DOUBLE_PIECE"])
pieces, parts = [], []

def send(self, name, message, usual=RayWorkers.send):
    if isinstance(message, film.Piece):
        pieces.append(len(message.data))
    usual(self, name, message)

def write_part(folder, part, usual=film.write_part):
    parts.append(len(part.data))
    usual(folder, part)

RayWorkers.send, film.write_part = send, write_part
lines = []
summary = shared_on_ray(
    address, Path(clip), Path(output), Path("model.plan"), report=lines.append, stage=bool(stage)
)
print(json.dumps({**dataclasses.asdict(summary), "lines": lines, "pieces": pieces, "parts": parts}))
"""
_WAIT = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < 3:
    time.sleep(0.2)
"""


@dataclass(frozen=True)
class Network:
    """A running cluster."""

    address: str
    environment: dict[str, str]
    hidden: Path
    """A folder whose files the nodes do not see."""
    links: list[str]
    """Names of the links to the nodes."""

    def driver(self, clip: Path, output: Path, *, stage: bool = False) -> subprocess.Popen[str]:
        """Start a process that upscales on the cluster."""
        command = [sys.executable, "-c", _DRIVER, self.address, str(clip), str(output), "1" * stage]
        return subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the summary of a driver, with the lines that it reported."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def ip(*arguments: str, namespace: str | None = None) -> None:
    """Run the command of that name."""
    where = [] if namespace is None else ["-n", namespace]
    subprocess.run(["ip", *where, *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def namespaces(number: int) -> Iterator[tuple[str, dict[str, str], list[str]]]:
    """Yield the address of this machine, those of two namespaces by name, and their links."""
    bridge, net = f"rb{number}", f"10.77.{number % 256}"
    nodes = {f"{bridge}n{node}": f"{net}.1{node}" for node in (1, 2)}
    links = [f"{bridge}v{node}" for node in (1, 2)]
    with contextlib.ExitStack() as stack:
        ip("link", "add", bridge, "type", "bridge")
        stack.callback(ip, "link", "del", bridge)
        ip("addr", "add", f"{net}.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for (name, address), link in zip(nodes.items(), links, strict=True):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", link, "master", bridge, "up")
            ip("addr", "add", f"{address}/24", "dev", "eth0", namespace=name)
            for device in ("eth0", "lo"):
                ip("link", "set", device, "up", namespace=name)
        yield f"{net}.1", nodes, links


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Start a cluster of a head without workers and of two nodes."""
    number = os.getpid() % 100000
    with contextlib.ExitStack() as stack:
        try:
            here, nodes, links = stack.enter_context(namespaces(number))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces: {error}")
        folder = Path(f"/tmp/rb{number}")  # paths of sockets have to be short
        folder.mkdir()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / "ray").mkdir()
        hidden = tmp_path_factory.mktemp("hidden")
        environment = {
            **os.environ,
            "DOUBLE_SECONDS": "0.05",
            "DOUBLE_PIECE": str(_PIECE),
            "RAY_AUTH_MODE": "disabled",
            "RAY_agent_register_timeout_ms": "300000",
        }
        with socket.socket() as free:
            free.bind((here, 0))
            address = f"{here}:{free.getsockname()[1]}"
        start = [_RAY, "start", "--block", "--disable-usage-stats"]
        start += [f"--object-store-memory={10**8}"]
        head = [*start, "--head", "--num-cpus=0", f"--node-ip-address={here}"]
        head += [f"--port={address.partition(':')[2]}", f"--temp-dir={folder}/ray"]
        head.append("--include-dashboard=false")
        log = stack.enter_context((tmp_path_factory.mktemp("log") / "ray").open("wb"))
        processes = [subprocess.Popen(head, env=environment, stdout=log, stderr=log)]
        stack.callback(end, processes)
        wait_for_port(address)
        for name, own in nodes.items():
            # Each has its own sockets, and sees nothing in the hidden folder.
            hide = f'mount -t tmpfs tmpfs {folder}/ray; mount -t tmpfs tmpfs {hidden}; exec "$@"'
            command = ["ip", "netns", "exec", name, "sh", "-ec", hide, "sh", *start, "--num-cpus=1"]
            command += [f"--address={address}", f"--node-ip-address={own}"]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        wait = [sys.executable, "-c", _WAIT, address]
        subprocess.run(wait, env=environment, timeout=240, check=True)
        yield Network(address, environment, hidden, links)


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(60)


def wait_for_port(address: str) -> None:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_without_shared_storage(network: Network) -> None:
    """Nodes that do not see the input get parts of it and send the segments back, in small pieces;
    the output is that of one process.
    """
    clip = make_clip(network.hidden / "clip.mp4", [30, 62, 50, 28, 80, 50])
    one, two = network.hidden / "one.mp4", network.hidden / "two.mp4"
    alone(clip, one)
    summary = result(network.driver(clip, two, stage=True))
    assert two.read_bytes() == one.read_bytes()
    assert [worker["retries"] for worker in summary["workers"]] == [0, 0], summary["lines"]
    assert all(worker["frames"] for worker in summary["workers"])
    assert max(summary["pieces"]) == max(summary["parts"]) == _PIECE
    units = sum(worker["tasks"] for worker in summary["workers"])
    assert sum(summary["pieces"]) < 0.9 * units * clip.stat().st_size
    assert sorted(path.name for path in network.hidden.iterdir()) == [
        "clip.mp4",
        "one.mp4",
        "two.mp4",
    ]


def test_a_node_that_is_cut_off(network: Network, clip: Path, tmp_path: Path) -> None:
    """One sentence says so, and the other node does its unit; later, the cluster has one node."""
    alone(clip, tmp_path / "one.mp4")
    output, units = tmp_path / "two.mp4", tmp_path / ".two.mp4.job" / "units"
    process = network.driver(clip, output)
    while len(list(units.glob("*/part-000001.packets"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    ip("link", "set", network.links[0], "down")
    try:
        summary = result(process)
    finally:
        ip("link", "set", network.links[0], "up")
    assert output.read_bytes() == (tmp_path / "one.mp4").read_bytes()
    about = [line for line in summary["lines"] if line.startswith("worker ")]
    assert len(about) == 1, summary["lines"]
    assert "did not answer" in about[0] or "was lost" in about[0]
    assert not units.parent.exists()
