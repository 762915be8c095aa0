"""Tests strength and denoising: between plain enlargement and the output of the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from rbvsr_deploy.bench.counting import CountingEngine
from rbvsr_deploy.checkpoint import load_checkpoint
from rbvsr_deploy.engines import Engine, open_engine
from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.graphs import OPTIONAL
from rbvsr_deploy.jobs.identity import job_identity
from rbvsr_deploy.runtime.memory_plan import MemoryPlan
from rbvsr_deploy.runtime.output_size import OutputSize
from rbvsr_deploy.runtime.scenes import SceneCuts
from rbvsr_deploy.runtime.settings import Settings
from rbvsr_deploy.runtime.stream import Stream, StreamState, UpscaledFrame
from rbvsr_deploy.upscaler import Upscaler
from rbvsr_deploy.video import ReadOptions
from tests.conftest import moving_clip
from tests.support.old_bundles import without_optional_graphs
from tests.support.small_engines import engine_of, upscaled
from tests.support.tensorrt_double import small_bundle

HEIGHT, WIDTH = 13, 17


def enlarged(clip: NDArray[Any]) -> NDArray[np.float64]:
    """Enlarge frames by bilinear interpolation, in double precision."""
    frames = torch.from_numpy(clip.astype(np.float64)).permute(0, 3, 1, 2)
    large = F.interpolate(frames, scale_factor=4, mode="bilinear", align_corners=False)
    return np.asarray(large.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("kind", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("settings", [{}, {"lookahead": 1}, {"refine_scope": "frame"}])
def test_no_strength_is_plain_enlargement(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Of the frames before the cleaning, within rounding; half the strength is halfway."""
    clip = moving_clip(5, HEIGHT, WIDTH)
    with engine_of(kind, tmp_path) as engine:
        none, half, full = (
            upscaled(engine, clip, strength=s, refine_threshold=3.0, **settings).astype(np.float64)
            for s in (0.0, 0.5, 1.0)
        )
    assert np.abs(none - enlarged(clip)).max() <= 0.501
    unclipped = (full > 0) & (full < 255)
    assert np.abs(half - (none + full) / 2)[unclipped].max() <= 1.5  # three values are rounded
    assert np.abs(full - none).max() > 20


@pytest.mark.parametrize("kind", ["onnxruntime", "tensorrt"])
def test_full_strength_runs_nothing_new(kind: str, tmp_path: Path) -> None:
    """Amounts of one change no bit, and no other graph runs than without them."""
    clip = moving_clip(5, HEIGHT, WIDTH)
    with engine_of(kind, tmp_path) as engine:
        counting = CountingEngine(engine)
        plain = upscaled(engine, clip)
        np.testing.assert_array_equal(upscaled(counting, clip, strength=1, denoise=1), plain)
        assert not {*OPTIONAL} & {*counting.counts.launches}


@pytest.mark.parametrize("settings", [{}, {"cleanings": 2}, {"refine_scope": "frame"}])
def test_no_denoising_is_no_cleaning(settings: dict[str, Any], tmp_path: Path) -> None:
    clip = moving_clip(4, HEIGHT, WIDTH)
    with engine_of("onnxruntime", tmp_path) as engine:
        none = upscaled(engine, clip, denoise=0, **settings)
        np.testing.assert_array_equal(none, upscaled(engine, clip, cleanings=0))


@pytest.mark.parametrize("cleanings", [1, 2])
@pytest.mark.parametrize("model", ["tiny_bundle", "tiny_checkpoint"])
def test_a_part_of_the_cleaning(
    model: str, cleanings: int, tiny_checkpoint: Path, request: pytest.FixtureRequest
) -> None:
    """The network propagates the mixture of frames before and after all passes; the strength is
    that of its output over the uncleaned frame. The exported graphs and the torch modules.
    """
    clip = moving_clip(3, HEIGHT, WIDTH)
    network = load_checkpoint(tiny_checkpoint).model
    frames = torch.from_numpy(clip).permute(0, 3, 1, 2)[None].float() / 255
    with torch.no_grad():
        cleaned = network.refine(frames, cleanings=cleanings)
        full = network.propagate(frames + 0.25 * (cleaned - frames))[0]
    plain = torch.from_numpy(enlarged(clip) / 255).permute(0, 3, 1, 2)
    want = (plain + 0.75 * (full - plain)).clamp(0, 1) * 255
    with open_engine(request.getfixturevalue(model), device="cpu") as engine:
        got = upscaled(engine, clip, cleanings=cleanings, denoise=0.25, strength=0.75)
    assert np.abs(got - want.permute(0, 2, 3, 1).numpy()).max() <= 1


