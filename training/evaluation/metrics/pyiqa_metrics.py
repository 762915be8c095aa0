"""Computes metrics with the package pyiqa, if it is installed and its weights are on disk.

pyiqa would download missing weights. Here it may not: connections are refused while a metric is
created.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any, NoReturn
from unittest import mock

import numpy as np

from rbvsr_deploy.errors import RbvsrError, first_line
from rbvsr_deploy.training.evaluation.metrics.base import (
    CroppedImage,
    MetricUnavailableError,
    ScoredFrame,
    Scorer,
    require_truth,
)

__all__ = ["PerceptualIndex", "PyiqaMetric"]


class PyiqaMetric:
    """Scores images on the CPU.

    Args:
        name: pyiqa's name of the metric.
        with_truth: compare with the ground truth.

    Raises:
        MetricUnavailableError: pyiqa or the weights are missing.
        RbvsrError: pyiqa fails on an image; raised by calls.
    """

    def __init__(self, name: str, *, with_truth: bool = False) -> None:
        self._name, self._with_truth = name, with_truth
        try:
            with _offline():
                import pyiqa

                self._metric: Any = pyiqa.create_metric(name, device="cpu")
        except Exception as error:  # raised by any of the libraries involved
            raise MetricUnavailableError(
                f"pyiqa cannot load it ({first_line(error)}), and nothing is downloaded here: "
                f"fetch its weights with python -c \"import pyiqa; pyiqa.create_metric('{name}')\""
            ) from None

    def __call__(self, frame: ScoredFrame) -> float:
        import torch

        images = [_tensor(frame.image)]
        if self._with_truth:
            images.append(_tensor(require_truth(frame)))
        try:
            with torch.inference_mode():
                return float(self._metric(*images))
        except Exception as error:
            raise RbvsrError(
                f"pyiqa failed to compute {self._name}: {first_line(error)}"
            ) from error


class PerceptualIndex:
    """Computes PI: (NIQE + 10 - NRQM) / 2, lower is better.

    Blau et al., *The 2018 PIRM challenge on perceptual image super-resolution*. pyiqa has a PI too,
    but it ignores an additional border.
    """

    def __init__(self, niqe: Scorer, nrqm: Scorer) -> None:
        self._niqe, self._nrqm = niqe, nrqm

    def __call__(self, frame: ScoredFrame) -> float | None:
        """Score a frame; ``None`` if NIQE is undefined."""
        niqe, nrqm = self._niqe(frame), self._nrqm(frame)
        return None if niqe is None or nrqm is None else (niqe + 10 - nrqm) / 2


def _tensor(image: CroppedImage) -> Any:
    """Convert an image to (1, 3, H, W) float32 in [0, 1]."""
    import torch

    rgb = np.ascontiguousarray(image.rgb)
    return torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255.0


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Refuse all connections, and discard what libraries print about it."""

    def refuse(*arguments: object) -> NoReturn:
        raise ConnectionError("connections are refused")

    with (
        mock.patch("socket.socket.connect", refuse),
        mock.patch("socket.getaddrinfo", refuse),
        mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield
