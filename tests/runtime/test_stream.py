"""The stream: scenes, parts and what is carried between them, on an engine of whole numbers."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.engines import Description, open_engine
from rbvsr_deploy.errors import DeviceMemoryError, RbvsrError
from rbvsr_deploy.runtime.stream import (
    CONTINUATION_LOOKAHEAD,
    SceneRecord,
    Settings,
    Stream,
    StreamState,
)
from tests.conftest import moving_clip
from tests.support.engine_doubles import (
    ArithmeticEngine,
    backward_state,
    forward_state,
    upscaled_level,
)

VALUES = [(7 * i * i + 3 * i) % 97 for i in range(150)]


def wanted(
    values: list[int], *, lookahead: int | None = None, max_scene: int = 300, cleanings: int = 1
) -> list[int]:
    """Pictures of one scene; every cleaning adds one."""
    values = [value + cleanings for value in values]
    pictures = []
    for i, value in enumerate(values):
        part_end = (i // max_scene + 1) * max_scene
        stop = part_end + CONTINUATION_LOOKAHEAD if part_end < len(values) else len(values)
        if lookahead is not None:
            stop = i + 1 + lookahead
        states = backward_state(values[i:stop]), forward_state(values[: i + 1])
        pictures.append(upscaled_level(value, *states))
    return pictures


def image(value: int) -> NDArray[np.uint8]:
    return np.full((1, 1, 3), value, np.uint8)


def run(
    settings: Settings,
    values: list[int],
    *,
    cuts: tuple[int, ...] = (),
    engine: ArithmeticEngine | None = None,
    state: StreamState | None = None,
) -> tuple[list[int], list[SceneRecord], list[bytes]]:
    """Pictures, scenes, and the state after every picture."""
    pictures, scenes, states = [], [], []
    first = state.frames if state is not None else 0
    with Stream(
        engine or ArithmeticEngine(), settings, size=(1, 1), state=state, on_scene=scenes.append
    ) as stream:
        for number in range(first, len(values) + 1):
            steps = (
                stream.push(image(values[number]), cut=number in cuts)
                if number < len(values)
                else stream.flush()
            )
            for made in steps:
                pictures.append(int(made.image[0, 0, 0]))
                states.append(made.state().to_bytes())
    return pictures, scenes, states


@pytest.mark.parametrize("n", [1, 2, 40, 150])
def test_a_scene_is_propagated_as_a_whole(n: int) -> None:
    pictures, scenes, states = run(Settings(), VALUES[:n])
    assert pictures == wanted(VALUES[:n])
    assert [(s.first_frame, s.frames, s.cleanings) for s in scenes] == [(0, n, 1)]
    assert len(states) == n


@pytest.mark.parametrize("settings", [{}, {"lookahead": 3}, {"lookahead": 0}, {"max_scene": 9}])
def test_nothing_crosses_a_cut(settings: dict[str, Any]) -> None:
    """Frames after a cut become what they do where the clip starts there; scenes of one frame and
    cuts next to each other included.
    """
    cuts = (5, 6, 7, 60)
    pictures, scenes, _ = run(Settings(**settings), VALUES[:80], cuts=cuts)
    bounds = [0, *cuts, 80]
    pairs = list(itertools.pairwise(bounds))
    alone = [run(Settings(**settings), VALUES[a:b])[0] for a, b in pairs]
    assert pictures == [p for scene in alone for p in scene]
    assert [(s.first_frame, s.frames) for s in scenes] == [(a, b - a) for a, b in pairs]


@pytest.mark.parametrize("lookahead", [0, 1, 5, 79, 200])
def test_lookahead_is_how_many_future_frames_are_seen(lookahead: int) -> None:
    """Every picture draws on exactly so many, fewer only at the end of the scene."""
    pictures, _, _ = run(Settings(lookahead=lookahead), VALUES[:80])
    assert pictures == wanted(VALUES[:80], lookahead=lookahead)
    if lookahead >= 79:
        assert pictures == wanted(VALUES[:80])


@pytest.mark.parametrize("lookahead", [0, 1, 4])
def test_the_first_picture_comes_after_lookahead_plus_one_frames(lookahead: int) -> None:
    """And then one with every frame."""
    with Stream(ArithmeticEngine(), Settings(lookahead=lookahead), size=(1, 1)) as stream:
        counts = [len(list(stream.push(image(v)))) for v in VALUES[:10]]
        assert counts == [0] * lookahead + [1] * (10 - lookahead)
        assert len(list(stream.flush())) == lookahead


def test_lookahead_works_on_no_frame_twice() -> None:
    """Cleaning and flow once per frame; only backward steps are repeated."""
    engine = ArithmeticEngine()
    run(Settings(lookahead=4), VALUES[:30], engine=engine)
    assert engine.items["clean"] == engine.items["forward"] == 30
    assert engine.items["flow"] == 2 * 29
    assert engine.items["backward"] == 26 * 5 + 4 + 3 + 2 + 1


@pytest.mark.parametrize("max_scene", [1, 7, 40, 118, 119, 149, 150])
def test_long_scenes_are_continued(max_scene: int) -> None:
    """The forward state is carried over exactly, the backward branch begins some frames later."""
    pictures, scenes, _ = run(Settings(max_scene=max_scene), VALUES)
    assert pictures == wanted(VALUES, max_scene=max_scene)
    assert len(scenes) == 1


class _ChangesLess(ArithmeticEngine):
    """Bright frames change more, and less at the second pass."""

    def _outputs(self, graph: str, n: int, **arrays: Any) -> tuple[Any, ...]:
        if graph != "clean":
            return super()._outputs(graph, n, **arrays)
        values = arrays["frame"][:, 0, 0, 0]
        return arrays["frame"] + 1, np.where(values % 1 == 0, values / 9, 0.0) / 255


@pytest.mark.parametrize("settings", [{}, {"max_scene": 20}, {"lookahead": 2}, {"lookahead": 0}])
def test_any_state_goes_on_where_it_was_taken(settings: dict[str, Any]) -> None:
    """A new stream that is given the bytes of a state makes the remaining pictures and tells of the
    same scenes, decisions included.
    """
    cuts = (50, 90)

    everything = run(Settings(**settings), VALUES[:95], cuts=cuts, engine=_ChangesLess())
    pictures, scenes, states = everything
    assert len({scene.cleanings for scene in scenes}) > 1
    for data in states:
        state = StreamState.from_bytes(data)
        rest, told, _ = run(
            Settings(**settings), VALUES[:95], cuts=cuts, engine=_ChangesLess(), state=state
        )
        assert rest == pictures[state.frames :]
        assert told == scenes[len(scenes) - len(told) :]
        assert (state.arrays == {}) == (state.scene == state.frames)


def test_a_scene_is_cleaned_alike_from_start_to_end() -> None:
    """The first part decides: its residues, not those of later parts."""
    engine = ArithmeticEngine()
    settings = Settings(max_scene=20, refine_threshold=0.0)
    pictures, (scene,), _ = run(settings, VALUES, engine=engine)
    assert scene.cleanings == 3
    assert pictures == wanted(VALUES, max_scene=20, cleanings=3)


def test_what_waits_is_spilled_and_freed(tmp_path: Path) -> None:
    """With memory for few frames they wait on the disk, without a trace of a name."""
    with Stream(ArithmeticEngine(), Settings(memory=2000), size=(1, 1), folder=tmp_path) as stream:
        assert stream.plan.in_memory < 40
        for value in VALUES[:100]:
            list(stream.push(image(value)))
        assert len(stream._spool._slots) == 100 - 1 - stream.plan.in_memory  # one on its way
        assert list(tmp_path.iterdir()) == []
        assert len(list(stream.flush())) == 100
        assert len(stream._spool) == 0
        assert stream._spool._file is None


def test_more_memory_than_there_is_gets_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """It may work, as not all of it may be needed."""
    Stream(ArithmeticEngine(), Settings(memory=2**30), size=(1, 1))
    assert caplog.messages == []
    Stream(ArithmeticEngine(), Settings(memory=2**33), size=(1, 1))
    assert caplog.messages[0].startswith("8.0 GiB of memory may be used, but only 1.0 GiB are free")


class _FullDevice(ArithmeticEngine):
    """A GPU that has no memory for more than some items at once, nor for some of the things that
    are asked of it while a scene is propagated, by their number.
    """

    def __init__(self, *full_at: int, most: int = 1000) -> None:
        super().__init__()
        self.asked = 0
        self._full_at = full_at
        self._most = most

    def run(self, graph: str, **arrays: Any) -> tuple[Any, ...]:
        self._ask(len(next(iter(arrays.values()))), counts=graph not in ("ingest", "clean"))
        return super().run(graph, **arrays)

    def empty(self, shape: tuple[int, ...], *, dtype: str) -> Any:
        self._ask(shape[0], counts=True)
        return super().empty(shape, dtype=dtype)

    def describe(self) -> Description:
        return dataclasses.replace(super().describe(), device="cuda:0")

    def _ask(self, items: int, *, counts: bool) -> None:
        self.asked += counts
        if items > self._most or (counts and self.asked in self._full_at):
            raise DeviceMemoryError("the GPU is full")


@pytest.mark.parametrize("settings", [Settings(), Settings(memory=3000, max_scene=20)])
def test_a_full_device_gets_less_at_once(settings: Settings) -> None:
    """Wherever the memory is short, once or three times running, the same pictures come out, each
    of them once.
    """
    values = VALUES[:30]
    free = _FullDevice()
    want, _, states = run(settings, values, engine=free)
    assert free.asked > 100
    for most in (1, 2, 3, 7):
        got, _, got_states = run(settings, values, engine=_FullDevice(most=most))
        assert got == want
        assert got_states == states
    for at in range(1, free.asked, 5):
        for times in (1, 3):
            engine = _FullDevice(*range(at, at + times))
            got, _, got_states = run(settings, values, engine=engine)
            assert got == want
            assert got_states == states


def test_a_device_that_stays_full_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """After smaller plans were tried, which is said; not for ever."""
    engine = _FullDevice(*range(50, 1000))
    with pytest.raises(DeviceMemoryError, match="the GPU is full"):
        run(Settings(), VALUES[:30], engine=engine)
    assert 2 < len(caplog.messages) < 40
    assert caplog.messages[0].startswith("the GPU is full: going on with ")


def test_too_little_memory_is_refused_at_once() -> None:
    with pytest.raises(RbvsrError, match="at least, and 0 MiB may be used"):
        Stream(ArithmeticEngine(), Settings(memory=10), size=(1, 1))


@pytest.mark.parametrize(
    "wrong",
    [{"lookahead": -1}, {"max_scene": 0}, {"cleanings": -1}, {"memory": 0}, {"refine_scope": "x"}],
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    """Each is named with what came."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)


