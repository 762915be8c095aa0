"""Tests the order of work without VapourSynth: any request gets the frame of one forward run."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from vsrealbasicvsr.frame_server import FrameServer

CUTS = (0, 7, 8, 9, 40, 100)
LENGTH = 120
CACHED = 16


class Network:
    """Numbers a frame by everything a recurrent network could mix up: all frames of its scene so
    far, and how many follow. It returns nothing before it has read ``lookahead`` frames more.
    """

    def __init__(self, *, lookahead: int | None = None) -> None:
        self.lookahead = lookahead
        self.made = 0
        self.begun = 0
        self.open = 0

    def __call__(self, frames: Iterable[int]) -> Generator[int, None, None]:
        self.begun += 1
        self.open += 1
        try:
            state = 1
            waiting: list[int] = []
            for frame in frames:
                waiting.append(frame)
                if self.lookahead is not None and len(waiting) > self.lookahead:
                    state = (state * 31 + waiting.pop(0)) % 1_000_003
                    self.made += 1
                    yield state * 1000 + len(waiting)
            while waiting:
                state = (state * 31 + waiting.pop(0)) % 1_000_003
                self.made += 1
                yield state * 1000 + len(waiting)
        finally:
            self.open -= 1


class Clip:
    """Counts how often each frame is read."""

    def __init__(self, cuts: Iterable[int] = CUTS) -> None:
        self.cuts = set(cuts) - {0}
        self.reads = [0] * LENGTH

    def __call__(self, number: int) -> tuple[int, bool]:
        self.reads[number] += 1
        return number * 17 + 3, number in self.cuts


def serve(
    clip: Clip, network: Callable[[Iterable[int]], Generator[int, None, None]]
) -> FrameServer[int]:
    return FrameServer(clip, network, length=LENGTH, cached=CACHED)


def expected(*, lookahead: int | None = None, cuts: tuple[int, ...] = CUTS) -> list[int]:
    """Run the scenes one after the other, without a server."""
    network, clip = Network(lookahead=lookahead), Clip(cuts)
    ends = (*cuts[1:], LENGTH)
    return [
        frame
        for start, end in zip(cuts, ends, strict=True)
        for frame in network(clip(n)[0] for n in range(start, end))
    ]


def shuffled(*, most: int, seed: int) -> list[int]:
    """Return all numbers in an order where none comes more than ``most`` places late or early."""
    rng = random.Random(seed)
    return sorted(range(LENGTH), key=lambda n: n + rng.uniform(0, most))


@pytest.mark.parametrize("lookahead", [None, 0, 5])
def test_every_order_gives_the_same_frames(lookahead: int | None) -> None:
    """Forwards, backwards, at random and again at random: all equal one forward run."""
    want = expected(lookahead=lookahead)
    forwards = list(range(LENGTH))
    at_random = random.Random(1).sample(forwards, LENGTH)
    server = serve(Clip(), Network(lookahead=lookahead))
    for order in (forwards, forwards[::-1], at_random, at_random[::3] + forwards[::7]):
        assert [server.frame(n) for n in order] == [want[n] for n in order]


@pytest.mark.parametrize("lookahead", [None, 4])
@pytest.mark.parametrize("seed", range(4))
def test_going_forwards_runs_every_scene_once(lookahead: int | None, seed: int) -> None:
    """Requests out of order by less than the cache, across cuts as well, cost nothing."""
    network = Network(lookahead=lookahead)
    server = serve(Clip((0, 30, 61, 100)), network)
    want = expected(lookahead=lookahead, cuts=(0, 30, 61, 100))
    order = shuffled(most=CACHED - 1, seed=seed)
    assert order != sorted(order)
    assert [server.frame(n) for n in order] == [want[n] for n in order]
    assert (network.begun, network.made) == (4, LENGTH)


def test_forwards_reads_a_frame_once_more_only_at_cuts() -> None:
    """What decodes the source is not asked twice, except for the frame that ends a scene."""
    clip = Clip((0, 40))
    server = serve(clip, Network())
    for n in range(LENGTH):
        server.frame(n)
    assert {n for n, reads in enumerate(clip.reads) if reads > 1} == {40}
    assert max(clip.reads) <= 3


def test_stepping_back_costs_a_run_per_cache() -> None:
    """One frame back at a time, a scene is run again once per cache full, not once per frame."""
    network = Network()
    server = serve(Clip((0,)), network)
    for n in reversed(range(LENGTH)):
        server.frame(n)
    assert network.begun == -(-LENGTH // CACHED)


def test_a_distant_frame_costs_its_own_scene_only() -> None:
    clip, network = Clip(), Network()
    server = serve(clip, network)
    server.frame(105)
    assert (network.begun, network.made) == (1, 6)
    assert sum(clip.reads[:70]) == 0  # reads in blocks, back to the cut


def test_eight_threads_at_random() -> None:
    """Threads get the frame they asked for, and there is never more than one run."""
    want = expected()
    network = Network()
    server = serve(Clip(), network)
    barrier = threading.Barrier(8)

    def some(seed: int) -> bool:
        order = random.Random(seed).sample(range(LENGTH), 20)
        barrier.wait()
        return all(server.frame(n) == want[n] for n in order)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(some, range(8)))
    assert network.open <= 1


def test_the_cache_is_bounded() -> None:
    server = serve(Clip((0,)), Network())
    for n in (*range(LENGTH), 3, 90, 5):
        server.frame(n)
        assert len(server._cache) <= CACHED


@pytest.mark.parametrize("at", [0, 3, 50])
def test_an_error_of_the_source_is_not_the_end(at: int) -> None:
    """A frame that fails to be read once fails the request only; the network is closed."""
    clip, network = Clip((0,)), Network(lookahead=2)
    failures = [at]

    def read(number: int) -> tuple[int, bool]:
        if number in failures:
            failures.remove(number)
            raise OSError("lost")
        return clip(number)

    server: FrameServer[int] = FrameServer(read, network, length=LENGTH, cached=CACHED)
    with pytest.raises(OSError, match="lost"):
        server.frame(60)
    assert network.open == 0
    assert server.frame(60) == expected(lookahead=2, cuts=(0,))[60]


def test_frames_outside_the_clip_are_refused() -> None:
    server = serve(Clip(), Network())
    for number in (-1, LENGTH):
        with pytest.raises(IndexError, match=f"frame {number} of a clip of 120 frames"):
            server.frame(number)
