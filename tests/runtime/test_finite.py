"""Tests that NaN and infinity stop a stream instead of spoiling the rest of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rbvsr_deploy.errors import EngineError
from rbvsr_deploy.runtime.finite import _are_finite
from rbvsr_deploy.runtime.stream import Settings, Stream, StreamState
from tests.support.engine_doubles import ArithmeticEngine

FRAMES = 60


class _Overflowing(ArithmeticEngine):
    """Gives a value that is not finite for one frame of one graph; from there it spreads."""

    def __init__(self, graph: str, *, frame: int, value: float, precision: str) -> None:
        super().__init__()
        self.network = dataclasses.replace(self.network, precision=precision)  # type: ignore[arg-type]
        self._bad = graph, float(frame), value

    def run(
        self, graph: str, *, into: Sequence[Any] | None = None, **arrays: Any
    ) -> tuple[Any, ...]:
        spoilt = [not np.isfinite(a).all() for a in arrays.values()]
        clean = {name: np.nan_to_num(a, posinf=0, neginf=0) for name, a in arrays.items()}
        outputs = super().run(graph, into=into, **clean)
        bad, frame, value = self._bad
        values = clean.get("frame", np.empty((0, 1, 1, 1)))[:, 0, 0, 0]
        if any(spoilt) and graph != "emit":  # integers hide it
            for output in outputs:
                output[...] = np.nan
        elif graph == bad and frame in values:
            for output in outputs[-1:]:
                output[list(values).index(frame)] = value
        return outputs


def upscale(engine: ArithmeticEngine, settings: Settings) -> int:
    """Return the number of frames that come out of a stream whose frames have values 100, 101...;
    every cleaning adds one.
    """
    done = 0
    with Stream(engine, settings, size=(1, 1)) as stream:
        for number in range(FRAMES):
            image = np.full((1, 1, 3), 100 + number, np.uint8)
            done += sum(1 for _ in stream.push(image))
        done += sum(1 for _ in stream.flush())
    return done


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("graph", ["clean", "backward", "forward"])
@pytest.mark.parametrize("settings", [Settings(), Settings(memory=3000), Settings(max_scene=20)])
def test_it_stops_the_stream(graph: str, value: float, settings: Settings) -> None:
    """Wherever it appears, in whichever chunk and window."""
    for frame in (0, 7, 41, FRAMES - 1):
        number = 100 + frame + (graph != "clean")
        engine = _Overflowing(graph, frame=number, value=value, precision="float32")
        with pytest.raises(EngineError, match=f"graph '{graph}' gave values that are not finite"):
            upscale(engine, settings)


@pytest.mark.parametrize("graph", ["clean", "forward"])
def test_it_stops_a_stream_with_little_lookahead(graph: str) -> None:
    """Its backward states begin again at every frame, so what reaches later frames is found."""
    engine = _Overflowing(graph, frame=107, value=np.nan, precision="float32")
    with pytest.raises(EngineError, match=f"graph '{graph}'"):
        upscale(engine, Settings(lookahead=3))


def test_the_frame_and_the_remedy_are_named() -> None:
    engine = _Overflowing("clean", frame=107, value=np.nan, precision="float16")
    with pytest.raises(EngineError, match="at frame 7 or shortly before: float16 overflows"):
        upscale(engine, Settings())
    engine = _Overflowing("reconstruct", frame=100 + FRAMES, value=np.inf, precision="float32")
    with pytest.raises(EngineError, match=f"'reconstruct' .* frame {FRAMES - 1} .* weights"):
        upscale(engine, Settings())


def test_no_state_with_it_is_given_out() -> None:
    """A segment of the output may end inside a window: its state must not be kept."""
    engine = _Overflowing("forward", frame=104, value=np.nan, precision="float32")
    with Stream(engine, Settings(), size=(1, 1)) as stream:
        for number in range(FRAMES):
            list(stream.push(np.full((1, 1, 3), 100 + number, np.uint8)))
        upscaled_frames = stream.flush()
        with pytest.raises(EngineError, match="'forward'"):
            assert all(upscaled.state() for upscaled in upscaled_frames)


def test_no_state_with_it_is_taken() -> None:
    network = ArithmeticEngine().network
    arrays = {"forward_state": np.full((1, 1, 1, 1), 5.0), "previous": np.zeros((1, 3, 1, 1))}
    with Stream(ArithmeticEngine(), Settings(max_scene=2), size=(1, 1)) as stream:
        upscaled = []
        for number in range(FRAMES):
            upscaled += [u.state() for u in stream.push(np.full((1, 1, 3), number, np.uint8))]
    state = upscaled[0]
    assert state.fits(frames=1, network=network, size=(1, 1))
    for name in arrays:
        spoilt = {**state.arrays, name: np.full_like(state.arrays[name], np.nan)}
        assert not StreamState.from_bytes(
            dataclasses.replace(state, arrays=spoilt).to_bytes()
        ).fits(frames=1, network=network, size=(1, 1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_value_counts(dtype: type[np.floating[Any]], bad: float) -> None:
    """Also in arrays that are views of others; the largest finite values pass."""
    values = np.full((2, 5, 3, 4), np.finfo(dtype).max, dtype).transpose(0, 3, 1, 2)
    values[0, 1] = -values[0, 1]
    assert _are_finite(values)
    values[1, 2, 3, 1] = bad
    assert not _are_finite(values)
