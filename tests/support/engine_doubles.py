"""Provides engines whose results a test can compute by itself."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.engines import Description, Engine, Network

_PRIME = 1_000_003


def _step(factor: int, frame: int, state: int, flow: int) -> int:
    return (factor * state + 7 * frame + 3 * flow + 1) % _PRIME


def _has_nan(array: NDArray[Any]) -> bool:
    """Return whether a value is NaN, as the sum then is; faster than a look at each."""
    return math.isnan(array.sum())


def backward_state(values: Sequence[int]) -> int:
    """Return the backward state of the first of some frames, starting from the last."""
    state = 0
    for i in reversed(range(len(values))):
        flow = values[i + 1] - values[i] if i + 1 < len(values) else 0
        state = _step(31, values[i], state, flow)
    return state


def forward_state(values: Sequence[int]) -> int:
    """Return the forward state of the last of some frames, starting from the first."""
    state = 0
    for i, value in enumerate(values):
        state = _step(37, value, state, values[i - 1] - value if i else 0)
    return state


def output_level(value: int, backward: int, forward: int) -> int:
    """Return the level of the upscaled frame."""
    return (value + 11 * backward + 13 * forward) % 251


class ArithmeticEngine(Engine):
    """Computes with one number per frame, state and flow; every step is a sum modulo a prime.

    Frames are (N, 3, 1, 1), their flow is the difference of their values, images are (N, 4, 4, 3).
    New arrays are filled with NaN, so that reading an element that was never written shows.
    """

    def __init__(self, residues: Sequence[float] = (), *, has_cleaning: bool = True) -> None:
        self.network = Network(
            channels=1,
            head_channels=1,
            has_cleaning=has_cleaning,
            refine_threshold=5.0,
            precision="float64",  # type: ignore[arg-type]
        )
        self.items: Counter[str] = Counter()
        """Number of items each graph has processed."""
        self.most_states = 0
        """Largest number of states that were on the device at once."""
        self._states: weakref.WeakValueDictionary[int, NDArray[Any]] = weakref.WeakValueDictionary()
        self._residues = list(residues)
        self.closed = False

    def run(
        self, graph: str, *, into: Sequence[Any] | None = None, **arrays: Any
    ) -> tuple[Any, ...]:
        for array in arrays.values():
            assert not _has_nan(array), f"{graph} reads values that were never written"
            for place in into or ():
                assert not np.shares_memory(array, place), f"{graph} writes over its input"
        n = len(next(iter(arrays.values())))
        self.items[graph] += n
        outputs = self._outputs(graph, n, **arrays)
        if into is None:
            return outputs
        for place, output in zip(into, outputs, strict=True):
            place[...] = output
        return tuple(into)

    def _outputs(self, graph: str, n: int, **arrays: Any) -> tuple[Any, ...]:
        match graph:
            case "ingest":
                values = arrays["image"][:, :1, :1].transpose(0, 3, 1, 2)
                return (values.astype(np.float64),)
            case "clean":
                # Adds one; the given residues, one for each pass over two frames.
                number = (self.items["clean"] - n) // 2
                residue = self._residues[number] if self._residues else 0.0
                return arrays["frame"] + 1, np.full(n, residue / 255)
            case "flow":
                flow = arrays["neighbour"][:, :1] - arrays["reference"][:, :1]
                return (np.concatenate((flow, flow), axis=1),)
            case "backward" | "forward":
                factor = 31 if graph == "backward" else 37
                parts = (arrays["frame"], arrays["state"], arrays["flow"])
                numbers = (int(part[0, 0, 0, 0]) for part in parts)
                return (np.full((1, 1, 1, 1), float(_step(factor, *numbers))),)
            case "reconstruct":
                names = ("frame", "backward_state", "forward_state")
                triples = zip(*(arrays[k][:, 0, 0, 0].astype(int) for k in names), strict=True)
                levels = [output_level(*(int(x) for x in triple)) for triple in triples]
                return (np.repeat(levels, 16).reshape(n, 1, 4, 4).astype(np.float64),)
            case _:
                image = np.repeat(arrays["picture"].transpose(0, 2, 3, 1), 3, axis=3)
                return (image.astype(np.uint8),)

    def empty(self, shape: tuple[int, ...], *, dtype: str) -> Any:
        array = np.full(shape, np.nan)
        if shape[1] == 1:  # a state; a flow has two channels
            self._states[id(array)] = array
            alive = sum(len(states) for states in self._states.values())
            self.most_states = max(self.most_states, alive)
        return array

    def zeros(self, shape: tuple[int, ...], *, dtype: str) -> Any:
        return np.zeros(shape)

    def slice(self, array: Any, start: int, stop: int) -> Any:
        assert 0 <= start < stop <= len(array)
        return array[start:stop]

    def copy(self, array: Any, *, into: Any, graph: str | None = None) -> None:
        assert self.asynchronous
        assert not _has_nan(array), "values that were never written are copied"
        into[...] = array

    def rows(self, array: Any, top: int, bottom: int) -> Any:
        return array[:, :, top:bottom].copy()

    def upload(self, array: Any) -> Any:
        return array

    def download(self, array: Any) -> Any:
        return array

    def begin_download(self, array: Any) -> Any:
        values = array.copy()
        return lambda: values

    def free_memory(self) -> int:
        return 2**30

    def describe(self) -> Description:
        return Description(
            engine="onnxruntime",
            version="0",
            device="cpu",
            precision="float32",
            model="double",
            weights="0",
            reason="a test",
        )

    def close(self) -> None:
        self.closed = True


class BicubicEngine(ArithmeticEngine):
    """Enlarges by bicubic interpolation instead of the network. Frames are (N, 3, H, W) float32 in
    [0, 1], states and flows are zero.
    """

    def __init__(self) -> None:
        super().__init__(has_cleaning=False)
        self.network = dataclasses.replace(self.network, precision="float32")

    def _outputs(self, graph: str, n: int, **arrays: Any) -> tuple[Any, ...]:
        match graph:
            case "ingest":
                image = arrays["image"].transpose(0, 3, 1, 2)
                return (image.astype(np.float32) / np.float32(255),)
            case "flow":
                return (np.zeros_like(arrays["reference"][:, :2]),)
            case "backward" | "forward":
                return (np.zeros_like(arrays["frame"][:, :1]),)
            case "reconstruct":
                images = arrays["frame"].transpose(0, 2, 3, 1)
                large = [
                    cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
                    for image in images
                ]
                return (np.stack(large).transpose(0, 3, 1, 2),)
            case _:
                image = np.clip(arrays["picture"].transpose(0, 2, 3, 1), 0, 1)
                return (np.rint(image * 255).astype(np.uint8),)