@pytest.mark.parametrize("kind", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize(
    "settings", [{}, {"refine_scope": "frame"}, {"lookahead": 2}, {"max_scene": 3}]
)
@pytest.mark.parametrize("plan", [(3, 2, 5, 100), (2, 2, 20, 0), (1, 1, 9, 3)])
def test_frames_may_wait_anywhere(
    kind: str, settings: dict[str, Any], plan: tuple[int, int, int, int], tmp_path: Path
) -> None:
    """Whatever the plan, the output is equal in 16 bits: uncleaned frames wait with the cleaned."""
    clip = moving_clip(7, HEIGHT, WIDTH).astype(np.uint16) * 257
    window, batch, band, in_memory = plan
    small = MemoryPlan(window=window, batch=batch, band=band, in_memory=in_memory)
    options = {"strength": 0.6, "denoise": 0.3, "refine_threshold": 3.0, "cut_at": 4, **settings}
    with engine_of(kind, tmp_path) as engine:
        whole = upscaled(engine, clip, **options)
        np.testing.assert_array_equal(upscaled(engine, clip, plan=small, **options), whole)


def test_a_stream_continues_from_its_state(tmp_path: Path) -> None:
    """After any frame in the middle of a scene, with frames in the spool."""
    clip = moving_clip(6, HEIGHT, WIDTH)
    settings = Settings(strength=0.5, denoise=0.5, lookahead=1)
    plan = MemoryPlan(window=1, batch=1, band=20, in_memory=0)

    def run(engine: Engine, first: int, state: StreamState | None) -> Iterator[UpscaledFrame]:
        with Stream(engine, settings, size=(HEIGHT, WIDTH), state=state) as stream:
            stream._context.budget.plan = plan
            for image in clip[first:]:
                yield from stream.push(image)
            yield from stream.flush()

    with engine_of("onnxruntime", tmp_path) as engine:
        whole = [(frame.image, frame.state()) for frame in run(engine, 0, None)]
        for done, (_, state) in enumerate(whole[:-1], start=1):
            rest = [frame.image for frame in run(engine, done, state)]
            np.testing.assert_array_equal(rest, [image for image, _ in whole[done:]])


def test_a_network_without_cleaning(tmp_path: Path) -> None:
    """A BasicVSR has nothing to mix, and can be blended."""
    clip = moving_clip(3, HEIGHT, WIDTH)
    with engine_of("onnxruntime", tmp_path, cleans=False) as engine:
        np.testing.assert_array_equal(upscaled(engine, clip, denoise=0.5), upscaled(engine, clip))
        assert np.abs(upscaled(engine, clip, strength=0) - enlarged(clip)).max() <= 0.501


def test_an_earlier_bundle_says_what_it_lacks(tmp_path: Path) -> None:
    path = without_optional_graphs(small_bundle(tmp_path / "small.plan"), tmp_path / "old.plan")
    clip = moving_clip(2, HEIGHT, WIDTH)
    with open_engine(path, device="cpu") as engine:
        upscaled(engine, clip, denoise=0)
        with pytest.raises(RbvsrError, match="cannot use another strength than 1 or clean partly"):
            upscaled(engine, clip, strength=0.5, denoise=0.5)


def test_amounts_are_part_of_the_jobs_identity(tmp_path: Path) -> None:
    """Without them, older jobs are continued."""

    def identity(**settings: Any) -> dict[str, str]:
        return job_identity(
            tmp_path,
            engine=engine.describe(),
            settings=Settings(**settings),
            size=OutputSize(),
            reading=ReadOptions(),
            cuts=SceneCuts(None, detect=True),
        )

    with engine_of("onnxruntime", tmp_path) as engine:
        usual = identity()
        assert not {"strength", "denoise"} & {*usual}
        assert identity(strength=1, denoise=1.0) == usual
        others = [identity(strength=0.5), identity(denoise=0.5), identity(strength=0.25)]
    assert len({str(other) for other in (usual, *others)}) == 4


@pytest.mark.parametrize("name", ["strength", "denoise"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_amounts_out_of_range(name: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} must be from 0 to 1, got"):
        Upscaler(tmp_path / "no.plan", **{name: value})  # type: ignore[arg-type]
