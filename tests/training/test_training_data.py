"""Clips: repeatable, inside the photograph, and with the flow they claim to have."""

from __future__ import annotations

import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import rbvsr_deploy.training
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.training.old_data import (
    ClipSpec,
    TrainingSet,
    camera_path,
    load_photos,
    load_videos,
    photo_clip,
    true_flow,
    video_clip,
)

SPEC = ClipSpec(length=4, crop=32, max_speed=3.0)

Frames = NDArray[np.uint8]


def test_a_bare_import_says_which_name_to_use() -> None:
    source = Path(rbvsr_deploy.training.__file__)
    with pytest.raises(ImportError, match=r"rbvsr_deploy\.training"):
        runpy.run_path(str(source), run_name="training")


def test_flow_convention_of_a_known_pan() -> None:
    # The camera moves right by 8 ground-truth pixels: x of frame 0 is x - 8 of frame 1.
    path = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[1.0, 0.0, 8.0], [0.0, 1.0, 0.0]]])
    flow = true_flow(path, reference=0, neighbour=1, crop=5)
    assert flow.shape == (2, 5, 5)
    assert flow.dtype == np.float32
    np.testing.assert_allclose(flow[0], -2.0, atol=1e-6)  # degraded pixels
    np.testing.assert_allclose(flow[1], 0.0, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_true_flow_agrees_with_the_rendered_frames(photo: Frames, seed: int) -> None:
    clip = photo_clip(photo, np.random.default_rng(seed), SPEC)
    size = (SPEC.crop, SPEC.crop)
    small = [
        cv2.resize(f, size, interpolation=cv2.INTER_AREA).astype(np.float32) for f in clip.frames
    ]
    assert clip.path is not None
    ys, xs = np.mgrid[0 : SPEC.crop, 0 : SPEC.crop].astype(np.float32)
    for reference, neighbour in ((0, 3), (2, 1)):
        flow = true_flow(clip.path, reference=reference, neighbour=neighbour, crop=SPEC.crop)
        x, y = xs + flow[0], ys + flow[1]
        inside = (x > 1) & (x < SPEC.crop - 2) & (y > 1) & (y < SPEC.crop - 2)
        assert inside.any()
        warped = cv2.remap(small[neighbour], x, y, cv2.INTER_CUBIC)
        aligned = np.abs(warped - small[reference])[inside].mean()
        unaligned = np.abs(small[neighbour] - small[reference])[inside].mean()
        assert aligned < 4.0
        assert aligned < 0.5 * unaligned + 0.5


def test_camera_stays_inside_the_photograph() -> None:
    fast = ClipSpec(length=6, crop=32, max_speed=30.0)
    corners = np.array([[0, 0, 1], [127, 0, 1], [0, 127, 1], [127, 127, 1]], dtype=float).T
    for seed in range(40):
        size = (128 + seed, 140)
        path = camera_path(np.random.default_rng(seed), size=size, spec=fast)
        seen = path @ corners
        assert seen.min() > -1e-6
        assert seen[:, 0].max() < size[1] - 1 + 1e-6
        assert seen[:, 1].max() < size[0] - 1 + 1e-6


def test_samples_are_a_function_of_seed_and_index(photo: Frames) -> None:
    def draw(seed: int, index: int, stream: int = 0) -> Frames:
        return TrainingSet([photo], seed=seed).sample(index, spec=SPEC, stream=stream).degraded

    first = draw(1, 5)
    assert np.array_equal(first, draw(1, 5))
    for other in (draw(2, 5), draw(1, 6), draw(1, 5, stream=1)):
        assert not np.array_equal(first, other)


def test_sample_shapes(photo: Frames) -> None:
    sample = TrainingSet([photo]).sample(0, spec=SPEC, motion_only=True)
    assert sample.degraded.shape == (4, 32, 32, 3)
    assert sample.degraded.dtype == np.uint8
    assert sample.truth.shape == (4, 128, 128, 3)
    assert sample.truth.dtype == np.uint8
    assert sample.path is not None
    assert sample.path.shape == (4, 2, 3)


def test_video_clips_come_from_the_video() -> None:
    spec = ClipSpec(length=3, crop=4)
    video = np.arange(8 * 16 * 16 * 3, dtype=np.int64).reshape(8, 16, 16, 3) // 768
    clip = video_clip(video.astype(np.uint8), np.random.default_rng(0), spec)
    times = clip.frames[:, 0, 0, 0].astype(int)  # every frame is filled with its number
    assert clip.frames.shape == (3, 16, 16, 3)
    assert clip.path is None
    assert len(set(np.diff(times))) == 1
    assert abs(np.diff(times)[0]) in (1, 2)


def test_the_cache_is_read_the_second_time(sources: tuple[Path, Path], tmp_path: Path) -> None:
    photos = load_photos([sources[0]], cache=tmp_path, reduction=2)
    assert [p.shape for p in photos] == [(120, 150, 3)] * 2
    files = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    again = load_photos([sources[0]], cache=tmp_path, reduction=2)
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert all(np.array_equal(a, b) for a, b in zip(photos, again, strict=True))
    (video,) = load_videos([sources[1]], cache=tmp_path, reduction=1)
    assert video.shape == (10, 200, 240, 3)


def test_unusable_sources_are_refused(tmp_path: Path, photo: Frames) -> None:
    with pytest.raises(MediaError, match="none of the files"):
        load_photos([tmp_path], cache=tmp_path / "cache", reduction=2)
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(MediaError, match=r"broken\.jpg"):
        load_photos([tmp_path], cache=tmp_path / "cache", reduction=2)
    with pytest.raises(MediaError, match="too small"):
        TrainingSet([photo]).check(ClipSpec(crop=100))
    with pytest.raises(ValueError, match="at least one"):
        TrainingSet([])
