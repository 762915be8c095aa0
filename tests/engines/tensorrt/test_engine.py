"""Tests the device runtime on doubles.

It gives the same bytes as ONNX Runtime's engine in any order of execution, without races, leaks and
endless waits, and handles failures.
"""

from __future__ import annotations

import gc
import itertools
import logging
import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.bundle import Bundle, open_bundle
from rbvsr_deploy.bundle.engine_sets import ShapeProfile
from rbvsr_deploy.engines import Engine
from rbvsr_deploy.engines.onnx_runtime import OnnxRuntimeEngine
from rbvsr_deploy.engines.tensorrt import launches
from rbvsr_deploy.engines.tensorrt.engine import TensorRTEngine
from rbvsr_deploy.errors import DeviceMemoryError, EngineError
from rbvsr_deploy.graphs import GRAPHS
from rbvsr_deploy.pixels import Image
from rbvsr_deploy.runtime.memory_plan import MemoryPlan
from rbvsr_deploy.runtime.stream import Settings, Stream
from tests.conftest import moving_clip
from tests.support.cuda_double import DriverDouble, Operation
from tests.support.tensorrt_double import PlansDouble, candidate, open_double, small_bundle

SCHEDULES = 600

WAITS = ("synchronise", "synchronise_stream", "is_done")


@pytest.fixture(scope="module", autouse=True)
def _little_garbage() -> Iterator[None]:
    """Freeze the objects of other tests: this module collects garbage 1,000 times."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Provide a bundle whose networks have only a few operations."""
    return small_bundle(tmp_path_factory.mktemp("small") / "small.plan")


@pytest.fixture(scope="module")
def reference(bundle: Bundle) -> Iterator[Engine]:
    """Provide ONNX Runtime's engine on the same graphs."""
    with OnnxRuntimeEngine(bundle, device="cpu") as engine:
        yield engine


def upscaled_images(
    engine: Engine,
    clip: NDArray[np.uint8],
    settings: Settings,
    plan: MemoryPlan,
    *,
    cuts: tuple[int, ...] = (),
) -> Iterator[Image]:
    """Yield the output images of a clip, computed according to the plan."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rbvsr_deploy.runtime.stream.choose_plan", lambda *_, **__: plan)
        stream = Stream(engine, settings, size=clip.shape[1:3])
    with stream:
        for i, image in enumerate(clip):
            for output in stream.push(image, cut=i in cuts):
                yield output.image
        for output in stream.flush():
            yield output.image


def check_closed(engine: TensorRTEngine, driver: DriverDouble) -> None:
    """Close an engine and check that everything is freed, if no result is held."""
    engine.close()
    gc.collect()
    assert driver.leaks() == []
    assert engine._runtime.open == []  # type: ignore[attr-defined]
    assert engine._runtime.closed == 1  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "settings", "plan"),
    [
        ("float32", {}, MemoryPlan(window=12, batch=4, band=45, in_memory=9)),
        ("float32", {}, MemoryPlan(window=1, batch=1, band=9, in_memory=9)),
        ("float32", {"lookahead": 2}, MemoryPlan(window=1, batch=1, band=45, in_memory=9)),
        ("float32", {"max_scene": 4}, MemoryPlan(window=2, batch=2, band=12, in_memory=2)),
        ("float32", {"refine_threshold": 0.0}, MemoryPlan(window=5, batch=3, band=45, in_memory=1)),
        ("float32", {"refine_scope": "frame"}, MemoryPlan(window=5, batch=3, band=45, in_memory=9)),
        ("float16", {}, MemoryPlan(window=3, batch=2, band=45, in_memory=9)),
        ("float16", {"cleanings": 0}, MemoryPlan(window=5, batch=4, band=20, in_memory=9)),
    ],
)
def test_equals_onnx_runtime(
    precision: str, settings: dict[str, Any], plan: MemoryPlan, request: pytest.FixtureRequest
) -> None:
    """The whole runtime on a real bundle gives identical bits.

    Covers windows, batches, bands, lookahead, chunks and scopes of refinement, with an odd size
    whose slices are not aligned.
    """
    name = "tiny_bundle" if precision == "float32" else "tiny_bundle_float16"
    bundle = open_bundle(request.getfixturevalue(name))
    clip = moving_clip(7, 45, 37)
    with OnnxRuntimeEngine(bundle, device="cpu") as engine:
        want = np.stack(list(upscaled_images(engine, clip, Settings(**settings), plan, cuts=(5,))))
    driver = DriverDouble()
    with open_double(bundle, driver, size=(45, 37)) as tensorrt:
        got = np.stack(list(upscaled_images(tensorrt, clip, Settings(**settings), plan, cuts=(5,))))
    np.testing.assert_array_equal(got, want)
    check_closed(tensorrt, driver)


def schedule(rng: random.Random) -> tuple[NDArray[np.uint8], Settings, MemoryPlan, tuple[int, ...]]:
    """Return random frames and settings to process them with."""
    height, width, frames = rng.randint(1, 12), rng.randint(1, 9), rng.randint(1, 7)
    noise = np.random.default_rng(rng.randrange(2**32))
    clip = noise.integers(0, 256, (frames, height, width, 3), np.uint8)
    settings = Settings(
        lookahead=rng.choice([None, None, None, 0, 1, 3]),
        max_scene=rng.choice([300, 300, 2, 3, 5]),
        refine_threshold=rng.choice([0.0, 3.0, 6.0, 255.0]),
        refine_scope=rng.choice(["scene", "scene", "frame"]),
        cleanings=rng.choice([None, None, 0, 1, 2]),
    )
    plan = MemoryPlan(
        window=rng.randint(1, 6),
        batch=rng.randint(1, 4),
        band=rng.choice([height, height, 1, 4]),
        in_memory=rng.randint(0, 8),
    )
    cuts = tuple(i for i in range(1, frames) if rng.random() < 0.15)
    return clip, settings, plan, cuts


@pytest.mark.slow
def test_random_schedules(
    bundle: Bundle, reference: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Random requests in any order of execution cause no race, deadlock or leak.

    Any call may fail or be interrupted. The images returned equal those of ONNX Runtime, and if
    some are missing an error was raised.
    """
    # Captured log records hold errors, errors hold stack frames, and stack frames hold arrays.
    caplog.set_level(logging.CRITICAL)
    outcomes = Counter(_one_schedule(seed, bundle, reference) for seed in range(SCHEDULES))
    # Every kind of outcome occurred.
    assert outcomes["undisturbed"] > SCHEDULES // 5
    assert outcomes["failed"] > SCHEDULES // 10
    assert outcomes["interrupted"] > SCHEDULES // 20
    assert outcomes["overcome"] > SCHEDULES // 100


