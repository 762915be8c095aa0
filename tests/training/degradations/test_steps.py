"""Tests that degradations do what they claim, even where published code is wrong, and repeat."""

from __future__ import annotations

from typing import Any, get_args

import av
import cv2
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.training.data.sharpening import sharpen
from rbvsr_deploy.training.degradations.clip_degradation import (
    CLEAN,
    MODERATE,
    PUBLISHED,
    Degradation,
    degrade,
    draw_degradation,
    walk_through,
)
from rbvsr_deploy.training.degradations.compression import check_encoder, encode_and_decode
from rbvsr_deploy.training.degradations.config import Encoder
from rbvsr_deploy.training.degradations.kernels import (
    gaussian_kernel,
    plateau_kernel,
    separable_parts,
    sinc_kernel,
    trimmed,
)
from rbvsr_deploy.training.degradations.steps import (
    Blur,
    FloatImage,
    GaussianNoise,
    Jpeg,
    PoissonNoise,
    Reduction,
    Resize,
    SincBlur,
    Step,
    VideoCompression,
    apply,
    to_bytes,
)

Frames = NDArray[np.uint8]

SIZE = (32, 32)


@pytest.fixture(scope="module")
def clip(photo: Frames) -> Frames:
    return np.stack([photo[i : i + 128, 2 * i : 2 * i + 160] for i in range(4)])


def gray(value: float, *, side: int = 256) -> FloatImage:
    return np.full((side, side, 3), value, np.float32)


def video(encoder: Encoder, *, bits: int | None = None, quality: int | None = None) -> Step:
    return VideoCompression(encoder=encoder, preset=None, bits_per_frame=bits, quality=quality)


def available(encoder: str) -> bool:
    try:
        av.Codec(encoder, "w")
    except ValueError:
        return False
    return True


encoders = pytest.mark.parametrize("encoder", [e for e in get_args(Encoder) if available(e)])


# ------------------------------------------------------------------------------------------- a clip


@pytest.mark.parametrize("config", [PUBLISHED, MODERATE])
@pytest.mark.parametrize("seed", range(5))
def test_a_logged_degradation_is_repeated_bit_for_bit(
    clip: Frames, config: object, seed: int
) -> None:
    """After a round trip through JSON, it gives the same frames, at a quarter of the size."""
    assert isinstance(config, type(PUBLISHED))
    rng = np.random.default_rng(seed)
    degradation = draw_degradation(config, rng, length=4, walk=True)
    result = degrade(clip, degradation)
    assert result.shape == (4, 32, 40, 3)
    assert result.dtype == np.uint8
    again = msgspec.json.decode(msgspec.json.encode(degradation), type=Degradation)
    assert np.array_equal(result, degrade(clip, again))
    # The content is still the same: a wrap-around or swapped channels would differ far more.
    clean = degrade(clip, draw_degradation(CLEAN, rng, length=4, walk=False))
    assert np.abs(result.astype(float) - clean).mean() < 40.0
    assert not np.array_equal(result, clean)


def test_walking_through_the_steps_matches_degrade(clip: Frames) -> None:
    """The walk through the steps begins with the frames and ends with the result of ``degrade``."""
    degradation = draw_degradation(PUBLISHED, np.random.default_rng(7), length=4, walk=True)
    shown = list(walk_through(clip, degradation))
    assert [step for step, _ in shown] == [None, *degradation.steps]
    assert np.array_equal([to_bytes(p) for p in shown[0][1]], clip)
    assert np.array_equal([to_bytes(p) for p in shown[-1][1]], degrade(clip, degradation))


def test_wrong_frames_are_refused() -> None:
    clean = Degradation(length=1, steps=(Reduction("area"),))
    with pytest.raises(ValueError, match="multiples of 4"):
        degrade(np.zeros((1, 6, 8, 3), np.uint8), clean)
    with pytest.raises(ValueError, match="uint8"):
        degrade(np.zeros((1, 8, 8, 3), np.float32), clean)
    with pytest.raises(ValueError, match="2 frames, but parameters for 1"):
        degrade(np.zeros((2, 8, 8, 3), np.uint8), clean)


