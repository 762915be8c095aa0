"""Compares newly compiled engines with ONNX Runtime on the CPU, graph by graph.

Samplers are the reason: versions of TensorRT have sampled at the nearest pixel, or wrongly in
networks that mix float16 and float32, without an error. So the flow is shifted off whole pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.bundle import Bundle
from rbvsr_deploy.bundle.engine_sets import EngineSet, ShapeProfile
from rbvsr_deploy.engines.base import Engine, Network
from rbvsr_deploy.engines.onnx_runtime import OnnxRuntimeEngine
from rbvsr_deploy.engines.tensorrt.base import Candidate
from rbvsr_deploy.engines.tensorrt.build import describe_gpu
from rbvsr_deploy.engines.tensorrt.engine import TensorRTEngine
from rbvsr_deploy.engines.tensorrt.runtime import TensorRTRuntime
from rbvsr_deploy.engines.tensorrt.unquantised import as_compiled
from rbvsr_deploy.errors import DeviceMemoryError, EngineError, MissingDependencyError
from rbvsr_deploy.graphs import GRAPHS
from rbvsr_deploy.pixels import psnr_of
from rbvsr_deploy.resampling import example_inputs

if TYPE_CHECKING:
    from rbvsr_deploy.engines.cuda.driver import CudaDriver
    from rbvsr_deploy.engines.tensorrt.flavours import TensorRT

__all__ = ["LEAST_PSNR", "compare_values", "open_engine_set", "run_once"]

logger = logging.getLogger(__name__)

LEAST_PSNR = {"float32": 60.0, "float16": 40.0, "int8 and float16": 30.0}
"""PSNR in dB below which an engine is refused, by the types of its network. Other kernels round
differently, which costs much less; a wrong sampler costs much more.
"""

_MOST_PIXELS = 500_000
"""Frames are halved to fewer pixels: the CPU takes seconds for each."""

_SUB_PIXEL = np.array([0.37, -0.61], np.float32).reshape(1, 2, 1, 1)

_Call = tuple[str, dict[str, NDArray[Any]], list[NDArray[Any]]]
"""Graph, inputs by name, and the outputs of ONNX Runtime; one frame each."""


def run_once(
    tensorrt: TensorRT,
    driver: CudaDriver,
    bundle: Bundle,
    engine_set: EngineSet,
    plans: Mapping[str, bytes],
) -> EngineSet:
    """Load new engines, compare them by :func:`compare_values`, and return the set with the result.

    Raises:
        EngineError: an engine does not load, or computes wrong values.
    """

    with open_engine_set(tensorrt, driver, bundle, engine_set, plans) as engine:
        return replace(engine_set, psnr=compare_values(engine, bundle, engine_set))


def open_engine_set(
    tensorrt: TensorRT,
    driver: CudaDriver,
    bundle: Bundle,
    engine_set: EngineSet,
    plans: Mapping[str, bytes],
) -> TensorRTEngine:
    """Load new engines, to try them.

    Raises:
        EngineError: an engine does not load.
    """

    class OneSet:
        def candidates(self, height: int, width: int, *, batch: int) -> Iterator[Candidate]:
            yield Candidate(engine_set, plans, "compiled now")

    return TensorRTEngine(
        Network.of(bundle.manifest),
        OneSet(),
        TensorRTRuntime(tensorrt, describe_gpu(driver)),
        driver,
        model=bundle.path.name,
        weights=bundle.sha256,
        reason="it is tested",
        size=engine_set.profile.opt_size,
        batch=engine_set.profile.batch,
    )


def compare_values(engine: Engine, bundle: Bundle, engine_set: EngineSet) -> dict[str, float]:
    """Run every graph once, at the usual size and batch of its engine, and compare its outputs.

    Args:
        engine: runs the engines.
        bundle: contains the graphs, which ONNX Runtime runs.
        engine_set: the engines, compiled from these graphs.

    Returns:
        The PSNR in dB by graph; empty if ONNX Runtime is not installed or memory is insufficient.

    Raises:
        EngineError: a graph computes wrong values; the message names it.
    """
    figures: dict[str, float] = {}
    profile = engine_set.profile
    least = LEAST_PSNR[engine.network.types]
    try:
        compiled = as_compiled(bundle, engine_set)
        with OnnxRuntimeEngine(compiled, device="cpu") as reference:
            for graph, inputs, expected in _calls(reference, *_size(profile)):
                alone = graph in ("backward", "forward")
                figures[graph] = _psnr(
                    engine, graph, inputs, expected, count=1 if alone else profile.batch
                )
                if not figures[graph] >= least:
                    raise EngineError(
                        f"the engine of graph '{graph}' computes wrong values: "
                        f"{figures[graph]:.1f} dB against ONNX Runtime on the CPU, where at least "
                        f"{least:g} dB are expected"
                    )
    except (DeviceMemoryError, MissingDependencyError, MemoryError) as error:
        logger.warning("the compiled engines are not compared with the CPU: %s", error)
        return {}
    return figures


def _size(profile: ShapeProfile) -> tuple[int, int]:
    height, width = profile.opt_size
    least_height, least_width = profile.min_size
    while height * width > _MOST_PIXELS and height // 2 >= least_height:
        if width // 2 < least_width:
            break
        height, width = height // 2, width // 2
    return height, width


def _psnr(
    engine: Engine,
    graph: str,
    inputs: Mapping[str, NDArray[Any]],
    expected: list[NDArray[Any]],
    *,
    count: int,
) -> float:
    """Return the PSNR in dB of a batch of equal frames; of the worst output, if there are two."""
    arrays = {}
    for item in GRAPHS[graph].inputs:
        values = np.repeat(inputs[item.name], count if item.shape[0] == "N" else 1, axis=0)
        arrays[item.name] = engine.upload(np.ascontiguousarray(values))
    worst = 200.0
    for output, want in zip(engine.run(graph, **arrays), expected, strict=True):
        got = engine.download(output).astype(np.float64)
        if not np.isfinite(got).all():
            return -200.0
        mse = float(((got - want.astype(np.float64)) ** 2).mean())
        worst = min(worst, psnr_of(mse, peak=_peak(graph, want), most=200.0))
    return round(worst, 1)


def _peak(graph: str, want: NDArray[Any]) -> float:
    """Return the value that errors are related to: the largest one of a state, whose scale is the
    network's own; otherwise at least one pixel of flow or the range of an image.
    """
    if want.dtype == np.uint8:
        return 255.0
    least = 1e-3 if graph in ("backward", "forward") else 1.0
    return max(least, float(np.abs(want).max()))


def _calls(reference: Engine, height: int, width: int) -> Iterator[_Call]:
    """Yield one call of every graph on two frames of a moving texture."""
    precision, channels = reference.network.precision, reference.network.channels

    def run(graph: str, *values: NDArray[Any]) -> _Call:
        inputs = {
            item.name: value.astype(item.numpy_dtype(precision))
            for item, value in zip(GRAPHS[graph].inputs, values, strict=True)
        }
        arrays = {name: reference.upload(value) for name, value in inputs.items()}
        outputs = reference.run(graph, **arrays)
        return graph, inputs, [reference.download(output).copy() for output in outputs]

    rng = np.random.default_rng(1)
    images = _moving_texture(height, width)
    calls = [run("ingest", image) for image in images]
    yield calls[1]
    if reference.network.has_cleaning:
        calls = [run("clean", outputs[0]) for _, _, outputs in calls]
        yield calls[1]
    earlier, later = (outputs[0] for _, _, outputs in calls)
    to_next, to_previous = run("flow", earlier, later), run("flow", later, earlier)
    yield to_next
    no_state = np.zeros((1, channels, height, width), np.float32)
    no_flow = np.zeros((1, 2, height, width), np.float32)
    states = []
    for graph, start, end, flow in (
        ("backward", later, earlier, to_next),
        ("forward", earlier, later, to_previous),
    ):
        _, _, (state,) = run(graph, start, no_state, no_flow)
        # Real states are so smooth that sampling at the nearest pixel would hardly show.
        rough = state + rng.normal(0, max(1e-2, float(state.std())), state.shape)
        call = run(graph, end, rough, flow[2][0] + _SUB_PIXEL)
        states.append(call[2][0])
        yield call
    upscaled = run("reconstruct", earlier, *states)
    yield upscaled
    yield run("emit", upscaled[2][0])
    optional = reference.network.optional
    amount = np.full(1, 0.4, np.float32)
    if "mix" in optional:
        yield run("mix", earlier, later, amount)
    if "blend" in optional:
        yield run("blend", later, upscaled[2][0], amount)
    if "resize" in optional:
        yield run("resize", upscaled[2][0], *example_inputs(height, width).values())


def _moving_texture(height: int, width: int) -> list[NDArray[np.uint8]]:
    """Return two images, (1, H, W, 3): waves of several lengths, moved by a fraction of a pixel."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)[..., None]
    images = []
    waves = rng.uniform(-0.9, 0.9, (12, 2, 3)), rng.uniform(0, 6.28, (12, 3))
    for moved in (0.0, 0.4):
        texture = sum(
            np.sin(slope[0] * y + slope[1] * (x + moved) + phase)
            for slope, phase in zip(*waves, strict=True)
        )
        levels = 127.5 + 20 * np.asarray(texture) + rng.normal(0, 2, (height, width, 3))
        images.append(levels.round().clip(0, 255).astype(np.uint8)[None])
    return images
