"""Tests that the synthetic camera stays inside its photographs, and that its flow is correct."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.training.data.camera import CameraPath, draw_motion, film, true_flow
from tests.training.conftest import make_photo

CROP, LENGTH = 32, 4

Frames = NDArray[np.uint8]


def filmed(photos: list[Frames], seed: int, *, speed: float = 3.0) -> tuple[Frames, CameraPath]:
    rng = np.random.default_rng(seed)
    motion = draw_motion(rng, length=LENGTH, crop=CROP, max_speed=speed)
    return film(photos, motion, rng, crop=CROP)


def test_flow_convention_of_a_known_pan() -> None:
    # The camera moves right by 8 ground-truth pixels: x of frame 0 is x - 8 of frame 1.
    maps = np.array([[[[1.0, 0, 0], [0, 1.0, 0]], [[1.0, 0, 8.0], [0, 1.0, 0]]]])
    path = CameraPath(maps=maps, visible=np.ones((1, 2, 5, 5), np.float32))
    flow, known = true_flow(path, reference=0, neighbour=1)
    assert flow.shape == (2, 5, 5)
    assert flow.dtype == np.float32
    np.testing.assert_allclose(flow[0], -2.0, atol=1e-6)  # degraded pixels
    np.testing.assert_allclose(flow[1], 0.0, atol=1e-6)
    assert not known[:, :2].any()  # has left the frame
    assert known[:, 2:].all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_true_flow_agrees_with_the_rendered_frames(seed: int, layers: int) -> None:
    """The flow is right wherever it is marked as known, also on layers that others move across."""
    photos: list[Any] = [cv2.GaussianBlur(make_photo(seed + i), (0, 0), 4.0) for i in range(layers)]
    clip, path = filmed(photos, seed)
    size = (CROP, CROP)
    small = [cv2.resize(f, size, interpolation=cv2.INTER_AREA).astype(np.float32) for f in clip]
    ys, xs = np.mgrid[0:CROP, 0:CROP].astype(np.float32)
    for reference, neighbour in ((0, 3), (2, 1)):
        flow, known = true_flow(path, reference=reference, neighbour=neighbour)
        x, y = xs + flow[0], ys + flow[1]
        warped = cv2.remap(small[neighbour], x, y, cv2.INTER_CUBIC)
        known &= (x > 1) & (x < CROP - 2) & (y > 1) & (y < CROP - 2)  # the taps of the cubic
        assert known.mean() > 0.1
        aligned = np.abs(warped - small[reference])[known].mean()
        unaligned = np.abs(small[neighbour] - small[reference])[known].mean()
        assert aligned < 1.6
        assert aligned < 0.2 * unaligned + 0.8


def test_layers_move_apart_and_hide_each_other() -> None:
    """Two layers have two different flows, longer for the nearer one, and hide some pixels."""
    photos = [np.full((300, 300, 3), value, np.uint8) for value in (60, 200)]
    lengths, hidden = [], 0.0
    for seed in range(8):
        clip, path = filmed(photos, seed, speed=6.0)
        near = path.visible[1, 0] > 0.99
        far = path.visible[0, 0] > 0.99
        assert near.mean() > 0.02
        assert far.mean() > 0.02
        assert (cv2.resize(clip[0], (CROP, CROP), interpolation=cv2.INTER_AREA)[near] > 195).all()
        assert (cv2.resize(clip[0], (CROP, CROP), interpolation=cv2.INTER_AREA)[far] < 65).all()
        np.testing.assert_allclose(path.visible.sum(axis=0), 1.0, atol=1e-5)
        flow, known = true_flow(path, reference=0, neighbour=3)
        length = np.hypot(*flow)
        lengths.append((length[near].mean(), length[far].mean()))
        x, y = np.meshgrid(np.arange(CROP), np.arange(CROP))
        inside = (x + flow[0] > 1) & (x + flow[0] < CROP - 2)
        inside &= (y + flow[1] > 1) & (y + flow[1] < CROP - 2)
        hidden = max(hidden, float((far & inside & ~known).mean()))
    assert sum(near > far for near, far in lengths) >= 6  # turning and zooming are shared
    assert hidden > 0.01


def test_camera_stays_inside_the_photograph() -> None:
    """The camera stays inside even if the photograph is hardly larger and the camera is fast."""
    side = 4 * CROP
    corners = np.array([[0, 0, 1], [side - 1, 0, 1], [0, side - 1, 1], [side - 1, side - 1, 1.0]])
    for seed in range(40):
        photo = np.zeros((side + seed, side + 12, 3), np.uint8)
        _, path = filmed([photo], seed, speed=30.0)
        seen = path.maps[0] @ corners.T
        assert seen.min() > -1e-5
        assert seen[:, 0].max() < photo.shape[1] - 1 + 1e-5
        assert seen[:, 1].max() < photo.shape[0] - 1 + 1e-5


def test_speeds_span_the_requested_range() -> None:
    """Without shake, the middle of the frame pans at speeds from 0.05 to the maximum."""
    speeds = []
    for seed in range(300):
        motion = draw_motion(np.random.default_rng(seed), length=9, crop=CROP, max_speed=4.0)
        steps = np.diff(motion[:, :2], axis=0) / 4
        if np.ptp(steps, axis=0).max() < 1e-9:
            speeds.append(float(np.hypot(*steps[0])))
    assert len(speeds) > 60
    assert 0.05 <= min(speeds) < 0.08
    assert 2.5 < max(speeds) <= 4.0
    assert np.median(speeds) == pytest.approx(np.sqrt(0.05 * 4.0), rel=0.5)  # log-uniform
