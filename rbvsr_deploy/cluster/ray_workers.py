"""Runs workers on a Ray cluster: one actor per GPU or, without GPUs, per node."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rbvsr_deploy.cluster.messages import (
    Cancel,
    Gone,
    Piece,
    Refused,
    Setup,
    Task,
    from_json,
    to_json,
)
from rbvsr_deploy.cluster.ray_actor import SECONDS_WITHOUT_CONTACT, Actor
from rbvsr_deploy.cluster.workers import Workers
from rbvsr_deploy.errors import EngineError, MissingDependencyError, first_line

if TYPE_CHECKING:
    from rbvsr_deploy.engines import Engine

__all__ = ["RayWorkers"]

_SECONDS_TO_END = 3.0
_SECONDS_BETWEEN_LOOKS = 10.0
"""Time between looks for new nodes."""


class RayWorkers(Workers):
    """Starts actors on the nodes of a cluster, also on those that join later. They end when this
    process does, or cannot reach them any longer.

    Args:
        address: "auto" for the cluster that this machine belongs to, or ray://HOST:PORT.
        count: largest number of workers; ``None``: all that fit. On nodes without GPUs, several
            share the cores.
        setup: engine and settings; each worker's share of its node is filled in.
        open_engine: opens another engine than :func:`rbvsr_deploy.engines.open_engine`.

    Raises:
        MissingDependencyError: Ray is not installed.
        EngineError: the cluster cannot be reached.
    """

    def __init__(
        self,
        address: str,
        count: int | None,
        setup: Setup,
        *,
        open_engine: Callable[..., Engine] | None = None,
    ) -> None:
        try:
            import ray
        except ImportError:
            raise MissingDependencyError(
                "ray", extra="cluster", purpose="sharing the work on a cluster"
            ) from None
        super().__init__()
        self._ray: Any = ray
        self._open_engine = open_engine
        self._count, self._setup = count, setup
        self._places: dict[str, tuple[str, Setup]] = {}  # node and setup by the worker's name
        self._known: set[str] = set()  # nodes
        self._actors: dict[str, Any] = {}
        self._waiting: dict[Any, str] = {}  # worker whose messages are waited for
        self._contact: dict[str, float] = {}
        self._starts: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._own = not ray.is_initialized()
        if self._own:
            try:
                ray.init(address=address, log_to_driver=False, logging_level="WARNING")
            except Exception as error:  # it raises whatever its transport does
                raise EngineError(
                    f"the Ray cluster {address} cannot be reached: {first_line(error)}"
                    f"{_about_token()}"
                ) from None
        self._thread = threading.Thread(target=self._pump, name="ray", daemon=True)

    def start(self) -> None:
        self._look_for_nodes()
        if not self._places:
            raise EngineError("the Ray cluster has no node with a processor or GPU to use")
        self._thread.start()

    @property
    def names(self) -> list[str]:
        with self._lock:
            return list(self._places)

    def send(self, name: str, message: Task | Piece | Cancel) -> None:
        with self._lock:
            actor = self._actors.get(name)
        if actor is not None:
            sent = actor.send.remote(to_json(message))
            if isinstance(message, Piece):  # one at a time: they are large
                with contextlib.suppress(Exception):  # the worker's next message says it
                    self._ray.get(sent, timeout=SECONDS_WITHOUT_CONTACT)

    def restart(self, name: str) -> None:
        node, setup = self._places[name]
        if node not in {n["NodeID"] for n in self._ray.nodes() if n["Alive"]}:
            self._messages.put((name, Refused("its node has left the cluster")))
            return
        gpus, cores = self._needs(setup)
        self._starts[name] += 1
        again = f", start {self._starts[name]}" if self._starts[name] > 1 else ""
        actor = (
            self._ray.remote(Actor)
            .options(
                name=f"rbvsr-run: {name}{again}",
                num_gpus=gpus,
                num_cpus=cores,
                max_concurrency=4,
                scheduling_strategy=self._on(node),
            )
            .remote(to_json(setup), self._open_engine)
        )
        with self._lock:
            self._actors[name] = actor
            self._contact.pop(name, None)
            self._wait_for(name)

    def stop(self, name: str) -> None:
        with self._lock:
            actor = self._actors.pop(name, None)
        if actor is not None:
            with contextlib.suppress(Exception):  # it may be gone already
                self._ray.kill(actor)

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        with self._lock, contextlib.suppress(Exception):  # some may be gone already
            ends = [actor.end.remote() for actor in self._actors.values()]
            self._ray.wait(ends, num_returns=len(ends), timeout=_SECONDS_TO_END)
        for name in self.names:
            self.stop(name)
        if self._thread.is_alive():
            self._thread.join()
        if self._own:
            self._ray.shutdown()

    def _pump(self) -> None:
        """Take the messages of all workers."""
        looked = time.monotonic()
        while not self._closed.is_set():
            with self._lock:
                waiting = list(self._waiting)
            if not waiting:
                self._closed.wait(0.1)
            else:
                ready, silent = self._ray.wait(waiting, num_returns=1, timeout=0.2)
                for reference in ready:
                    self._fetch(reference)
                for reference in silent:
                    self._give_up(reference)
            if self._count is None and time.monotonic() - looked > _SECONDS_BETWEEN_LOOKS:
                looked = time.monotonic()
                with contextlib.suppress(Exception):  # the next look may succeed
                    self._look_for_nodes()

    def _fetch(self, reference: Any) -> None:
        with self._lock:
            name = self._waiting.pop(reference)
        try:
            lines = self._ray.get(reference)
        except Exception as error:
            if self._closed.is_set():
                return
            unreachable = isinstance(error, self._ray.exceptions.ActorUnavailableError)
            with self._lock:
                if unreachable and not self._is_silent(name) and name in self._actors:
                    self._wait_for(name)
                    return
            self.stop(name)
            self._messages.put((name, Gone(_how(error))))
            return
        with self._lock:
            self._contact[name] = time.monotonic()
            if name in self._actors:
                self._wait_for(name)
        for line in lines:
            self._messages.put((name, from_json(line, of_worker=True)))

    def _give_up(self, reference: Any) -> None:
        """Give a worker up that should have answered long ago: it hangs, or only this machine
        cannot reach it.
        """
        with self._lock:
            name = self._waiting[reference]
            if not self._is_silent(name):
                return
            del self._waiting[reference]
        self.stop(name)
        self._messages.put((name, Gone(f"did not answer for {SECONDS_WITHOUT_CONTACT:.0f} s")))

    def _is_silent(self, name: str) -> bool:
        """Return whether a worker that has answered before has not done so for long."""
        contact = self._contact.get(name)  # starting takes as long as it takes
        return contact is not None and time.monotonic() - contact > SECONDS_WITHOUT_CONTACT

    def _wait_for(self, name: str) -> None:
        self._waiting[self._actors[name].receive.remote()] = name

    def _look_for_nodes(self) -> None:
        """Start workers on nodes that have none."""
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        new = [node for node in nodes if node["NodeID"] not in self._known]
        self._known.update(node["NodeID"] for node in new)
        chosen = list(self._divide(new))
        for node, setup in chosen[: self._count]:
            with self._lock:
                name = f"worker {len(self._places) + 1}"
                self._places[name] = node, setup
            self.restart(name)

    def _divide(self, nodes: list[dict[str, Any]]) -> Iterator[tuple[str, Setup]]:
        """Yield node and setup of the workers for some nodes, one node after the other in turn."""
        with_gpu = (
            {}
            if self._setup.device == "cpu"
            else {
                node["NodeID"]: int(node["Resources"]["GPU"])
                for node in nodes
                if node["Resources"].get("GPU", 0) >= 1
            }
        )
        if with_gpu:
            for turn in range(max(with_gpu.values())):
                for node, gpus in with_gpu.items():
                    if turn < gpus:
                        yield node, msgspec.structs.replace(self._setup, on_gpu=True)
            return
        usable = [n["NodeID"] for n in nodes if n["Resources"].get("CPU", 0) >= 1]
        count = self._count or len(usable)
        for number in range(count if usable else 0):
            node = number % len(usable)
            share = len(range(node, count, len(usable)))
            place = number // len(usable)
            yield usable[node], msgspec.structs.replace(self._setup, place=place, share=share)

    def _needs(self, setup: Setup) -> tuple[float, float]:
        """Return GPUs and processors to reserve for a worker; those of a node are shared evenly."""
        return (1, 1) if setup.on_gpu else (0, 1 / setup.share)

    def _on(self, node: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node, soft=False)


def _about_token() -> str:
    """Return a hint for clusters that ask for a token, if this machine has one and Ray would not
    use it.
    """
    if "RAY_AUTH_MODE" in os.environ or not (Path.home() / ".ray" / "auth_token").exists():
        return ""
    return "; if it was started with a token, set RAY_AUTH_MODE=token"


def _how(error: Exception) -> str:
    text = str(getattr(error, "error_msg", "") or error).strip().splitlines() or ["unknown"]
    return f"was lost ({type(error).__name__}: {text[0]})"