def _one_schedule(seed: int, bundle: Bundle, reference: Engine) -> str:
    rng = random.Random(seed)
    clip, settings, plan, cuts = schedule(rng)
    want = list(upscaled_images(reference, clip, settings, plan, cuts=cuts))
    interrupt = rng.random() < 0.3
    driver = DriverDouble(
        seed,
        memory=rng.choice([2**30, 2**30, 60_000]),
        fail_at=int(2 ** rng.uniform(0, 9.5)) if rng.random() < 0.7 else None,
        interrupt=interrupt,
        refuse=rng.choice([(), (), (), ("begin_capture",), ("end_capture",)]),
    )
    got: list[Image] = []
    image = None
    engine = None
    try:
        size = rng.choice([None, clip.shape[1:3]])
        engine = open_double(bundle, driver, size=size, capturable=rng.random() < 0.9)
        for image in upscaled_images(engine, clip, settings, plan, cuts=cuts):
            # Some results stay held.
            got.append(image if rng.random() < 0.5 else image.copy())
        assert len(got) == len(want)
        outcome = "undisturbed" if driver.failed is None else "overcome"
    except EngineError:
        outcome = "failed"
        assert driver.failed is not None or driver.memory < 2**30
        driver.fail_at = None
    except KeyboardInterrupt:
        outcome = "interrupted"
    if engine is not None:
        try:
            engine.close()
        except KeyboardInterrupt:
            outcome = "interrupted"
            engine.close()
    for image, wanted in zip(got, want, strict=False):
        np.testing.assert_array_equal(image, wanted, err_msg=f"schedule {seed}")
    driver.fail_at = None  # Python ignores interrupts of finalisers
    del image, got
    gc.collect()
    assert driver.leaks() == [], f"schedule {seed}"
    return outcome


@pytest.fixture
def driver() -> DriverDouble:
    """Provide a GPU."""
    return DriverDouble()


