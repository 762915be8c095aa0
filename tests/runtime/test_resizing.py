"""Tests that the output of another size is the network's own, resized in double precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.bench.counting import CountingEngine
from rbvsr_deploy.engines import open_engine
from rbvsr_deploy.engines.tap import TappedEngine
from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.graphs import OPTIONAL
from rbvsr_deploy.runtime.memory_plan import MemoryPlan
from rbvsr_deploy.runtime.output_size import OutputSize, Target
from rbvsr_deploy.runtime.resizing import Resizer, halo_of
from rbvsr_deploy.upscaler import Upscaler
from tests.conftest import moving_clip
from tests.support.old_bundles import without_optional_graphs
from tests.support.resizing import weights_of
from tests.support.small_engines import engine_of, upscaled
from tests.support.tensorrt_double import small_bundle

HEIGHT, WIDTH = 23, 37

TARGETS: list[dict[str, Any]] = [
    {"scale": 1},
    {"scale": 1.5},
    {"scale": 2},
    {"scale": 3},
    {"size": (60, 60), "fit": "cover"},
    {"size": (30, 100), "fit": "stretch"},
    {"height": 150},
]


def target_of(size: dict[str, Any]) -> Target:
    target = OutputSize(**size).target(height=HEIGHT, width=WIDTH)
    assert target is not None
    return target


def resized(images: NDArray[Any], target: Target) -> NDArray[np.float64]:
    """Resize upscaled frames in double precision, and round."""
    rows, columns = (
        weights_of(4 * size, count, start=float(4 * start), extent=float(4 * extent))
        for size, count, (start, extent) in (
            (HEIGHT, target.height, target.rows),
            (WIDTH, target.width, target.columns),
        )
    )
    values = np.einsum("hH,nHWc,wW->nhwc", rows, images.astype(np.float64), columns, optimize=True)
    return np.asarray(np.rint(values.clip(0, np.iinfo(images.dtype).max)))


@pytest.mark.parametrize("kind", ["onnxruntime", "onnxruntime16", "tensorrt", "tensorrt16"])
@pytest.mark.parametrize("size", TARGETS)
def test_resizing_equals_the_reference(kind: str, size: dict[str, Any], tmp_path: Path) -> None:
    """On every engine and for odd sizes, every sample is within one level of what the whole
    output gives.
    """
    target, clip = target_of(size), moving_clip(3, HEIGHT, WIDTH)
    with engine_of(kind, tmp_path) as engine:
        whole, got = upscaled(engine, clip), upscaled(engine, clip, target=target)
    assert got.shape == (3, target.height, target.width, 3)
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    assert np.abs(got - resized(whole, target)).max() <= 1


@pytest.mark.parametrize("model", ["tiny_bundle", "tiny_checkpoint"])
def test_resizing_a_real_network(model: str, request: pytest.FixtureRequest) -> None:
    """The exported graph and the torch module of the same name."""
    target, clip = target_of({"scale": 2}), moving_clip(2, HEIGHT, WIDTH)
    with open_engine(request.getfixturevalue(model), device="cpu") as engine:
        whole, got = upscaled(engine, clip), upscaled(engine, clip, target=target)
    assert np.abs(got - resized(whole, target)).max() <= 1


@pytest.mark.parametrize("size", [{"scale": 2}, {"size": (60, 60), "fit": "cover"}])
def test_sixteen_bits(size: dict[str, Any], tmp_path: Path) -> None:
    """Deep output is within 2 of 65535 levels: it is not rounded to 8 bits on the way."""
    target = target_of(size)
    clip = moving_clip(2, HEIGHT, WIDTH).astype(np.uint16) * 257
    with engine_of("onnxruntime", tmp_path) as engine:
        whole, got = upscaled(engine, clip), upscaled(engine, clip, target=target)
    assert got.dtype == np.uint16
    assert got.shape == (2, target.height, target.width, 3)
    assert np.abs(got - resized(whole, target)).max() <= 2


@pytest.mark.parametrize("size", TARGETS)
@pytest.mark.parametrize("band", [4, 9, 12])
def test_bands_change_nothing(size: dict[str, Any], band: int, tmp_path: Path) -> None:
    """A frame that is upscaled in bands is resized in bands, with the same result."""
    target, clip = target_of(size), moving_clip(3, HEIGHT, WIDTH)
    plan = MemoryPlan(window=2, batch=2, band=band, in_memory=1)
    with engine_of("onnxruntime", tmp_path) as engine:
        whole = upscaled(engine, clip, target=target)
        got = upscaled(engine, clip, target=target, plan=plan)
        number = -(-HEIGHT // band)
        bands = Resizer(engine, target).bands(number)
    np.testing.assert_array_equal(got, whole)
    assert max(b.lower - b.upper for b in bands) <= band + 2 * halo_of(target, engine.network)
    assert [b.start for b in bands[1:]] == [b.stop for b in bands[:-1]]


def test_frames_of_the_api(tmp_path: Path) -> None:
    """``Upscaler`` resizes, and four times the size needs no resizing."""
    clip = moving_clip(2, HEIGHT, WIDTH)
    path = small_bundle(tmp_path / "small.plan").path
    with Upscaler(path, device="cpu", scale=2) as half:
        images = list(half.frames(clip))
    assert [image.shape for image in images] == [(46, 74, 3)] * 2
    with CountingEngine(open_engine(path, device="cpu")) as engine:
        list(Upscaler(engine, height=4 * HEIGHT).frames(clip))
        assert not {*OPTIONAL} & {*engine.counts.launches}
        (shape,) = {image.shape for image in Upscaler(engine, height=100).frames(clip)}
        assert shape == (100, 161, 3)


def test_only_the_resized_frame_leaves_the_device(tmp_path: Path) -> None:
    """At half the size, a quarter of the samples is downloaded."""
    clip = moving_clip(4, HEIGHT, WIDTH)
    path = small_bundle(tmp_path / "small.plan").path
    moved = {}
    for scale in (4, 2):
        with CountingEngine(open_engine(path, device="cpu")) as engine:
            list(Upscaler(engine, scale=scale, cleanings=1).frames(clip))
            moved[scale] = engine.counts.downloaded_bytes
    saved = 4 * (16 - 4) * 3 * HEIGHT * WIDTH
    assert moved[4] - moved[2] == pytest.approx(saved, rel=0.01)


def test_an_earlier_bundle_says_what_it_lacks(tmp_path: Path) -> None:
    """It upscales by four as before, and names the remedy for anything else."""
    path = without_optional_graphs(small_bundle(tmp_path / "small.plan"), tmp_path / "old.plan")
    clip = moving_clip(2, HEIGHT, WIDTH)
    with open_engine(path, device="cpu") as old, open_engine(tmp_path / "small.plan") as new:
        np.testing.assert_array_equal(upscaled(old, clip), upscaled(new, clip))
        sentence = "'old.plan' cannot write another size .*, as an earlier version exported it"
        with pytest.raises(RbvsrError, match=sentence) as caught:
            upscaled(old, clip, target=target_of({"scale": 2}))
        assert caught.value.parameters == ("size",)


def test_running_out_of_memory_while_resizing(tmp_path: Path) -> None:
    """A smaller plan gives the same output."""
    from rbvsr_deploy.errors import DeviceMemoryError

    class Scarce(TappedEngine):
        """Refuses to resize more than 40 rows at once."""

        def run(self, graph: str, **arrays: Any) -> tuple[Any, ...]:
            if graph == "resize" and arrays["picture"].shape[2] > 80:
                raise DeviceMemoryError("graph 'resize' failed on cpu: out of memory")
            return super().run(graph, **arrays)

    target, clip = target_of({"scale": 2}), moving_clip(3, HEIGHT, WIDTH)
    with engine_of("onnxruntime", tmp_path) as engine:
        scarce = Scarce(engine, lambda graph, inputs, outputs: None)
        np.testing.assert_array_equal(
            upscaled(scarce, clip, target=target), upscaled(engine, clip, target=target)
        )