def test_a_cut_resets_bit_for_bit(tiny_bundle: Path) -> None:
    """On the real engine: a hard cut in the middle, in memory that makes windows and parts."""
    clip = np.concatenate((moving_clip(9, 32, 40), 255 - moving_clip(12, 32, 40)))
    settings = Settings(max_scene=10)
    with open_engine(tiny_bundle, device="cpu") as engine:

        def pictures(frames: NDArray[np.uint8], cut: int | None) -> list[NDArray[np.uint8]]:
            with Stream(engine, settings, size=(32, 40)) as stream:
                made = [p for i, f in enumerate(frames) for p in stream.push(f, cut=i == cut)]
                made += stream.flush()
            return [p.image for p in made]

        whole, uncut = pictures(clip, 9), pictures(clip, None)
        parts = pictures(clip[:9], None) + pictures(clip[9:], None)
    np.testing.assert_array_equal(whole, parts)
    assert not np.array_equal(whole, uncut)


@pytest.mark.parametrize("lookahead", [0, 2])
def test_bounded_lookahead_on_the_real_engine(lookahead: int, tiny_bundle: Path) -> None:
    """Picture i is that of the clip that ends after frame i + lookahead."""
    clip = moving_clip(6, 24, 31)
    with open_engine(tiny_bundle, device="cpu") as engine:

        def pictures(frames: NDArray[np.uint8], settings: Settings) -> list[NDArray[np.uint8]]:
            with Stream(engine, settings, size=(24, 31)) as stream:
                made = [p for f in frames for p in stream.push(f)] + list(stream.flush())
            return [p.image for p in made]

        got = pictures(clip, Settings(lookahead=lookahead))
        for i in range(6):
            np.testing.assert_array_equal(
                got[i], pictures(clip[: i + 1 + lookahead], Settings())[i]
            )