@pytest.fixture
def engine(bundle: Bundle, driver: DriverDouble) -> Iterator[TensorRTEngine]:
    """Provide an engine on the GPU, and check at the end that everything is freed."""
    with open_double(bundle, driver) as engine:
        yield engine
    check_closed(engine, driver)


def steps(engine: TensorRTEngine, count: int, *, graph: str = "forward", height: int = 5) -> Any:
    """Return the state after ``count`` steps that alternate between two arrays."""
    frame = engine.upload(np.full((1, 3, height, 7), 0.25, np.float32))
    flow = engine.zeros((1, 2, height, 7), dtype="float32")
    state = engine.zeros((1, 2, height, 7), dtype="float32")
    places = [engine.empty((1, 2, height, 7), dtype="float32") for _ in range(2)]
    for i in range(count):
        (state,) = engine.run(graph, into=[places[i % 2]], frame=frame, state=state, flow=flow)
    return state


def wanted_state(count: int, *, factor: float = 0.75) -> np.float32:
    state = np.float32(0)
    for _ in range(count):
        state = np.float32(factor) * state + np.float32(0.25)
    return state


@pytest.mark.parametrize("count", [10, 200])
def test_no_step_waits_on_the_host(
    count: int, engine: TensorRTEngine, driver: DriverDouble
) -> None:
    """However many steps are submitted, the host waits once, for the result."""
    steps(engine, 3)  # loads the engines, captures the step
    before = len(driver.calls)
    state = steps(engine, count)
    assert not set(driver.calls[before:]) & set(WAITS) - {"is_done"}
    values = engine.download(state)
    waits = Counter(driver.calls[before:])
    assert waits["synchronise"] == 1
    assert waits["synchronise_stream"] == 0
    assert waits["is_done"] <= 2  # finds pinned memory for one upload and one download
    np.testing.assert_array_equal(values, wanted_state(count))


def test_a_scene_waits_for_its_results_only(bundle: Bundle, driver: DriverDouble) -> None:
    """The number of waits depends on downloads and uploads, not on the number of graph runs."""
    with open_double(bundle, driver, size=(6, 8)) as engine:
        before = len(driver.calls)
        plan = MemoryPlan(window=40, batch=4, band=6, in_memory=99)
        clip = moving_clip(40, 6, 8)
        assert len(list(upscaled_images(engine, clip, Settings(cleanings=1), plan))) == 40
        calls = Counter(driver.calls[before:])
    assert calls["synchronise_stream"] == 0
    assert calls["synchronise"] <= calls["download"] + calls["upload"]
    # Per batch of four frames: images in, residues and images out. At the end, two states and an
    # output are checked for NaN.
    assert calls["upload"] == 10
    assert calls["download"] == 2 * 10 + 3


def test_branches_overlap(bundle: Bundle, driver: DriverDouble) -> None:
    """Within a window, the steps of the two branches are not ordered relative to each other."""
    with open_double(bundle, driver) as engine:
        plan = MemoryPlan(window=8, batch=4, band=6, in_memory=99)
        list(upscaled_images(engine, moving_clip(16, 6, 8), Settings(cleanings=1), plan))
        log = driver.log
    backward, forward = (
        [operation for operation in log if operation.name == graph]
        for graph in ("backward", "forward")
    )
    assert len(backward) == 16 + 8
    assert len(forward) == 16
    recomputed, ahead = backward[16:], forward[8:]
    for one, other in itertools.product(recomputed, ahead[:4]):
        assert not one.is_after(other)
        assert not other.is_after(one)
    assert not any(one.is_after(other) for one in recomputed for other in ahead)


def test_branches_of_a_short_scene_run_side_by_side(bundle: Bundle, driver: DriverDouble) -> None:
    """Where the states of both fit, forward steps are submitted beside backward steps. Neither
    waits for recent ones of the other; for earlier ones only where the memory of a flow is reused.
    """
    with open_double(bundle, driver) as engine:
        plan = MemoryPlan(window=32, batch=4, band=16, in_memory=99)
        list(upscaled_images(engine, moving_clip(16, 16, 32), Settings(cleanings=1), plan))
        log = [operation for operation in driver.log if operation.name in ("backward", "forward")]
    assert [operation.name for operation in log] == ["backward", "forward"] * 16
    for one, other in itertools.combinations(range(32), 2):
        if log[one].name != log[other].name and other - one < 8:
            assert not log[other].is_after(log[one]), (one, other)


