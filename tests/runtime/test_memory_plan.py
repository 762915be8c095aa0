"""The plan: what fits into some memory."""

from __future__ import annotations

import itertools

import pytest

from rbvsr_deploy.engines import Network
from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.runtime.memory_plan import MemoryPlan, choose_plan
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


def test_more_memory_never_makes_less_of_it() -> None:
    """From what just fits to more than is of use."""
    plans = [plan(int(GIB * x / 4)) for x in range(8, 320, 4)]
    for less, more in itertools.pairwise(plans):
        assert more.band >= less.band
        assert more.batch >= less.batch
    assert plans[0].band < 720
    assert plans[-1] == MemoryPlan(window=300, batch=4, band=720, in_memory=plans[-1].in_memory)


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("gib", [2, 4, 8, 24, 80])
def test_what_is_held_fits(gib: int, on_cpu: bool) -> None:
    """States of the window, waiting frames where they share the memory, and the widest maps of the
    head, counted without the plan's own formulas.
    """
    chosen = plan(gib * GIB, on_cpu=on_cpu)
    pixels = 720 * 1280
    held = chosen.window * pixels * 64 * 2
    held += chosen.in_memory * pixels * 3 * 2 if on_cpu else 0
    held += 2 * chosen.batch * chosen.band * 1280 * 1024 * 2
    assert held < gib * GIB
    assert chosen.window >= 1


def test_too_little_memory_is_one_sentence() -> None:
    """It says how much is needed; and that much does suffice."""
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


def test_short_parts_have_short_windows() -> None:
    """No more frames are held than are propagated at once."""
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
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="use for example 4GiB or 800MB"):
        parse_bytes(text)


def test_sizes_are_shown_in_binary_units() -> None:
    assert show_bytes(GIB * 3 // 2) == "1.5 GiB"
    assert show_bytes(300 * 2**20) == "300 MiB"
