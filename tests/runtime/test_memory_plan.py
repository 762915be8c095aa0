"""Tests the memory plan: what fits into some memory."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import pytest

from rbvsr_deploy.engines import Network
from rbvsr_deploy.errors import DeviceMemoryError, RbvsrError
from rbvsr_deploy.runtime.memory_plan import MemoryBudget, MemoryPlan, choose_plan
from rbvsr_deploy.units import parse_bytes, show_bytes

PUBLISHED = Network(
    channels=64,
    head_channels=1024,
    has_cleaning=True,
    refine_threshold=255.0,
    precision="float16",
)
GIB = 2**30


def plan(memory: int, *, size: tuple[int, int] = (720, 1280), on_cpu: bool = False) -> MemoryPlan:
    return choose_plan(
        PUBLISHED, height=size[0], width=size[1], memory=memory, longest=300, on_cpu=on_cpu
    )


def test_more_memory_is_never_used_worse() -> None:
    """From just enough memory to more than is useful."""
    plans = [plan(int(GIB * x / 4)) for x in range(8, 320, 4)]
    for less, more in itertools.pairwise(plans):
        assert more.band >= less.band
        assert more.batch >= less.batch
    assert plans[0].band < 720
    # Four frames of this size would have more values than a GPU can address.
    assert plans[-1] == MemoryPlan(window=300, batch=2, band=720, in_memory=plans[-1].in_memory)


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("gib", [2, 4, 8, 24, 80])
def test_the_plan_fits(gib: int, on_cpu: bool) -> None:
    """The states of the window, the waiting frames, and the widest maps of the head fit, counted
    without the plan's own formulas.
    """
    chosen = plan(gib * GIB, on_cpu=on_cpu)
    pixels = 720 * 1280
    held = chosen.window * pixels * 64 * 2
    held += chosen.in_memory * pixels * 3 * 2
    held += 2 * chosen.batch * chosen.band * 1280 * 1024 * 2
    assert held < gib * GIB
    assert chosen.window >= 1


@pytest.mark.parametrize(("height", "band"), [(40, 40), (180, 90), (720, 45), (1080, 68)])
def test_a_cpu_does_a_wide_head_in_bands(height: int, band: int) -> None:
    """However much memory there is. A GPU takes it at once, and a narrow head with a large halo is
    done in bands only where the frame is large.
    """
    size = height, 16 * height // 9
    network = dataclasses.replace(PUBLISHED, precision="float32")
    compact = dataclasses.replace(network, head_channels=48, reconstruction_blocks=4)
    of = functools.partial(choose_plan, height=size[0], width=size[1], memory=80 * GIB, longest=9)
    assert of(network, on_cpu=True).band == band
    assert of(network, on_cpu=False).band == height
    assert of(compact, on_cpu=True).band == (270 if height == 1080 else height)


def test_waiting_frames_get_the_memory_that_is_left() -> None:
    """If a window does not hold the whole scene, about as many frames as states stay on the device;
    if it does, all of them do.
    """
    little, much = plan(8 * GIB), plan(80 * GIB)
    assert little.window < 300
    assert little.window <= little.in_memory < 2 * little.window
    assert much.window == 300
    assert much.in_memory > 332


def test_smaller_plans_end() -> None:
    """Each one is smaller in some respect, none is smaller than one frame, and frames no longer
    wait on the device.
    """
    plans = [plan(8 * GIB)]
    while (smaller := plans[-1].smaller()) is not None:
        plans.append(smaller)
    assert 3 < len(plans) < 12
    assert all(p.in_memory == 0 for p in plans[1:])
    assert (plans[-1].window, plans[-1].batch) == (1, 1)
    assert plans[-1].band <= 8


def test_a_budget_shrinks_until_the_error_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    """Each smaller plan is reported."""
    budget = MemoryBudget(MemoryPlan(window=2, batch=1, band=8, in_memory=3))
    error = DeviceMemoryError("the GPU is full")
    budget.shrink(error)
    assert budget.plan == MemoryPlan(window=1, batch=1, band=8, in_memory=0)
    assert caplog.messages == [f"the GPU is full: continuing with {budget.plan}"]
    with pytest.raises(DeviceMemoryError, match="the GPU is full"):
        budget.shrink(error)


def test_too_little_memory_is_one_sentence() -> None:
    """It says how much is needed, and that much is enough."""
    with pytest.raises(RbvsrError, match=r"1280x720 needs .* at least, and 256 MiB may be used"):
        plan(GIB // 4)
    needed = next(m for m in range(GIB // 4, 8 * GIB, GIB // 16) if _fits(m))
    assert GIB // 4 < needed < 4 * GIB


def _fits(memory: int) -> bool:
    try:
        plan(memory)
    except RbvsrError:
        return False
    return True


def test_short_chunks_have_short_windows() -> None:
    """No more states are held than frames are propagated in one go."""
    chosen = choose_plan(PUBLISHED, height=9, width=16, memory=GIB, longest=1, on_cpu=False)
    assert (chosen.window, chosen.batch) == (1, 1)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 * GIB),
        ("4 gib", 4 * GIB),
        ("1.5G", 1_500_000_000),
        ("800MB", 800_000_000),
        ("512KiB", 512 * 1024),
        ("1024", 1024),
        ("2TiB", 2 * 1024 * GIB),
    ],
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "0.0001", "4 XiB", "4GiBB", "I", "1e9"])
def test_invalid_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="use for example 4GiB or 800MB"):
        parse_bytes(text)


def test_sizes_are_shown_in_binary_units() -> None:
    assert show_bytes(GIB * 3 // 2) == "1.5 GiB"
    assert show_bytes(300 * 2**20) == "300 MiB"
