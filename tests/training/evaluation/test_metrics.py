"""Compares the metrics that need no network with independent implementations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.training.evaluation.metrics.aggd import aggd
from rbvsr_deploy.training.evaluation.metrics.base import CroppedImage, ScoredFrame, luma
from rbvsr_deploy.training.evaluation.metrics.fidelity import (
    IDENTICAL,
    psnr,
    psnr_rgb,
    psnr_y,
    ssim,
    ssim_rgb,
    ssim_y,
)
from rbvsr_deploy.training.evaluation.metrics.niqe import Niqe, Pristine, read_parameters
from rbvsr_deploy.training.evaluation.metrics.resize import enlarge, imresize
from rbvsr_deploy.training.evaluation.metrics.temporal import (
    TemporalOpticalFlow,
    WarpingError,
    flow_difference,
    reliable,
    warp,
)
from tests.training.conftest import make_photo

Image = NDArray[np.uint8]


@pytest.fixture(scope="module")
def pair() -> tuple[Image, Image]:
    """Return an image and its ground truth, which differ by noise and blur."""
    truth = make_photo(3, height=120, width=150)
    noise = np.random.default_rng(0).normal(0, 6, truth.shape)
    return (cv2.GaussianBlur(truth, (0, 0), 1.0) + noise).clip(0, 255).astype(np.uint8), truth


def scored(image: Image, truth: Image, *, border: int = 0) -> ScoredFrame:
    return ScoredFrame(CroppedImage(image, border=border), CroppedImage(truth, border=border))


# ---------------------------------------------------------------------------------------- fidelity


def test_luma_is_that_of_matlab() -> None:
    """Black, white, red, green and blue give the values of ``rgb2ycbcr``."""
    corners = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]])
    expected = [16, 235, 81.481, 144.553, 40.966]
    np.testing.assert_allclose(luma(corners.astype(np.uint8))[0], expected, atol=1e-9)


def test_psnr_of_a_known_difference() -> None:
    """The difference is 10 levels everywhere, scaled to 219 of 255 in luma; zero; or tiny."""
    truth = np.full((32, 40, 3), 100, np.uint8)
    image = truth + np.uint8(10)
    assert psnr_rgb(scored(image, truth)) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr_y(scored(image, truth)) == pytest.approx(20 * math.log10(255 / (10 * 219 / 255)))
    assert psnr(truth, truth) == IDENTICAL
    nearly = truth.astype(float)
    nearly[0, 0] += 1e-6
    assert psnr(nearly, truth) == IDENTICAL


def test_the_border_does_not_count(pair: tuple[Image, Image]) -> None:
    image, truth = pair
    spoilt = image.copy()
    spoilt[:4] = spoilt[-4:] = spoilt[:, :4] = spoilt[:, -4:] = 0
    assert psnr_y(scored(spoilt, truth, border=4)) == psnr_y(scored(image, truth, border=4))
    assert psnr_y(scored(spoilt, truth, border=3)) < psnr_y(scored(image, truth, border=3))


def ssim_by_hand(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Evaluate the formula of the paper, window by window."""
    window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(window, window) / window.sum() ** 2
    views = (np.lib.stride_tricks.sliding_window_view(x.astype(float), (11, 11)) for x in (a, b))
    x, y = views
    mean_x, mean_y = (np.einsum("ijkl,kl->ij", v, window) for v in (x, y))
    var_x = np.einsum("ijkl,kl->ij", x * x, window) - mean_x**2
    var_y = np.einsum("ijkl,kl->ij", y * y, window) - mean_y**2
    both = np.einsum("ijkl,kl->ij", x * y, window) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    return float(np.mean(top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))))


def test_ssim_is_the_formula_of_the_paper(pair: tuple[Image, Image]) -> None:
    image, truth = pair
    assert ssim_y(scored(image, truth)) == pytest.approx(
        ssim_by_hand(luma(image), luma(truth)), abs=1e-9
    )
    channels = [
        ssim_by_hand(image[..., c].astype(float), truth[..., c].astype(float)) for c in range(3)
    ]
    assert ssim_rgb(scored(image, truth)) == pytest.approx(np.mean(channels), abs=1e-9)
    assert ssim(truth, truth) == 1.0


# ------------------------------------------------------------------------------------------ resize


def cubic_matrix(size: int, scale: float) -> NDArray[np.float64]:
    """Build the interpolation along one axis as a matrix, entry by entry from the definition."""
    new, stretch = math.ceil(size * scale), max(1.0, 1 / scale)
    matrix = np.zeros((new, size))
    for row in range(new):
        centre = (row + 0.5) / scale - 0.5
        weights = {}
        for place in range(math.floor(centre - 2 * stretch), math.ceil(centre + 2 * stretch) + 1):
            x = abs(centre - place) / stretch
            if x < 1:
                weights[place] = 1.5 * x**3 - 2.5 * x**2 + 1
            elif x < 2:
                weights[place] = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        for place, weight in weights.items():
            inside = place
            while not 0 <= inside < size:
                inside = -1 - inside if inside < 0 else 2 * size - 1 - inside
            matrix[row, inside] += weight / sum(weights.values())
    return matrix


