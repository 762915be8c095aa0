"""What the package pyiqa computes, where it is installed and its weights are on the disk.

pyiqa fetches weights when it needs them. Here it may not: every connection is refused while a
metric is made.
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
    MetricUnavailableError,
    Picture,
    Scorer,
    Shown,
    the_truth,
)

__all__ = ["PerceptualIndex", "PyiqaMetric"]


class PyiqaMetric:
    """Scores pictures on the CPU.

    Args:
        name: pyiqa's.
        with_truth: whether it compares with the truth.

    Raises:
        MetricUnavailableError: pyiqa or the weights are missing.
        RbvsrError: at a call, pyiqa fails at a picture.
    """

    def __init__(self, name: str, *, with_truth: bool = False) -> None:
        self._name, self._with_truth = name, with_truth
        try:
            with _offline():
                import pyiqa

                self._metric: Any = pyiqa.create_metric(name, device="cpu")
        except Exception as error:  # of whatever library was to load something
            raise MetricUnavailableError(
                f"pyiqa fails to load it ({first_line(error)}), and nothing is downloaded here: "
                f"fetch its weights with python -c \"import pyiqa; pyiqa.create_metric('{name}')\""
            ) from None

    def __call__(self, shown: Shown) -> float:
        import torch

        pictures = [_tensor(shown.picture)]
        if self._with_truth:
            pictures.append(_tensor(the_truth(shown)))
        try:
            with torch.inference_mode():
                return float(self._metric(*pictures))
        except Exception as error:
            raise RbvsrError(f"pyiqa fails at {self._name}: {first_line(error)}") from error


class PerceptualIndex:
    """PI: (NIQE + 10 - NRQM) / 2, lower is better.

    Blau et al., *The 2018 PIRM challenge on perceptual image super-resolution*. pyiqa has one too,
    which leaves out a border of its own.
    """

    def __init__(self, niqe: Scorer, nrqm: Scorer) -> None:
        self._niqe, self._nrqm = niqe, nrqm

    def __call__(self, shown: Shown) -> float | None:
        """``None`` where NIQE is not defined."""
        niqe, nrqm = self._niqe(shown), self._nrqm(shown)
        return None if niqe is None or nrqm is None else (niqe + 10 - nrqm) / 2


def _tensor(picture: Picture) -> Any:
    """(1, 3, H, W) float32 in [0, 1]."""
    import torch

    image = np.ascontiguousarray(picture.rgb)
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255.0


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """No connection to anywhere; what libraries print about it is dropped."""

    def refuse(*arguments: object) -> NoReturn:
        raise ConnectionError("connections are refused")

    with (
        mock.patch("socket.socket.connect", refuse),
        mock.patch("socket.getaddrinfo", refuse),
        mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield
