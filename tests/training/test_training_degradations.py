"""Degradations: sizes, ranges, repeatability, and that each of them does what its name says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.training.old_degradations import CLEAN, Degradation, degrade, draw_degradation

Frames = NDArray[np.uint8]


@pytest.fixture(scope="module")
def clip(photo: Frames) -> Frames:
    return np.stack([photo[i : i + 128, 2 * i : 2 * i + 160] for i in range(3)])


@pytest.mark.parametrize("seed", range(12))
def test_drawn_degradations_keep_shape_and_repeat(clip: Frames, seed: int) -> None:
    degradation = draw_degradation(np.random.default_rng(seed))
    assert degradation == draw_degradation(np.random.default_rng(seed))
    result = degrade(clip, degradation)
    assert result.shape == (3, 32, 40, 3)
    assert result.dtype == np.uint8
    assert np.array_equal(result, degrade(clip, degradation))
    # Still the same picture: a wrap-around or exchanged channels would be far off.
    assert np.abs(result.astype(float) - degrade(clip, CLEAN)).mean() < 25.0


@pytest.mark.parametrize("resize", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("codec", [None, "libx264", "mpeg4"])
def test_a_flat_colour_stays_in_place(resize: str, codec: str | None) -> None:
    colour = np.array([200, 90, 30], np.uint8)
    flat = np.broadcast_to(colour, (2, 64, 64, 3))
    result = degrade(flat, Degradation(resize=resize, codec=codec, codec_quality=4))
    assert np.abs(result.astype(int) - colour).max() <= 3


@pytest.mark.parametrize("resize", ["area", "bilinear", "bicubic"])
def test_reduction_does_not_shift(resize: str) -> None:
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8)[:, None], (2, 64, 128, 3))
    result = degrade(ramp, Degradation(resize=resize))
    # The centre of degraded pixel q is at 4 q + 1.5, and the value of the ramp is its coordinate.
    np.testing.assert_allclose(result[0, 8, 2:-2, 0], 4 * np.arange(2, 30) + 1.5, atol=1.0)


def test_overshoot_and_noise_are_clipped_before_the_encoder() -> None:
    stripes = np.zeros((2, 64, 64, 3), np.uint8)
    stripes[:, :, 32:] = 255
    noisy = Degradation(gaussian_noise=12.0, codec="libx264", codec_quality=16)
    result = degrade(stripes, noisy).astype(int)
    assert result[:, :, :6].max() < 90
    assert result[:, :, -6:].min() > 165


def test_each_step_changes_the_frames(clip: Frames) -> None:
    clean = degrade(clip, CLEAN)
    changes = {
        "blur": replace(CLEAN, blur_sigmas=(2.0, 2.0)),
        "anisotropic": replace(CLEAN, blur_sigmas=(3.0, 0.5), blur_angle=0.5),
        "gaussian": replace(CLEAN, gaussian_noise=5.0),
        "poisson": replace(CLEAN, photons=500.0),
        "gray poisson": replace(CLEAN, photons=500.0, gray_noise=True),
        "jpeg": replace(CLEAN, jpeg_quality=70),
        "x264": replace(CLEAN, codec="libx264", codec_quality=30),
        "mpeg4": replace(CLEAN, codec="mpeg4", codec_quality=6),
    }
    for name, degradation in changes.items():
        assert not np.array_equal(degrade(clip, degradation), clean), name


def test_worse_quality_is_further_from_the_input(clip: Frames) -> None:
    clean = degrade(clip, CLEAN).astype(float)
    for codec, good, bad in (("libx264", 16, 33), ("mpeg4", 2, 12)):
        errors = [
            np.abs(degrade(clip, Degradation(codec=codec, codec_quality=q)) - clean).mean()
            for q in (good, bad)
        ]
        assert errors[0] < errors[1]


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_encoders_repeat_themselves(photo: Frames, codec: str) -> None:
    # Small frames and B-frames: where x264 depended on stray memory before its options were chosen.
    clip = np.stack([photo[i : i + 192, 3 * i : 3 * i + 192] for i in range(6)])
    for quality, noise in ((4, 10.0), (22, 3.0), (30, 0.0)):
        degradation = Degradation(gaussian_noise=noise, codec=codec, codec_quality=quality)
        results = [degrade(clip, degradation) for _ in range(6)]
        assert all(np.array_equal(results[0], r) for r in results[1:])


def test_noise_has_the_strength_asked_for() -> None:
    gray = np.full((4, 256, 256, 3), 128, np.uint8)
    gaussian = degrade(gray, Degradation(gaussian_noise=8.0)).astype(float) - 128
    assert gaussian.std() == pytest.approx(8.0, rel=0.05)
    poisson = degrade(gray, Degradation(photons=1000.0)).astype(float) / 255
    assert poisson.std() == pytest.approx((128 / 255 / 1000) ** 0.5, rel=0.05)


def test_odd_sizes_survive_the_encoder(photo: Frames) -> None:
    odd = np.stack([photo[:60, :68]] * 2)
    assert degrade(odd, Degradation(codec="libx264")).shape == (2, 15, 17, 3)


def test_wrong_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        degrade(np.zeros((1, 6, 8, 3), np.uint8), CLEAN)
    with pytest.raises(ValueError, match="uint8"):
        degrade(np.zeros((1, 8, 8, 3), np.float32), CLEAN)  # type: ignore[arg-type]