@pytest.mark.parametrize("scale", [4, 0.5, 1.5])
def test_imresize_is_the_definition(scale: float) -> None:
    """This includes images so small that they are mirrored more than once."""
    for shape in ((12, 17), (3, 2), (1, 5)):
        image = np.random.default_rng(1).uniform(0, 255, shape)
        rows, columns = (cubic_matrix(side, scale) for side in shape)
        np.testing.assert_allclose(imresize(image, scale), rows @ image @ columns.T, atol=1e-10)


def test_a_ramp_stays_a_ramp() -> None:
    """Halving uses eight taps; the mirrored ends of the ramp become flatter."""
    half = imresize(np.arange(16.0)[None].repeat(2, 0), 0.5)
    assert half.shape == (1, 8)
    np.testing.assert_allclose(half[0, 2:6], [4.5, 6.5, 8.5, 10.5], atol=1e-12)
    assert 0 < half[0, 0] < 0.5


def test_enlarged_images_are_rounded_and_clipped() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[:, 2:] = 255
    large = enlarge(image, 4)
    assert large.shape == (16, 16, 3)
    assert large.dtype == np.uint8
    assert large.min() == 0  # the kernel overshoots on both sides
    assert large.max() == 255


# -------------------------------------------------------------------------------------------- NIQE


@pytest.fixture(scope="module")
def pristine() -> Pristine:
    """Return a random model of the same form as the published one."""
    rng = np.random.default_rng(5)
    spread = rng.normal(0, 0.1, (36, 36))
    return Pristine(rng.uniform(0, 2, 36), spread @ spread.T + 0.1 * np.eye(36))


