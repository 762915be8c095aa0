"""Tests the stream: scenes, chunks and the state between them, on an engine of whole numbers."""

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
from rbvsr_deploy.pixels import Image
from rbvsr_deploy.runtime.finite import CHECK_EVERY
from rbvsr_deploy.runtime.memory_plan import MemoryPlan
from rbvsr_deploy.runtime.settings import CONTINUATION_LOOKAHEAD
from rbvsr_deploy.runtime.stream import SceneRecord, Settings, Stream, StreamState
from tests.conftest import moving_clip
from tests.support.engine_doubles import (
    ArithmeticEngine,
    backward_state,
    forward_state,
    output_level,
)

VALUES = [(7 * i * i + 3 * i) % 97 for i in range(150)]


def wanted(
    values: list[int], *, lookahead: int | None = None, max_scene: int = 300, cleanings: int = 1
) -> list[int]:
    """Return the upscaled levels of one scene; every cleaning adds one."""
    values = [value + cleanings for value in values]
    levels = []
    for i, value in enumerate(values):
        chunk_end = (i // max_scene + 1) * max_scene
        stop = chunk_end + CONTINUATION_LOOKAHEAD if chunk_end < len(values) else len(values)
        if lookahead is not None:
            stop = i + 1 + lookahead
        states = backward_state(values[i:stop]), forward_state(values[: i + 1])
        levels.append(output_level(value, *states))
    return levels


def image(value: int) -> NDArray[np.uint8]:
    return np.full((1, 1, 3), value, np.uint8)


def run(
    settings: Settings,
    values: list[int],
    *,
    cuts: tuple[int, ...] = (),
    engine: ArithmeticEngine | None = None,
    state: StreamState | None = None,
    with_states: bool = True,
) -> tuple[list[int], list[SceneRecord], list[bytes]]:
    """Return the upscaled levels, the scenes, and the state after every frame."""
    levels: list[int] = []
    scenes: list[SceneRecord] = []
    states: list[bytes] = []
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
            for upscaled in steps:
                levels.append(int(upscaled.image[0, 0, 0]))
                if with_states:
                    states.append(upscaled.state().to_bytes())
    return levels, scenes, states


@pytest.mark.parametrize("n", [1, 2, 40, 150])
def test_a_scene_is_propagated_as_a_whole(n: int) -> None:
    levels, scenes, states = run(Settings(), VALUES[:n])
    assert levels == wanted(VALUES[:n])
    assert [(s.first_frame, s.frames, s.cleanings) for s in scenes] == [(0, n, 1)]
    assert len(states) == n


@pytest.mark.parametrize("settings", [{}, {"lookahead": 3}, {"lookahead": 0}, {"max_scene": 9}])
def test_nothing_crosses_a_cut(settings: dict[str, Any]) -> None:
    """Frames after a cut give the same as if the clip started there, including scenes of one frame
    and cuts next to each other.
    """
    cuts = (5, 6, 7, 60)
    levels, scenes, _ = run(Settings(**settings), VALUES[:80], cuts=cuts)
    bounds = [0, *cuts, 80]
    pairs = list(itertools.pairwise(bounds))
    alone = [run(Settings(**settings), VALUES[a:b])[0] for a, b in pairs]
    assert levels == [level for scene in alone for level in scene]
    assert [(s.first_frame, s.frames) for s in scenes] == [(a, b - a) for a, b in pairs]


@pytest.mark.parametrize("lookahead", [0, 1, 5, 79, 200])
def test_lookahead_is_the_number_of_future_frames(lookahead: int) -> None:
    """Every frame draws on exactly that many, fewer only at the end of the scene."""
    levels, _, _ = run(Settings(lookahead=lookahead), VALUES[:80])
    assert levels == wanted(VALUES[:80], lookahead=lookahead)
    if lookahead >= 79:
        assert levels == wanted(VALUES[:80])


@pytest.mark.parametrize("lookahead", [0, 1, 4])
def test_the_first_output_comes_after_lookahead_plus_one_frames(lookahead: int) -> None:
    """From then on, every frame gives one."""
    with Stream(ArithmeticEngine(), Settings(lookahead=lookahead), size=(1, 1)) as stream:
        counts = [len(list(stream.push(image(v)))) for v in VALUES[:10]]
        assert counts == [0] * lookahead + [1] * (10 - lookahead)
        assert len(list(stream.flush())) == lookahead


def test_lookahead_processes_no_frame_twice() -> None:
    """Cleaning and flow run once per frame; only backward steps are repeated."""
    engine = ArithmeticEngine()
    run(Settings(lookahead=4), VALUES[:30], engine=engine)
    assert engine.items["clean"] == engine.items["forward"] == 30
    assert engine.items["flow"] == 2 * 29
    assert engine.items["backward"] == 26 * 5 + 4 + 3 + 2 + 1


@pytest.mark.parametrize("max_scene", [1, 7, 40, 118, 119, 149, 150])
def test_long_scenes_are_continued(max_scene: int) -> None:
    """The forward state is carried over exactly, the backward branch begins some frames later."""
    levels, scenes, _ = run(Settings(max_scene=max_scene), VALUES)
    assert levels == wanted(VALUES, max_scene=max_scene)
    assert len(scenes) == 1


class _ChangesLess(ArithmeticEngine):
    """Changes bright frames more, and less at the second pass."""

    def _outputs(self, graph: str, n: int, **arrays: Any) -> tuple[Any, ...]:
        if graph != "clean":
            return super()._outputs(graph, n, **arrays)
        values = arrays["frame"][:, 0, 0, 0]
        return arrays["frame"] + 1, np.where(values % 1 == 0, values / 9, 0.0) / 255


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"max_scene": 20}, {"lookahead": 2}, {"lookahead": 0}])
def test_any_state_continues_where_it_was_taken(settings: dict[str, Any]) -> None:
    """A new stream given the bytes of a state upscales the remaining frames and reports the same
    scenes, including the decisions.
    """
    cuts = (50, 90)

    everything = run(Settings(**settings), VALUES[:95], cuts=cuts, engine=_ChangesLess())
    levels, scenes, states = everything
    assert len({scene.cleanings for scene in scenes}) > 1
    for data in states:
        state = StreamState.from_bytes(data)
        rest, reported, _ = run(
            *(Settings(**settings), VALUES[:95]),
            cuts=cuts,
            engine=_ChangesLess(),
            state=state,
            with_states=False,
        )
        assert rest == levels[state.frames :]
        assert reported == scenes[len(scenes) - len(reported) :]
        assert (state.arrays == {}) == (state.scene == state.frames)


