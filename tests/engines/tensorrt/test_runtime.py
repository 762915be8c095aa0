"""Tests deserialising: bad engines give a clear error, never a crash. No GPU is needed."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rbvsr_deploy.engines.cuda.driver import Gpu
from rbvsr_deploy.engines.tensorrt.cache import read_cached
from rbvsr_deploy.engines.tensorrt.flavours import TensorRT, load_flavour
from rbvsr_deploy.engines.tensorrt.runtime import TensorRTExecutable, TensorRTRuntime
from rbvsr_deploy.errors import EngineError
from tests.support.tensorrt_bindings import bindings

GPU = Gpu("Ada of a test", "8.9", "12.6", 2**34)

RANDOM = random.Random(5).randbytes(5000)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBVSR_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "plan",
    [b"", b"\0", RANDOM, b"ftrt" + RANDOM, b"vtrt" + RANDOM, b"vtrt\0\0\0\0" + bytes(5000)],
    ids=["empty", "one byte", "random", "of TensorRT", "of TensorRT-RTX", "zeros"],
)
def test_invalid_engines_are_rejected(plan: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """The error has the graph's name and TensorRT's message, and nothing is printed."""
    runtime = TensorRTRuntime(load_flavour("tensorrt-rtx"), GPU)
    with pytest.raises(EngineError) as caught:
        runtime.load("emit", plan)
    assert "the engine of graph 'emit' is refused by tensorrt-rtx" in str(caught.value)
    assert "Error Code" in str(caught.value)
    assert "\n" not in str(caught.value)
    runtime.close()
    assert capfd.readouterr() == ("", "")


class Context:
    """An execution context with one input of up to 8 rows."""

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.works = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return name == "frame" and shape[0] <= 8

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in ("frame", "out")

    def execute_async_v3(self, stream: int) -> bool:
        return self.works


def executable() -> tuple[TensorRTExecutable, Context, TensorRT]:
    tensorrt = TensorRT("tensorrt", bindings("10.3.0"))
    engine = SimpleNamespace(get_tensor_profile_shape=lambda name, profile: ([1], [4], [8]))
    context = Context()
    return TensorRTExecutable(tensorrt, "emit", engine, context), context, tensorrt


def test_shapes_outside_the_profile_are_rejected() -> None:
    """The error gives the shapes that the engine accepts."""
    engine, _, _ = executable()
    engine.set_shape("frame", (8,))
    with pytest.raises(EngineError, match=r"'emit' .* between \(1,\) and \(8,\), not for \(9,\)"):
        engine.set_shape("frame", (9,))


@pytest.mark.parametrize("made", [(2, 9, 8, 8), (2, 3, 8, 1 << 20), (2, 3, -1, 8), (2, 3, 8)])
def test_outputs_of_other_shapes_are_never_written(made: tuple[int, ...]) -> None:
    """The memory for them has the contract's size."""
    shapes = {"frame": (2, 3, 8, 8), "state": (2, 9, 8, 8), "flow": (2, 2, 8, 8)}
    context: Any = SimpleNamespace(
        set_input_shape=lambda name, shape: True,
        get_tensor_shape=lambda name: {"new_state": made}[name],
    )
    sizes: Any = SimpleNamespace(device_memory_size=7)
    engine = TensorRTExecutable(TensorRT("tensorrt", bindings("8.6.1")), "forward", sizes, context)
    for name, shape in shapes.items():
        engine.set_shape(name, shape)
    if made == (2, 9, 8, 8):
        assert engine.scratch_bytes() == 7
    else:
        with pytest.raises(EngineError, match="gives 'new_state' the shape"):
            engine.scratch_bytes()


def test_a_launch_that_fails_is_reported() -> None:
    """With TensorRT's own words."""
    engine, context, tensorrt = executable()
    engine.set_address("frame", 256)
    engine.enqueue(1)
    assert context.addresses == {"frame": 256}
    with pytest.raises(EngineError, match="'emit' has no input or output 'other'"):
        engine.set_address("other", 512)

    def failing(stream: int) -> bool:
        tensorrt.logger.log(1, "Error Code 1: Cuda Runtime (an illegal memory access)")
        return False

    context.execute_async_v3 = failing  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=r"'emit' could not be launched: .*illegal memory"):
        engine.enqueue(1)


def test_kernels_compiled_while_running_are_kept(tmp_path: Path) -> None:
    """The next process finds the kernels that TensorRT-RTX returned at the end."""
    runtime: Any = TensorRTRuntime(load_flavour("tensorrt-rtx"), GPU)
    runtime._kernels._cache = SimpleNamespace(serialize=lambda: b"kernels")
    runtime.close()
    (path,) = (tmp_path / "cache" / "kernels").iterdir()
    assert read_cached(path) == b"kernels"
    again: Any = TensorRTRuntime(load_flavour("tensorrt-rtx"), GPU)
    assert again._kernels._content == b"kernels"