def niqe_by_hand(y: NDArray[np.float64], pristine: Pristine) -> float:
    """Compute NIQE block by block and sum by sum."""
    window = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    window = np.outer(window, window) / window.sum() ** 2
    shapes = [0.2 + 0.001 * i for i in range(9801)]
    table = np.array(
        [math.exp(2 * math.lgamma(2 / a) - math.lgamma(1 / a) - math.lgamma(3 / a)) for a in shapes]
    )

    def fit(values: NDArray[np.float64]) -> tuple[float, float, float]:
        left = math.sqrt(np.mean(values[values < 0] ** 2))
        right = math.sqrt(np.mean(values[values > 0] ** 2))
        skew = left / right
        r = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
        r *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
        alpha = shapes[int(np.argmin((table - r) ** 2))]
        width = math.sqrt(math.gamma(1 / alpha) / math.gamma(3 / alpha))
        return alpha, left * width, right * width

    y = np.round(y[: y.shape[0] // 96 * 96, : y.shape[1] // 96 * 96])
    scales = []
    for side in (96, 48):
        padded = np.pad(y, 3, mode="edge")
        views = np.lib.stride_tricks.sliding_window_view(padded, (7, 7))
        mean = np.einsum("ijkl,kl->ij", views, window)
        square = np.einsum("ijkl,kl->ij", views * views, window)
        normal = (y - mean) / (np.sqrt(np.abs(square - mean**2)) + 1)
        features = []
        for top in range(0, y.shape[0], side):
            for left_edge in range(0, y.shape[1], side):
                block = normal[top : top + side, left_edge : left_edge + side]
                alpha, left, right = fit(block)
                one = [alpha, (left + right) / 2]
                for down, across in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    alpha, left, right = fit(block * np.roll(block, (down, across), (0, 1)))
                    mean_of = (right - left) * math.gamma(2 / alpha) / math.gamma(1 / alpha)
                    one += [alpha, mean_of, left, right]
                features.append(one)
        scales.append(np.array(features))
        if side == 96:
            rows, columns = (cubic_matrix(n, 0.5) for n in y.shape)
            y = rows @ y @ columns.T
    found = np.concatenate(scales, axis=1)
    away = pristine.mean - found.mean(axis=0)
    inverse = np.linalg.pinv((pristine.covariance + np.cov(found.T)) / 2)
    return float(np.sqrt(away @ inverse @ away))


def test_niqe_matches_an_independent_implementation(pristine: Pristine) -> None:
    """Partial blocks at the right and the bottom are ignored."""
    noise = np.random.default_rng(2).normal(0, 8, (200, 300))
    y = (luma(make_photo(4, height=200, width=300)) + noise).clip(16, 235)
    niqe = Niqe(pristine)
    assert niqe.of_luma(y) == pytest.approx(niqe_by_hand(y, pristine), rel=1e-6)
    assert niqe.of_luma(y[:192, :288]) == niqe.of_luma(y)
    soft: Any = cv2.GaussianBlur(y, (0, 0), 2.0)
    assert niqe.of_luma(soft) != pytest.approx(niqe.of_luma(y), rel=0.05)


def test_niqe_of_a_flat_image_is_undefined(pristine: Pristine) -> None:
    assert Niqe(pristine).of_luma(np.full((96, 192), 16.0)) is None


def test_the_shape_of_a_known_distribution_is_found() -> None:
    """Samples are from a Laplace distribution (shape 1) and a Gaussian one (shape 2)."""
    rng = np.random.default_rng(0)
    samples = np.stack([rng.laplace(0, 3, 200_000), rng.normal(0, 3, 200_000)])
    alpha, left, right = aggd(samples)
    np.testing.assert_allclose(alpha, [1, 2], rtol=0.03)
    np.testing.assert_allclose(left, [3 * math.sqrt(2), 3], rtol=0.03)
    np.testing.assert_allclose(right, left, rtol=0.03)


def test_niqe_parameters_are_read_from_both_kinds_of_files(
    pristine: Pristine, tmp_path: Path
) -> None:
    from scipy.io import savemat

    mean, covariance = pristine.mean, pristine.covariance
    np.savez(
        tmp_path / "a.npz", mu_pris_param=mean[None], cov_pris_param=covariance, gaussian_window=0
    )
    savemat(tmp_path / "b.mat", {"mu_prisparam": mean, "cov_prisparam": covariance})
    for name in ("a.npz", "b.mat"):
        read = read_parameters(tmp_path / name)
        np.testing.assert_array_equal(read.mean, mean)
        np.testing.assert_array_equal(read.covariance, covariance)


def test_other_files_are_refused_as_niqe_parameters(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", mu_pris_param=np.zeros(7), cov_pris_param=np.zeros((7, 7)))
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "text.mat").write_text("text")
    for name in ("other.npz", "text.npz", "text.mat", "missing.npz"):
        with pytest.raises(MediaError, match="NIQE parameters"):
            read_parameters(tmp_path / name)


# ---------------------------------------------------------------------------------------- temporal


def moving(photo: Image, *, steps: int, offset: tuple[int, int] = (0, 0)) -> Image:
    """Crop a window of an image, moved by a number of steps of 2 pixels right and 1 down."""
    top, left = 20 + steps + offset[0], 30 + 2 * steps + offset[1]
    return np.ascontiguousarray(photo[top : top + 160, left : left + 200])


def two(before: Image, now: Image, truth: tuple[Image, Image] | None = None) -> ScoredFrame:
    images = [CroppedImage(image, border=0) for image in (before, now)]
    truths = [None, None] if truth is None else [CroppedImage(image, border=0) for image in truth]
    first = ScoredFrame(images[0], truths[0], truths[0])
    return ScoredFrame(images[1], truths[1], truths[1], first)


def test_steady_motion_has_little_warping_error(photo: Image) -> None:
    """Flicker of 5 levels adds the square of 5 / 255, in thousandths."""
    before, now = moving(photo, steps=0), moving(photo, steps=1)
    metric = WarpingError()
    steady = metric(two(before, now))
    assert steady is not None
    assert steady < 0.05
    brighter = np.clip(now.astype(int) + 5, 0, 255).astype(np.uint8)
    flicker = WarpingError()(two(before, brighter, (before, now)))
    assert flicker == pytest.approx(1000 * (5 / 255) ** 2, rel=0.15)
    assert metric(two(before, now)) == steady  # regardless of earlier calls
    assert metric(ScoredFrame(CroppedImage(now, border=0))) is None


def test_tof_is_the_difference_of_motion(photo: Image) -> None:
    """It is 0 for the ground truth, and about 1 if the video moves one pixel further."""
    before, now = moving(photo, steps=0), moving(photo, steps=1)
    metric = TemporalOpticalFlow()
    assert metric(two(before, now, (before, now))) == 0.0
    further = moving(photo, steps=1, offset=(0, 1))
    assert metric(two(before, further, (before, now))) == pytest.approx(1.0, abs=0.25)
    assert metric(two(before, before, (before, now))) == pytest.approx(math.sqrt(5), abs=0.5)
    assert metric(ScoredFrame(CroppedImage(now, border=0))) is None


def test_difference_of_flows_is_the_length_of_the_vector() -> None:
    flow = np.zeros((4, 5, 2), np.float32)
    assert flow_difference(flow, flow + np.array([3, 4], np.float32)) == 5.0


def test_warping_samples_where_the_flow_points() -> None:
    image = np.random.default_rng(0).uniform(0, 255, (10, 12, 3)).astype(np.float32)
    flow = np.zeros((10, 12, 2), np.float32)
    flow[..., 0] = 2  # to the right
    flow[..., 1] = 1  # down
    np.testing.assert_allclose(warp(image, flow)[:-1, :-2], image[1:, 2:], atol=1e-3)


def test_occluded_and_leaving_pixels_are_not_reliable() -> None:
    """These are a patch whose backward flow differs, the rim that moves out, and motion edges."""
    flow = np.zeros((40, 60, 2), np.float32)
    flow[..., 0] = 3
    back = -flow
    assert reliable(flow, back)[:, :57].all()
    assert not reliable(flow, back)[:, 57:].any()
    back[10:20, 10:20] = 4
    mask = reliable(flow, back)
    assert not mask[11:19, 8:16].any()
    assert mask[25:, :57].all()
    flow[:, 30:, 1] = 5
    assert not reliable(flow, -flow)[:, 29:31].any()
