"""Tests the Python API: frames in, upscaled frames out, one stream after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import rbvsr_deploy
from rbvsr_deploy import Upscaler, WriteOptions
from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.errors import BundleError, EngineError, MediaError
from rbvsr_deploy.runtime.stream import Settings, Stream
from rbvsr_deploy.video import open_source
from tests.conftest import moving_clip, short_clip
from tests.support.engine_doubles import ArithmeticEngine


@pytest.fixture
def upscaler(tiny_bundle: Path) -> Iterator[Upscaler]:
    with Upscaler(tiny_bundle, device="cpu", memory="400MiB") as upscaler:
        yield upscaler


def whole(tiny_bundle: Path, clip: NDArray[np.uint8], **settings: Any) -> NDArray[np.uint8]:
    """Upscale one scene without the API."""
    with (
        open_engine(tiny_bundle, device="cpu") as engine,
        Stream(engine, Settings(**settings), size=clip.shape[1:3]) as stream,
    ):
        frames = [u for f in clip for u in stream.push(f)] + list(stream.flush())
    return np.stack([frame.image for frame in frames])


def test_it_is_the_packages_own_name() -> None:
    assert rbvsr_deploy.Upscaler is Upscaler
    assert "Upscaler" in rbvsr_deploy.__all__
    with pytest.raises(AttributeError, match="no attribute 'Downscaler'"):
        rbvsr_deploy.Downscaler  # noqa: B018


def test_frames_of_any_iterable(upscaler: Upscaler, tiny_bundle: Path) -> None:
    """It takes an array, a list or a generator; the result is that of the scene as a whole."""
    clip = moving_clip(7, 24, 31)
    want = whole(tiny_bundle, clip)
    for frames in (clip, list(clip), (frame for frame in clip)):
        got = list(upscaler.frames(frames))
        assert all(image.dtype == np.uint8 and image.shape == (96, 124, 3) for image in got)
        np.testing.assert_array_equal(np.stack(got), want)
    assert list(upscaler.frames([])) == []


def test_frames_are_read_on_demand(tiny_bundle: Path) -> None:
    """With a bounded lookahead, an endless stream works."""
    clip = moving_clip(4, 16, 16)
    taken = []

    def endless() -> Iterator[NDArray[np.uint8]]:
        while True:
            for frame in clip:
                taken.append(1)
                yield frame

    with Upscaler(tiny_bundle, device="cpu", lookahead=2, scene_cuts=False) as upscaler:
        images = upscaler.frames(endless())
        assert isinstance(images, Generator)
        for number in range(5):
            next(images)
            assert len(taken) == number + 3
        images.close()
        assert upscaler.flush() == []  # free again


def test_push_and_flush(tiny_bundle: Path) -> None:
    """Live: the first upscaled frame comes after lookahead + 1 frames, the rest at the end; then a
    new stream may have another size.
    """
    with Upscaler(tiny_bundle, device="cpu", lookahead=2) as upscaler:
        for size in ((24, 31), (16, 20)):
            clip = moving_clip(6, *size)
            pushed = [upscaler.push(frame) for frame in clip]
            assert [len(images) for images in pushed] == [0, 0, 1, 1, 1, 1]
            rest = upscaler.flush()
            assert len(rest) == 2
            got = np.stack([image for images in pushed for image in images] + rest)
            np.testing.assert_array_equal(got, whole(tiny_bundle, clip, lookahead=2))
        assert upscaler.flush() == []


def test_pushed_frames_may_be_used_again(upscaler: Upscaler, tiny_bundle: Path) -> None:
    """A caller may reuse its input buffer, and upscaled frames belong to it."""
    clip = moving_clip(5, 16, 20)
    buffer = np.empty_like(clip[0])
    for frame in clip:
        buffer[:] = frame
        assert upscaler.push(buffer) == []
    buffer[:] = 0
    first = upscaler.flush()
    copies = [image.copy() for image in first]
    second = list(upscaler.frames(255 - clip))
    np.testing.assert_array_equal(np.stack(first), whole(tiny_bundle, clip))
    np.testing.assert_array_equal(np.stack(first), np.stack(copies))
    assert len(second) == 5


@pytest.mark.slow
def test_cuts_are_detected_by_default(tiny_bundle: Path) -> None:
    clip = np.concatenate((moving_clip(5, 32, 48), 255 - moving_clip(6, 32, 48)))
    apart = np.concatenate((whole(tiny_bundle, clip[:5]), whole(tiny_bundle, clip[5:])))
    for scene_cuts, want in ((True, apart), (False, whole(tiny_bundle, clip))):
        with Upscaler(tiny_bundle, device="cpu", scene_cuts=scene_cuts) as upscaler:
            np.testing.assert_array_equal(np.stack(list(upscaler.frames(clip))), want)


@pytest.mark.slow
def test_video(upscaler: Upscaler, sample: Path, tmp_path: Path) -> None:
    """It upscales a file, with the options of the command."""
    clip = short_clip(sample, tmp_path / "clip.mp4")
    summary = upscaler.video(clip, tmp_path / "out.mkv", writing=WriteOptions(crf=30))
    assert (summary.frames, summary.width, summary.height) == (6, 384, 216)
    with open_source(tmp_path / "out.mkv") as source:
        assert len(list(source)) == 6
    with pytest.raises(MediaError, match="exists"):
        upscaler.video(clip, tmp_path / "out.mkv")
    upscaler.video(str(clip), str(tmp_path / "out.mkv"), overwrite=True)


def test_two_upscalers_do_not_disturb_each_other(tiny_bundle: Path) -> None:
    """Two streams can take turns frame by frame, and two threads can run at once."""
    clips = (moving_clip(6, 24, 32), 255 - moving_clip(6, 24, 32))
    want = [whole(tiny_bundle, clip) for clip in clips]
    with (
        Upscaler(tiny_bundle, device="cpu") as first,
        Upscaler(tiny_bundle, device="cpu") as second,
    ):
        pair = (first, second)
        for a, b in zip(*clips, strict=True):
            first.push(a)
            second.push(b)
        for upscaler, images in zip(pair, want, strict=True):
            np.testing.assert_array_equal(np.stack(upscaler.flush()), images)

        got: dict[int, NDArray[np.uint8]] = {}

        def work(number: int) -> None:
            got[number] = np.stack(list(pair[number].frames(clips[number])))

        threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number in (0, 1):
        np.testing.assert_array_equal(got[number], want[number])


def test_one_thing_at_a_time(upscaler: Upscaler) -> None:
    """A call during another one is refused, from whichever thread, and does no harm."""
    clip = moving_clip(4, 16, 16)
    images = upscaler.frames(clip)
    first = next(images)
    refused: list[str] = []

    def other() -> None:
        calls: tuple[Callable[[], object], ...] = (
            lambda: upscaler.push(clip[0]),
            upscaler.flush,
        )
        for call in calls:
            try:
                call()
            except RuntimeError as error:
                refused.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(refused) == 2
    assert all("at work in another thread" in text for text in refused)
    assert len([first, *images]) == 4


def test_closing_while_another_thread_computes_is_refused() -> None:
    """Closing would free the device that the thread uses."""
    computing, proceed = threading.Event(), threading.Event()

    class Slow(ArithmeticEngine):
        def run(self, graph: str, **arguments: Any) -> tuple[Any, ...]:
            computing.set()
            assert proceed.wait(10)
            return super().run(graph, **arguments)

    upscaler = Upscaler(Slow(), scene_cuts=False)
    thread = threading.Thread(target=upscaler.push, args=(np.zeros((1, 1, 3), np.uint8),))
    thread.start()
    assert computing.wait(10)
    with pytest.raises(RuntimeError, match="at work in another thread"):
        upscaler.close()
    proceed.set()
    thread.join()
    assert len(upscaler.flush()) == 1


def test_an_iterator_may_be_abandoned(tiny_bundle: Path) -> None:
    """Leaving the context in the middle of a stream is not an error; continuing is."""
    with Upscaler(tiny_bundle, device="cpu", lookahead=0) as upscaler:
        images = upscaler.frames(moving_clip(4, 16, 16))
        next(images)
    with pytest.raises(RuntimeError, match="is closed"):
        next(images)


def test_pushed_frames_must_be_flushed_first(upscaler: Upscaler, tmp_path: Path) -> None:
    """Otherwise they would be lost."""
    clip = moving_clip(2, 16, 16)
    upscaler.push(clip[0])
    with pytest.raises(RuntimeError, match=r"call flush\(\) before frames\(\)"):
        next(upscaler.frames(clip))
    with pytest.raises(RuntimeError, match=r"call flush\(\) before video\(\)"):
        upscaler.video(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert len(upscaler.flush()) == 1
    assert len(list(upscaler.frames(clip))) == 2


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4), np.uint8), r"\(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        ("a.png", "NumPy array, got str"),
    ],
)
def test_invalid_frames(frame: Any, words: str, upscaler: Upscaler) -> None:
    """The error says what came and what is allowed; the stream continues."""
    good = moving_clip(3, 16, 16)
    upscaler.push(good[0])
    with pytest.raises(ValueError, match=words):
        upscaler.push(frame)
    with pytest.raises(ValueError, match="one size, 16x16 here, got 8x16"):
        upscaler.push(good[0][:, :8])
    upscaler.push(good[1])
    assert len(upscaler.flush()) == 2


def test_a_failing_engine_ends_the_stream() -> None:
    """The engine's error is raised; the next frame begins a new stream."""

    class Failing(ArithmeticEngine):
        fails = False

        def run(self, graph: str, **arguments: Any) -> tuple[Any, ...]:
            if self.fails:
                raise EngineError("graph 'clean' failed on cpu: out of memory")
            return super().run(graph, **arguments)

    engine = Failing()
    frame = np.zeros((1, 1, 3), np.uint8)
    upscaler = Upscaler(engine, scene_cuts=False)
    upscaler.push(frame)
    engine.fails = True
    with pytest.raises(EngineError, match="out of memory"):
        upscaler.push(frame)
    engine.fails = False
    upscaler.push(frame)
    assert len(upscaler.flush()) == 1


def test_closing_frees_the_engine_it_opened_only(tiny_bundle: Path) -> None:
    engine = ArithmeticEngine()
    Upscaler(engine).close()
    assert not engine.closed
    upscaler = Upscaler(tiny_bundle, device="cpu")
    upscaler.push(moving_clip(1, 8, 8)[0])
    upscaler.close()
    upscaler.close()
    for call in (upscaler.flush, lambda: upscaler.push(moving_clip(1, 8, 8)[0])):
        with pytest.raises(RuntimeError, match="is closed"):
            call()
    with pytest.raises(EngineError):
        upscaler.engine.run("ingest")


def test_wrong_arguments(tmp_path: Path) -> None:
    """They are refused before anything is opened."""
    with pytest.raises(ValueError, match="4GiB"):
        Upscaler(memory="much")
    with pytest.raises(ValueError, match="lookahead must be 0 or more"):
        Upscaler(lookahead=-1)
    with pytest.raises(BundleError):
        Upscaler(tmp_path / "missing.plan")