# ------------------------------------------------------------------------------------------ kernels


@pytest.mark.parametrize("size", [7, 21])
def test_kernels_are_normalised(size: int) -> None:
    for kernel in (
        gaussian_kernel(size, sigma_x=3.0, sigma_y=0.2, angle=1.0, beta=0.5),
        plateau_kernel(size, sigma_x=3.0, sigma_y=0.2, angle=1.0, beta=2.0),
        sinc_kernel(size, cutoff=1.0),
    ):
        assert kernel.shape == (size, size)
        assert kernel.dtype == np.float32
        assert kernel.sum() == pytest.approx(1.0, abs=1e-5)


def test_gaussian_kernels_by_hand() -> None:
    """Ratios of neighbouring values follow the formulas; the angle rotates x towards y."""
    plain = gaussian_kernel(7, sigma_x=2.0, sigma_y=0.5, angle=0.0)
    assert plain[3, 5] / plain[3, 3] == pytest.approx(np.exp(-0.5 * 1.0), rel=1e-5)
    assert plain[4, 3] / plain[3, 3] == pytest.approx(np.exp(-0.5 * 4.0), rel=1e-5)
    turned = gaussian_kernel(7, sigma_x=2.0, sigma_y=0.5, angle=np.pi / 2)
    np.testing.assert_allclose(turned, plain.T, atol=1e-6)
    half = gaussian_kernel(7, sigma_x=2.0, sigma_y=0.5, angle=np.pi / 4)
    assert half[5, 5] > half[1, 5]
    generalized = gaussian_kernel(7, sigma_x=1.0, sigma_y=1.0, angle=0.0, beta=0.5)
    assert generalized[3, 5] / generalized[3, 3] == pytest.approx(np.exp(-1.0), rel=1e-5)
    plateau = plateau_kernel(7, sigma_x=1.0, sigma_y=1.0, angle=0.0, beta=2.0)
    assert plateau[3, 5] / plateau[3, 3] == pytest.approx(1 / 17, rel=1e-5)


def test_a_sinc_passes_low_frequencies_and_stops_high_ones() -> None:
    """The response of a large kernel is 1 well below the cutoff, 0 well above it, with ringing."""
    kernel = sinc_kernel(51, cutoff=1.5)
    positions = np.arange(51) - 25
    below, above = (float((kernel.sum(axis=0) * np.cos(w * positions)).sum()) for w in (0.9, 2.1))
    assert below == pytest.approx(1.0, abs=0.06)
    assert above == pytest.approx(0.0, abs=0.06)
    assert kernel.min() < 0.0
    # Values of the Bessel function from Abramowitz and Stegun, table 9.1: J1(1.5), J1(3).
    ratio = kernel[25, 26] / kernel[25, 27]
    assert ratio == pytest.approx(0.5579365079 / (0.3390589585 / 2.0), rel=1e-5)


def test_separable_parts_add_up_to_the_kernel() -> None:
    """The sum is within 0.3 levels of 255 for the worst possible image."""
    for kernel in (
        gaussian_kernel(21, sigma_x=2.9, sigma_y=0.4, angle=0.7),
        plateau_kernel(15, sigma_x=1.0, sigma_y=1.0, angle=0.0, beta=1.3),
        sinc_kernel(21, cutoff=2.0),
    ):
        total = sum(np.outer(column, row) for column, row in separable_parts(kernel))
        assert np.abs(total - kernel).sum() < 0.3 / 255 + 1e-5
    assert len(separable_parts(gaussian_kernel(21, sigma_x=2.0, sigma_y=2.0, angle=0.0))) == 1


def test_a_trimmed_kernel_is_nearly_the_kernel() -> None:
    """It is smaller or has zeros, sums to 1, and is within 0.2 levels of 255 for any image."""
    for kernel, side, zeros in (
        (gaussian_kernel(21, sigma_x=0.4, sigma_y=0.4, angle=0.0), 5, 0),
        (gaussian_kernel(21, sigma_x=2.9, sigma_y=0.4, angle=0.7), 17, 200),
        (sinc_kernel(21, cutoff=2.0), 21, 0),
    ):
        smaller = trimmed(kernel)
        assert len(smaller) <= side
        assert np.count_nonzero(smaller == 0.0) >= zeros
        assert smaller.sum() == pytest.approx(1.0, abs=1e-6)
        np.testing.assert_array_equal(smaller != 0.0, smaller[::-1, ::-1] != 0.0)
        border = (len(kernel) - len(smaller)) // 2
        assert np.abs(np.pad(smaller, border) - kernel).sum() < 0.2 / 255


@pytest.mark.parametrize("size", [7, 13, 21])
@pytest.mark.parametrize("sigma_y", [0.3, 0.7, 2.5])
@pytest.mark.parametrize("shape", [(40, 50), (4, 6)])
def test_blur_is_the_correlation_with_its_kernel(
    photo: Frames, size: int, sigma_y: float, shape: tuple[int, int]
) -> None:
    """This holds for every method, at reflected borders, and for images smaller than the kernel."""
    image = photo[: shape[0], : shape[1]].astype(np.float32) / np.float32(255)
    step = Blur("anisotropic", size, (3.0,), (sigma_y,), (0.4,), (1.0,))
    (result,) = apply(step, [image], size=SIZE)
    kernel = gaussian_kernel(size, sigma_x=3.0, sigma_y=sigma_y, angle=0.4)
    pad = size // 2
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(0, 1))
    expected = np.einsum("yxcij,ij->yxc", windows, kernel)
    np.testing.assert_allclose(result, expected, atol=0.5 / 255)


def test_every_frame_has_its_own_kernel(photo: Frames) -> None:
    """Each frame is blurred with its own walked parameters."""
    image = photo.astype(np.float32) / np.float32(255)
    for step, second in (
        (
            Blur("isotropic", 13, (0.3, 2.5), (0.3, 2.5), (0.0, 0.0), (1.0, 1.0)),
            Blur("isotropic", 13, (2.5,), (2.5,), (0.0,), (1.0,)),
        ),
        (SincBlur(13, (3.0, 1.0)), SincBlur(13, (1.0,))),
    ):
        results = apply(step, [image, image], size=SIZE)
        assert np.array_equal(results[1:], apply(second, [image], size=SIZE))
        assert np.abs(results[0] - results[1]).mean() > 0.005


# ----------------------------------------------------------------------------------- size and noise


def test_resizing_gives_even_sizes_relative_to_the_first_frame() -> None:
    images = [gray(0.5, side=100)[:, :90], gray(0.5, side=50)]
    small, large = apply(Resize("down", "area", (0.5, 1.17)), images, size=SIZE)
    assert small.shape == (50, 44, 3)
    assert large.shape == (116, 104, 3)
    assert [p.shape for p in apply(Reduction("bicubic"), images, size=(25, 22))] == [
        (25, 22, 3)
    ] * 2


@pytest.mark.parametrize("resize", ["area", "bilinear", "bicubic"])
def test_reduction_does_not_shift(resize: str) -> None:
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8)[:, None], (1, 64, 128, 3))
    step = msgspec.convert({"step": "reduction", "filter": resize}, Reduction)
    result = degrade(ramp, Degradation(length=1, steps=(step,)))
    # The centre of degraded pixel q is at 4 q + 1.5, and the value of the ramp is its coordinate.
    np.testing.assert_allclose(result[0, 8, 2:-2, 0], 4 * np.arange(2, 30) + 1.5, atol=1.0)


def test_gaussian_noise_has_the_requested_strength() -> None:
    images = [gray(0.5)] * 2
    weak, strong = apply(GaussianNoise((2.0, 20.0), gray=False, seed=1), images, size=SIZE)
    assert (weak * 255).std() == pytest.approx(2.0, rel=0.02)
    assert (strong * 255).std() == pytest.approx(20.0, rel=0.02)
    noise = strong - 0.5
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(noise.ravel(), (weak - 0.5).ravel())[0, 1]) < 0.02  # frames differ


@pytest.mark.parametrize("scale", [0.05, 1.0, 3.0])
@pytest.mark.parametrize("gray_noise", [False, True])
def test_shot_noise_has_the_strength_of_real_esrgan(scale: float, gray_noise: bool) -> None:
    """With all 256 levels, there are 256 photons at white. On the 0-255 scale without rescaling, as
    in one published version, this noise would be 16 times weaker.
    """
    ramp = np.tile(np.arange(256, dtype=np.float32) / np.float32(255), (400, 1))
    image = np.stack([ramp] * 3, axis=-1)
    step = PoissonNoise((scale,), gray=gray_noise, seed=2)
    (result,) = apply(step, [image], size=SIZE)
    noise = result - image
    for level in (16, 128, 255):
        column = noise[:, level]
        expected = scale * np.sqrt(level / 255 / 256)
        assert column.std() == pytest.approx(expected, rel=0.12)
        assert abs(column.mean()) < 5 * expected / np.sqrt(400)
    assert (noise[:, 0] == 0.0).all()  # no light, no photons
    overall = noise[:, 1:] / np.sqrt(ramp[:, 1:, None] / 256) / scale
    assert overall.std() == pytest.approx(1.0, rel=0.01)
    skewness = (overall[:, 3:40] ** 3).mean()  # a normal distribution has none
    assert skewness == pytest.approx((1 / np.sqrt(np.arange(4, 41) / 255 * 256)).mean(), abs=0.12)


def test_shot_noise_of_few_levels_has_few_photons() -> None:
    """With two levels, there are two photons at white."""
    image = gray(0.0)
    image[:, 128:] = 1.0
    (result,) = apply(PoissonNoise((1.0,), gray=False, seed=3), [image], size=SIZE)
    counts = result[:, 128:] * 2
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-5)
    assert counts.mean() == pytest.approx(2.0, abs=0.03)
    assert counts.var() == pytest.approx(2.0, rel=0.03)


def test_gray_noise_is_the_same_in_all_channels() -> None:
    images = [gray(0.4)]
    for step in (
        GaussianNoise((10.0,), gray=True, seed=1),
        PoissonNoise((1.0,), gray=True, seed=1),
    ):
        (result,) = apply(step, images, size=SIZE)
        assert result.std() > 0.01
        np.testing.assert_allclose(result[..., 0], result[..., 2], atol=1e-6)


# -------------------------------------------------------------------------------------- compression


def test_overshoot_is_clipped_before_every_encoder() -> None:
    """Without clipping, overshoot would wrap around into speckles."""
    image = gray(-0.3, side=64)
    image[:, 32:] = 1.3
    for step in (Jpeg((90,)), video("libx264", quality=10), video("mpeg4", quality=2)):
        (result,) = apply(step, [image], size=SIZE)
        assert result[:, :24].max() < 0.1
        assert result[:, 40:].min() > 0.9


def test_jpeg_does_not_swap_red_and_blue() -> None:
    """Noise in blue, which hardly changes the luma, is reduced more than noise in red."""
    noise = 0.1 * np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    kept = []
    for channel in (0, 2):
        image = gray(0.5)
        image[..., channel] += noise
        (result,) = apply(Jpeg((50,)), [image], size=SIZE)
        kept.append(((result[..., channel] - 0.5) * noise).mean() / (noise**2).mean())
    assert kept[0] > 1.5 * kept[1]


def test_lower_quality_and_fewer_bits_are_worse(clip: Frames) -> None:
    # Rate control takes some frames to converge.
    images = [f.astype(np.float32) / 255 for f in (*clip, *clip[::-1], *clip, *clip[::-1])]

    def error(step: Step) -> float:
        result = apply(step, images, size=SIZE)
        return float(np.mean([np.abs(a - b).mean() for a, b in zip(result, images, strict=True)]))

    assert error(Jpeg((95,) * 16)) < error(Jpeg((30,) * 16))
    assert error(video("libx264", quality=16)) < error(video("libx264", quality=33))
    assert error(video("mpeg4", quality=2)) < error(video("mpeg4", quality=12))
    for encoder in ("libx264", "mpeg4"):
        few, many = (video(encoder, bits=bits) for bits in (4_000, 200_000))
        assert error(many) < error(few)


@encoders
def test_encoders_keep_size_order_and_colour(encoder: Encoder) -> None:
    """This includes odd sizes, and frames as small as the pipeline produces."""
    colours = [np.array([200, 90, 30], np.uint8), np.array([60, 120, 180], np.uint8)]
    for height, width in ((11, 15), (70, 90)):
        frames = [np.broadcast_to(colours[i // 3], (height, width, 3)) for i in range(6)]
        decoded = encode_and_decode(frames, encoder, quality=4)
        for frame, expected in zip(decoded, frames, strict=True):
            assert frame.shape == (height, width, 3)
            assert np.abs(frame.astype(int) - expected).max() <= 6


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_encoders_are_deterministic(photo: Frames, encoder: Encoder) -> None:
    """Small frames and B-frames made x264 depend on stray memory with its default options."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0.0, 10.0, (6, 96, 96, 3))
    moving = np.stack([photo[i : i + 96, 3 * i : 3 * i + 96] for i in range(6)])
    frames = list((moving + noise).clip(0, 255).astype(np.uint8))
    rates: tuple[dict[str, Any], ...] = ({"bits_per_frame": 20_000}, {"quality": 22})
    for rate in rates:
        results = [encode_and_decode(frames, encoder, **rate) for _ in range(3)]
        assert all(np.array_equal(results[0], r) for r in results[1:])


def test_a_missing_encoder_is_named() -> None:
    check_encoder("mpeg4")
    with pytest.raises(MediaError, match="this PyAV build has no encoder 'nonesuch'"):
        check_encoder("nonesuch")


# --------------------------------------------------------------------------------------- sharpening


def test_sharpening_follows_its_formula(photo: Frames) -> None:
    """The result matches the formula written out, with a Gaussian computed by hand."""
    crop = np.ascontiguousarray(photo[:80, :90])
    weights = np.exp(-((np.arange(51) - 25.0) ** 2) / (2 * 8.0**2))
    weights /= weights.sum()

    def blur(image: NDArray[np.float64]) -> NDArray[np.float64]:
        padded = np.pad(image, ((25, 25), (25, 25), (0, 0)), mode="reflect")
        rows = np.apply_along_axis(np.convolve, 0, padded, weights, mode="valid")
        return np.apply_along_axis(np.convolve, 1, rows, weights, mode="valid")

    image = crop / 255.0
    residual = image - blur(image)
    soft = blur((np.abs(residual) * 255 > 10).astype(float))
    expected = soft * np.clip(image + 0.5 * residual, 0, 1) + (1 - soft) * image
    result = sharpen(crop[None])[0].astype(float)
    assert np.abs(result - expected * 255).max() < 0.51
    assert np.abs(result - crop).max() > 10


def test_sharpening_leaves_faint_structure_alone() -> None:
    rng = np.random.default_rng(0)
    faint = (128 + rng.integers(-4, 5, (1, 96, 96, 3))).astype(np.uint8)
    assert np.array_equal(sharpen(faint), faint)


def test_sharpened_frames_are_as_smooth_in_time_as_their_sources(photo: Frames) -> None:
    """Equal frames stay equal, as frames are sharpened one by one."""
    crop = photo[:96, :96]
    first, second = sharpen(np.stack([crop, crop]))
    assert np.array_equal(first, second)
    assert cv2.Laplacian(first, cv2.CV_32F).std() > cv2.Laplacian(crop, cv2.CV_32F).std()
