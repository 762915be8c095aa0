"""Tests what TensorRT-RTX makes of the published network, from the builder's own listing.

A change of the export that costs speed on a GPU is seen here without one.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from rbvsr_deploy.bundle.engine_sets import ShapeProfile
from rbvsr_deploy.engines.tensorrt.build import build_engine_set
from rbvsr_deploy.engines.tensorrt.flavours import load_flavour
from rbvsr_deploy.export.quantise import QUANTISED_OPSET, Calibrator, quantise, residual_blocks
from rbvsr_deploy.graphs import GRAPHS
from tests.support.fused_layers import Kernel, Value, kernels
from tests.support.published_graphs import published_graph, published_manifest

pytestmark = pytest.mark.slow

MAP = (1, 64, -1, -1)
CONVOLUTIONS = ("correlation", "runtime_fusion")

_GENERATIONS = ["8.6", "8.9", "12.0"]


def written(layers: list[Kernel], *, shape: tuple[int, ...]) -> list[Value]:
    return [value for kernel in layers for value in kernel.outputs if value.shape == shape]


def convolutions(layers: list[Kernel]) -> list[Kernel]:
    return [
        kernel
        for kernel in layers
        if kernel.kind in CONVOLUTIONS and any(len(v.shape) == 4 for v in kernel.constants)
    ]


@pytest.mark.parametrize("capability", _GENERATIONS)
def test_a_step(capability: str) -> None:
    """Sampling, rounding and joining are one kernel, and the rest are convolutions in float16.

    No state is copied, transposed or widened to float32 on its way in or out.
    """
    model = published_graph("backward").SerializeToString()
    layers = kernels(published_manifest(), "backward", model, compute_capability=capability)
    assert len(layers) <= 43
    trunk = convolutions(layers)
    assert len(trunk) == 41
    for kernel in trunk:
        used = [*kernel.inputs, *kernel.outputs]
        used += [value for value in kernel.constants if len(value.shape) == 4]
        used = [value for value in used if len(value.shape) == 4]
        assert {(value.dtype, value.layout) for value in used} == {("Half", "NHWC")}

    grid, sampler = (kernel for kernel in layers if kernel not in trunk)
    assert {value.dtype for value in grid.outputs if len(value.shape) == 4} == {"Float"}
    (state,) = (value for value in sampler.inputs if value.name == "state")
    assert (state.dtype, state.layout) == ("Half", "NHWC")
    (joined,) = sampler.outputs
    assert (joined.dtype, joined.shape[1] >= 67) == ("Half", True)
    (coordinates,) = (value for value in sampler.inputs if value.shape == (1, -1, -1, 2))
    assert coordinates.dtype == "Float"
    readers = [kernel for kernel in layers if any(v.name == "state" for v in kernel.inputs)]
    assert readers == [sampler]
    assert [v.name for v in layers[-1].outputs] == ["new_state"]
    assert layers[-1] in trunk
    assert not [value for value in written(layers, shape=MAP) if value.dtype == "Float"]


@pytest.mark.parametrize("capability", _GENERATIONS)
def test_the_head(capability: str) -> None:
    """It takes both states as the steps leave them, and holds no wide map in float32."""
    model = published_graph("reconstruct").SerializeToString()
    layers = kernels(published_manifest(), "reconstruct", model, compute_capability=capability)
    assert len(layers) <= 14
    readers = [
        value
        for kernel in layers
        for value in kernel.inputs
        if value.name in ("backward_state", "forward_state")
    ]
    assert [(value.dtype, value.layout) for value in readers] == [("Half", "NHWC")] * 2
    wide = [v for k in layers for v in k.outputs if len(v.shape) == 4 and v.shape[1] >= 64]
    assert wide
    assert {value.dtype for value in wide} == {"Half"}


@pytest.mark.parametrize("unfused", [False, True])
def test_int8_convolutions_write_two_bytes(unfused: bool) -> None:
    """Each int8 convolution includes bias, ReLU and sum, and writes float16."""
    model = published_graph("backward", opset=QUANTISED_OPSET)
    quantised = quantised_step(model, unfused=unfused).SerializeToString()
    manifest = published_manifest()
    layers = kernels(manifest, "backward", quantised, compute_capability="8.9")
    trunk = [k for k in convolutions(layers) if any(v.dtype == "Int8" for v in k.constants)]
    assert len(trunk) == 40
    assert {value.dtype for kernel in trunk for value in kernel.outputs} <= {"Half", "Int8"}
    assert len(layers) <= 83  # one kernel that rounds before each int8 convolution


def quantised_step(model: onnx.ModelProto, *, unfused: bool) -> onnx.ModelProto:
    blocks = residual_blocks(model)
    rng = np.random.default_rng(0)
    sizes = {"N": 1, "C": 64, "H": 12, "W": 16}
    feeds = {
        item.name: rng.random(
            [sizes[size] if isinstance(size, str) else size for size in item.shape]
        ).astype(item.numpy_dtype("float16"))
        for item in GRAPHS["backward"].inputs
    }
    with Calibrator(model) as calibrator:
        calibrator.add([feeds])
        ranges = calibrator.ranges()
    return quantise(model, blocks, ranges, unfused=blocks if unfused else ())


def test_the_published_size_compiles() -> None:
    """All seven graphs are built for the default profile."""
    engine_set, plans = build_engine_set(
        load_flavour("tensorrt-rtx"),
        published_manifest(),
        {name: published_graph(name).SerializeToString() for name in GRAPHS},
        profile=ShapeProfile(),
        compute_capability="8.9",
    )
    assert set(plans) == set(GRAPHS)
    assert engine_set.layers["backward"]["CONVOLUTION float16"] == 41