def _run_output(engine: TensorRTEngine, i: int) -> Any:
    states = engine.zeros((1, 2, 5, 7), dtype="float32")
    frame = engine.upload(np.full((1, 3, 5, 7), i / 10, np.float32))
    (output,) = engine.run("reconstruct", frame=frame, backward_state=states, forward_state=states)
    return engine.run("emit", picture=output)[0]


def test_downloads_do_not_delay_later_work(engine: TensorRTEngine, driver: DriverDouble) -> None:
    """Images are downloaded while the next ones are computed, though their arrays are dropped."""
    begun = [engine.begin_download(_run_output(engine, i)) for i in range(6)]

    def named(name: str) -> list[Operation]:
        return [operation for operation in driver.log if operation.name == name]

    for download, emit in zip(named("download"), named("emit")[1:], strict=False):
        assert not emit.is_after(download)
    for i, finish in enumerate(begun):
        np.testing.assert_array_equal(finish(), round(25.5 * i + 0.01))


def test_steps_are_captured(engine: TensorRTEngine, driver: DriverDouble) -> None:
    """Steps are captured when arrays come back to the same places, and nothing is copied for that;
    another shape captures again.
    """
    values = engine.download(steps(engine, 8))
    np.testing.assert_array_equal(values, wanted_state(8))
    calls = Counter(driver.calls)
    # Step 1 comes from zeros; 2 and 3 are the first ones between the two places.
    assert calls["end_capture"] == 2
    assert calls["launch"] == 8 - 3
    assert not [operation for operation in driver.log if operation.name == "copy"]
    values = engine.download(steps(engine, 6, graph="backward"))
    np.testing.assert_array_equal(values, wanted_state(6, factor=0.5))
    calls = Counter(driver.calls)
    assert calls["launch"] == 5 + 3
    values = engine.download(steps(engine, 6, height=6))
    np.testing.assert_array_equal(values, wanted_state(6))
    assert Counter(driver.calls)["end_capture"] == 2 + 2 + 2
    assert Counter(driver.calls)["destroy_graph"] == 2
    assert engine._launches.counts == {"captured": 6, "launched": 9, "replayed": 11}