def test_a_scene_is_cleaned_alike_from_start_to_end() -> None:
    """The first chunk decides: its residues, not those of later chunks."""
    engine = ArithmeticEngine()
    settings = Settings(max_scene=20, refine_threshold=0.0)
    levels, (scene,), _ = run(settings, VALUES, engine=engine)
    assert scene.cleanings == 3
    assert levels == wanted(VALUES, max_scene=20, cleanings=3)


def test_waiting_frames_are_spooled_and_freed(tmp_path: Path) -> None:
    """If memory is short, frames wait on the disk, in a file without a name."""
    with Stream(ArithmeticEngine(), Settings(memory=2000), size=(1, 1), folder=tmp_path) as stream:
        assert 0 < stream.plan.in_memory < 40
        for value in VALUES[:100]:
            list(stream.push(image(value)))
        spool = stream._context.spool
        assert len(spool) == 100 - 1 - stream.plan.in_memory  # one is being downloaded
        assert list(tmp_path.iterdir()) == []
        assert len(list(stream.flush())) == 100
        assert len(spool) == 0
        assert spool._file is None


class _Counting(ArithmeticEngine):
    """Records every array that crosses between host and device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.crossed: list[NDArray[Any]] = []
        self._device = device

    def upload(self, array: Any) -> Any:
        self.crossed.append(array)
        return super().upload(array)

    def download(self, array: Any) -> Any:
        self.crossed.append(array)
        return super().download(array)

    def begin_download(self, array: Any) -> Any:
        self.crossed.append(array)
        return super().begin_download(array)

    def describe(self) -> Description:
        return dataclasses.replace(super().describe(), device=self._device)

    def _outputs(self, graph: str, n: int, **arrays: Any) -> tuple[Any, ...]:
        if graph != "clean":
            return super()._outputs(graph, n, **arrays)
        return arrays["frame"] + 1, arrays["frame"][:, 0, 0, 0] / 9 / 255


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_scene": 17},
        {"lookahead": 3},
        {"lookahead": 0},
        {"cleanings": 0},
        {"cleanings": 3},
        {"refine_threshold": 0.0},
        {"refine_scope": "frame"},
        {"refine_scope": "frame", "max_scene": 17},
    ],
)
def test_only_images_cross_if_memory_allows(settings: dict[str, Any], device: str) -> None:
    """Frames, states and flows stay on the device; besides uint8 images, only residues and
    what is checked are downloaded. With little memory frames do cross, and the output is the same.
    """

    def levels(engine: ArithmeticEngine, **memory: Any) -> list[int]:
        with Stream(engine, Settings(**settings, **memory), size=(1, 1)) as stream:
            upscaled = [
                u for i, v in enumerate(VALUES[:90]) for u in stream.push(image(v), cut=i == 60)
            ]
            upscaled += stream.flush()
        return [int(u.image[0, 0, 0]) for u in upscaled]

    engine, little = _Counting(device), _Counting(device)
    want = levels(engine)
    images = [array for array in engine.crossed if array.dtype == np.uint8]
    assert sum(len(array) for array in images) == 2 * 90
    # At the ends of each window, two states and an output are checked for NaN.
    others = [a for a in engine.crossed if a.dtype != np.uint8 and a.shape != (len(a),)]
    windows = 3 + 90 // min(CHECK_EVERY, settings.get("max_scene", 90))
    assert all(len(array) == 1 for array in others)
    assert 0 < len(others) <= 3 * windows
    assert levels(little, memory=1500) == want
    if settings.get("lookahead") is None:
        assert any(array.shape[1:] == (3, 1, 1) for array in little.crossed)


def test_more_memory_than_there_is_gets_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """It is allowed, as not all of it may be needed."""
    Stream(ArithmeticEngine(), Settings(memory=2**30), size=(1, 1))
    assert caplog.messages == []
    Stream(ArithmeticEngine(), Settings(memory=2**33), size=(1, 1))
    assert caplog.messages[0].startswith("8.0 GiB of memory may be used, but only 1.0 GiB are free")


class _FullDevice(ArithmeticEngine):
    """Imitates a GPU that runs out of memory for more than some items at once, and at some requests
    during propagation, given by number.
    """

    def __init__(self, *full_at: int, most: int = 1000) -> None:
        super().__init__()
        self.requests = 0
        self._full_at = full_at
        self._most = most

    def run(self, graph: str, **arrays: Any) -> tuple[Any, ...]:
        self._request(len(next(iter(arrays.values()))), counts=graph not in ("ingest", "clean"))
        return super().run(graph, **arrays)

    def empty(self, shape: tuple[int, ...], *, dtype: str) -> Any:
        self._request(shape[0], counts=True)
        return super().empty(shape, dtype=dtype)

    def describe(self) -> Description:
        return dataclasses.replace(super().describe(), device="cuda:0")

    def _request(self, items: int, *, counts: bool) -> None:
        self.requests += counts
        if items > self._most or (counts and self.requests in self._full_at):
            raise DeviceMemoryError("the GPU is full")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [Settings(), Settings(memory=3000, max_scene=20)])
def test_a_full_device_gets_less_at_once(settings: Settings) -> None:
    """The output is the same, each frame once, no matter where memory runs out, once or three times
    in a row.
    """
    values = VALUES[:30]
    free = _FullDevice()
    want, _, states = run(settings, values, engine=free)
    assert free.requests > 100
    for most in (1, 2, 3, 7):
        got, _, got_states = run(settings, values, engine=_FullDevice(most=most))
        assert got == want
        assert got_states == states
    for at in range(1, free.requests, 5):
        for times in (1, 3):
            engine = _FullDevice(*range(at, at + times))
            got, _, got_states = run(settings, values, engine=engine)
            assert got == want
            assert got_states == states


def test_a_device_that_stays_full_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """It is raised after smaller plans were tried, with a warning each, and not forever."""
    engine = _FullDevice(*range(50, 1000))
    with pytest.raises(DeviceMemoryError, match="the GPU is full"):
        run(Settings(), VALUES[:30], engine=engine)
    assert 2 < len(caplog.messages) < 40
    assert caplog.messages[0].startswith("the GPU is full: continuing with ")


@pytest.mark.parametrize("graph", ["clean", "backward", "reconstruct"])
def test_the_reported_plan_is_the_one_in_effect(
    graph: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If cleaning or propagation runs out of memory, one plan shrinks for both; then no graph
    takes more frames at once than the stream's plan says, and the warning names that plan.
    """

    class Full(_FullDevice):
        def __init__(self) -> None:
            super().__init__()
            self.most: dict[str, int] = {}
            self.failed = False

        def run(self, name: str, **arrays: Any) -> tuple[Any, ...]:  # type: ignore[override]
            count = len(next(iter(arrays.values())))
            if name == graph and not self.failed:
                self.failed = True
                raise DeviceMemoryError("the GPU is full")
            if self.failed:
                self.most[name] = max(self.most.get(name, 0), count)
            return super().run(name, **arrays)

    engine = Full()
    with Stream(engine, Settings(), size=(1, 1)) as stream:
        planned = stream.plan
        upscaled = [u for v in VALUES[:30] for u in stream.push(image(v))] + list(stream.flush())
        assert [int(u.image[0, 0, 0]) for u in upscaled] == wanted(VALUES[:30])
    assert planned.batch == 4
    assert stream.plan == MemoryPlan(window=150, batch=2, band=1, in_memory=0)
    assert caplog.messages == [f"the GPU is full: continuing with {stream.plan}"]
    assert max(engine.most.values()) == 2


def test_too_little_memory_is_refused_at_once() -> None:
    with pytest.raises(RbvsrError, match="at least, and 0 MiB may be used"):
        Stream(ArithmeticEngine(), Settings(memory=10), size=(1, 1))


@pytest.mark.parametrize(
    "wrong",
    [{"lookahead": -1}, {"max_scene": 0}, {"cleanings": -1}, {"memory": 0}, {"refine_scope": "x"}],
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    """The error names the setting and the value."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)


def test_a_cut_resets_bit_for_bit(tiny_bundle: Path) -> None:
    """On the real engine, a hard cut in the middle gives the same as two separate clips."""
    clip = np.concatenate((moving_clip(9, 32, 40), 255 - moving_clip(12, 32, 40)))
    settings = Settings(max_scene=10)
    with open_engine(tiny_bundle, device="cpu") as engine:

        def images(frames: NDArray[np.uint8], cut: int | None) -> list[Image]:
            with Stream(engine, settings, size=(32, 40)) as stream:
                upscaled = [u for i, f in enumerate(frames) for u in stream.push(f, cut=i == cut)]
                upscaled += stream.flush()
            return [u.image for u in upscaled]

        whole, uncut = images(clip, 9), images(clip, None)
        separate = images(clip[:9], None) + images(clip[9:], None)
    np.testing.assert_array_equal(whole, separate)
    assert not np.array_equal(whole, uncut)


@pytest.mark.parametrize("lookahead", [0, 2])
def test_bounded_lookahead_on_the_real_engine(lookahead: int, tiny_bundle: Path) -> None:
    """Frame i comes out as in the clip that ends after frame i + lookahead."""
    clip = moving_clip(6, 24, 31)
    with open_engine(tiny_bundle, device="cpu") as engine:

        def images(frames: NDArray[np.uint8], settings: Settings) -> list[Image]:
            with Stream(engine, settings, size=(24, 31)) as stream:
                upscaled = [u for f in frames for u in stream.push(f)] + list(stream.flush())
            return [u.image for u in upscaled]

        got = images(clip, Settings(lookahead=lookahead))
        for i in range(6):
            np.testing.assert_array_equal(got[i], images(clip[: i + 1 + lookahead], Settings())[i])