@pytest.mark.slow
@pytest.mark.parametrize("refused", ["begin_capture", "end_capture", "is_capturable"])
def test_without_capturing_steps_are_launched(
    refused: str, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """Capturing is tried again ever more rarely, a few times per graph; the values are the same."""
    caplog.set_level(logging.INFO)
    driver = DriverDouble(refuse=(refused,))
    with open_double(bundle, driver, capturable=refused != "is_capturable") as engine:
        values = engine.download(steps(engine, 200))
        engine.download(steps(engine, 5, graph="backward"))
        assert engine._launches.counts["refused"] == 6 + 1
    np.testing.assert_array_equal(values, wanted_state(200))
    messages = [r.message for r in caplog.records if "is not captured" in r.message]
    assert len(messages) == 3  # the first and the last of one graph, the first of the other
    assert "launch" not in driver.calls
    del values
    check_closed(engine, driver)


def test_a_refused_capture_succeeds_later(bundle: Bundle, driver: DriverDouble) -> None:
    """TensorRT-RTX refuses while it compiles kernels; other graphs do not wait for that."""
    with open_double(bundle, driver, capturable=False) as engine:
        engine.download(steps(engine, 4))
        engine._runtime.capturable = True  # type: ignore[attr-defined]
        values = engine.download(steps(engine, 12))
        assert engine._launches.counts["refused"] == 1
        assert engine._launches.counts["captured"] == 2
        assert "launch" in driver.calls
    np.testing.assert_array_equal(values, wanted_state(12))
    del values
    check_closed(engine, driver)


def test_captured_graphs_are_bounded(
    engine: TensorRTEngine, driver: DriverDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States at ever new places do not pile up graphs, nor displace those that are used."""
    monkeypatch.setattr(launches, "_MOST_GRAPHS", 4)
    flow = engine.zeros((1, 2, 5, 7), dtype="float32")
    frame = engine.upload(np.zeros((1, 3, 5, 7), np.float32))
    places = [engine.zeros((1, 2, 5, 7), dtype="float32") for _ in range(8)]

    def step(source: int, to: int) -> None:
        engine.run("forward", into=[places[to]], frame=frame, state=places[source], flow=flow)

    for _ in range(3):
        step(0, 1)
    for i in range(2, 8):
        step(1, i)
    before = driver.calls.count("launch")
    step(0, 1)
    assert driver.calls.count("launch") == before + 1
    for _ in range(2):
        for i in range(2, 8):
            for _ in range(2):
                step(1, i)
    assert len(engine._launches._graphs) <= 4


def test_engines_that_do_not_load_are_skipped(
    bundle: Bundle, driver: DriverDouble, caplog: pytest.LogCaptureFixture
) -> None:
    """The next ones are used and a warning gives the reason; those already loaded are closed."""
    offered = [
        candidate(bundle, plans={"flow": b"bad"}, reason="from the bundle"),
        candidate(bundle, profile=ShapeProfile((1, 1), (2, 2), (4, 4)), reason="too small"),
        candidate(bundle, reason="from the cache"),
    ]
    plans = PlansDouble(lambda height, width, batch: offered)
    with open_double(bundle, driver, size=(5, 7), plans=plans) as engine:
        assert "engines from the cache" in str(engine.describe())
        assert engine.describe().device == "cuda:0 Double"
        np.testing.assert_array_equal(engine.download(steps(engine, 3)), wanted_state(3))
    assert plans.asked == [(5, 7, 4)]
    (record,) = caplog.records
    assert record.message == (
        "engines from the bundle are not used: the engine of graph 'flow' is for another version"
    )
    check_closed(engine, driver)


def test_no_engine_loads(bundle: Bundle, driver: DriverDouble) -> None:
    """This gives one sentence, and everything is freed."""
    bad = candidate(bundle, plans={"emit": b"bad"})
    some = replace(bad, plans={"ingest": bundle.graph("ingest")})
    cases = [
        ([], "run on this machine: build"),
        ([bad], "'emit' is for another"),
        ([some], "for graph 'clean'"),
    ]
    for offered, why in cases:
        plans = PlansDouble(lambda height, width, batch, offered=offered: offered)  # type: ignore[misc]
        with pytest.raises(
            EngineError, match=r"no TensorRT engines for 7x5 in batches of 4.*" + why
        ):
            open_double(bundle, driver, size=(5, 7), plans=plans)
        assert driver.leaks() == []


def test_sizes_outside_the_profile_load_other_engines(bundle: Bundle, driver: DriverDouble) -> None:
    """They load after operations in flight, and arrays stay valid; bands of a frame load none."""

    def offer(height: int, width: int, batch: int) -> list[Any]:
        profile = ShapeProfile((height, width), (height, width), (height, width), batch=batch)
        return [candidate(bundle, profile=profile)]

    plans = PlansDouble(offer)
    with open_double(bundle, driver, size=(8, 7), plans=plans) as engine:
        state = steps(engine, 3, height=8)
        band = engine.rows(state, 2, 5)
        engine.run(
            "reconstruct",
            frame=engine.zeros((1, 3, 3, 7), dtype="float32"),
            backward_state=band,
            forward_state=band,
        )
        assert plans.asked == [(8, 7, 4)]
        engine.run("ingest", image=engine.upload(np.zeros((5, 8, 7, 3), np.uint8)))
        assert plans.asked[1:] == [(8, 7, 5)]
        other = steps(engine, 2, height=9)
        assert plans.asked[2:] == [(9, 7, 4)]
        np.testing.assert_array_equal(engine.download(state), wanted_state(3))
        np.testing.assert_array_equal(engine.download(band), wanted_state(3))
        np.testing.assert_array_equal(engine.download(other), wanted_state(2))
        assert len(engine._runtime.open) == 10  # type: ignore[attr-defined]
    check_closed(engine, driver)


def test_memory_is_allocated_once_per_size(bundle: Bundle, driver: DriverDouble) -> None:
    """A second scene of the same size allocates no memory of either kind and no event."""
    plan = MemoryPlan(window=5, batch=2, band=6, in_memory=99)
    with open_double(bundle, driver) as engine:
        clip = moving_clip(10, 6, 8)
        for _ in range(5):  # the double finishes copies late: how many are under way varies
            list(upscaled_images(engine, clip, Settings(), plan))
        before = Counter(driver.calls)
        for _ in range(3):
            list(upscaled_images(engine, clip, Settings(), plan))
        calls = Counter(driver.calls) - before
    assert calls["malloc"] <= 2
    assert calls["malloc_host"] == 0
    assert calls["create_event"] <= before["create_event"] // 4


def test_too_little_memory(bundle: Bundle) -> None:
    """Idle memory is freed before retrying; if that is not enough, an error is raised.

    The engine continues to work.
    """
    driver = DriverDouble(memory=10_000)
    with open_double(bundle, driver) as engine:
        first = engine.empty((6_000,), dtype="uint8")
        with pytest.raises(DeviceMemoryError, match=r"0\.0 MiB were requested, but the GPU has"):
            engine.empty((6_000,), dtype="uint8")
        assert engine.free_memory() == 10_000 - 6_144
        del first
        assert engine.free_memory() == 10_000
        engine.upload(np.zeros(9_000, np.uint8))
        assert driver.calls.count("free") == 1
        with pytest.raises(DeviceMemoryError, match="graph 'ingest' failed on cuda:0"):
            engine.run("ingest", image=engine.upload(np.zeros((4, 20, 20, 3), np.uint8)))
        np.testing.assert_array_equal(engine.download(steps(engine, 3)), wanted_state(3))
    check_closed(engine, driver)


def test_captured_steps_are_freed_when_memory_runs_out(bundle: Bundle) -> None:
    """When memory runs out, the memory for capturing is freed, and steps continue to work."""
    driver = DriverDouble(memory=12_000)
    with open_double(bundle, driver) as engine:
        state = steps(engine, 6)
        assert "launch" in driver.calls
        held = engine.empty((driver.memory - driver.used + 512 * 4,), dtype="uint8")
        assert "destroy_graph" in driver.calls
        before = driver.calls.count("launch")
        np.testing.assert_array_equal(engine.download(state), wanted_state(6))
        del held
        np.testing.assert_array_equal(engine.download(steps(engine, 4)), wanted_state(4))
        assert driver.calls.count("launch") == before
    check_closed(engine, driver)


def test_results_outlive_the_engine(bundle: Bundle, driver: DriverDouble) -> None:
    """Pinned memory of a result stays until the result and its views are garbage."""
    engine = open_double(bundle, driver)
    result = engine.download(steps(engine, 3))[0, :, 1:]
    finish = engine.begin_download(steps(engine, 2))
    engine.close()
    engine.close()
    np.testing.assert_array_equal(finish(), wanted_state(2))
    np.testing.assert_array_equal(result, wanted_state(3))
    assert [leak.split()[2] for leak in driver.leaks()] == ["pinned", "pinned"]
    del result, finish
    check_closed(engine, driver)


def test_pinned_memory_is_bounded(engine: TensorRTEngine, driver: DriverDouble) -> None:
    """A caller that holds many results gets pageable copies from some number on.

    Uploads wait for one of a few blocks.
    """
    results = [engine.download(_run_output(engine, i)) for i in range(20)]
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, round(25.5 * i + 0.01) if i <= 10 else 255)
    assert driver.calls.count("malloc_host") <= 9 + 4
    arrays = [engine.upload(np.full(1000, i, np.uint8)) for i in range(30)]
    assert driver.calls.count("malloc_host") <= 9 + 4 + 4
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(engine.download(array), i)


def test_uploads_copy_the_values(engine: TensorRTEngine) -> None:
    """The array may be changed immediately, and need not be contiguous."""
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    uploaded = engine.upload(values[:, ::2])
    want = values[:, ::2].copy()
    values[:] = -1
    np.testing.assert_array_equal(engine.download(uploaded), want)


def test_rows_and_parts(engine: TensorRTEngine) -> None:
    """Rows are a copy, parts share the memory."""
    values = np.arange(2 * 3 * 6 * 5, dtype=np.float32).reshape(2, 3, 6, 5)
    there = engine.upload(values)
    rows = engine.rows(there, 1, 4)
    part = engine.slice(there, 1, 2)
    np.testing.assert_array_equal(engine.download(rows), values[:, :, 1:4])
    np.testing.assert_array_equal(engine.download(part), values[1:2])
    np.testing.assert_array_equal(engine.download(engine.rows(part, 5, 6)), values[1:2, :, 5:])
    with pytest.raises(ValueError, match="no items 1 to 3"):
        engine.slice(there, 1, 3)


def test_calls_may_come_from_any_thread(engine: TensorRTEngine) -> None:
    """The GPU is made current in each; results may be freed in another."""
    found: list[Any] = []

    def work() -> None:
        found.append(engine.download(steps(engine, 3)))

    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    for values in found:
        np.testing.assert_array_equal(values, wanted_state(3))


def test_a_closed_engine_runs_nothing(bundle: Bundle, driver: DriverDouble) -> None:
    """It raises a clear error, and so does a request for a graph that does not exist."""
    with open_double(bundle, driver) as engine:
        with pytest.raises(EngineError, match=r"there is no graph 'sharpen' in 'small\.plan'"):
            engine.run("sharpen")
        state = steps(engine, 1)
    for call in (
        lambda: engine.run("emit", picture=state),
        lambda: engine.upload(np.zeros(3, np.uint8)),
        lambda: engine.download(state),
        lambda: engine.zeros((1,), dtype="uint8"),
        engine.free_memory,
    ):
        with pytest.raises(EngineError, match=r"the engine of 'small\.plan' is closed"):
            call()
    check_closed(engine, driver)


def test_a_network_without_cleaning(tmp_path: Path, driver: DriverDouble) -> None:
    """A network without cleaning, BasicVSR, has two graphs less."""
    bundle = small_bundle(tmp_path / "six.plan", cleans=False)
    plan = MemoryPlan(window=3, batch=2, band=6, in_memory=9)
    clip = moving_clip(5, 6, 5)
    with OnnxRuntimeEngine(bundle, device="cpu") as onnx_runtime:
        want = list(upscaled_images(onnx_runtime, clip, Settings(), plan))
    with open_double(bundle, driver) as engine:
        got = list(upscaled_images(engine, clip, Settings(), plan))
        assert len(engine._runtime.open) == 8  # type: ignore[attr-defined]
        with pytest.raises(EngineError, match="no graph 'clean'"):
            engine.run("clean", frame=None)
    np.testing.assert_array_equal(got, want)
    del got
    check_closed(engine, driver)


@pytest.mark.slow
def test_a_failed_launch_leaves_the_engine_usable(bundle: Bundle) -> None:
    """The error has the graph and the driver's message; later launches wait for work in flight."""
    for seed in range(6):
        driver = DriverDouble(seed)
        with open_double(bundle, driver) as engine:
            state = steps(engine, 1)
            driver.refuse = ("forward",)
            with pytest.raises(
                EngineError, match=r"graph 'forward' failed on cuda:0: CUDA failed in forward: "
            ):
                steps(engine, 1)
            driver.refuse = ()
            np.testing.assert_array_equal(engine.download(state), wanted_state(1))
            np.testing.assert_array_equal(engine.download(steps(engine, 3)), wanted_state(3))
        check_closed(engine, driver)


def test_batches_that_are_too_large_to_address_run_in_parts(
    bundle: Bundle, driver: DriverDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a graph takes fewer frames than the batch, the values are the same."""
    most = 2 * 48 * 6 * 7  # of two frames of the head
    for module in ("graphs", "bundle.engine_sets"):
        monkeypatch.setattr(f"rbvsr_deploy.{module}.MOST_VALUES", 10**6)
    profile = ShapeProfile((1, 1), (6, 7), (6, 7), batch=4)
    rng = np.random.default_rng(0)
    values = {
        item.name: rng.random((4, 3 if item.name == "frame" else 2, 6, 7), np.float32)
        for item in GRAPHS["reconstruct"].inputs
    }
    pictures = []
    for limit in (10**6, most):
        monkeypatch.setattr("rbvsr_deploy.graphs.MOST_VALUES", limit)
        plans = PlansDouble(lambda *_: [candidate(bundle, profile=profile)])
        with open_double(bundle, DriverDouble(), plans=plans) as engine:
            arrays = {name: engine.upload(array) for name, array in values.items()}
            (picture,) = engine.run("reconstruct", **arrays)
            pictures.append(engine.download(picture).copy())
            assert engine._launches.most_frames("reconstruct") == (4 if limit > most else 2)
    whole, parts = pictures
    np.testing.assert_array_equal(whole, parts)
