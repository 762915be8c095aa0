"""Defines the discriminator, which distinguishes real images from generated ones, pixel by pixel.

A U-Net with spectral normalisation (Wang et al., "Real-ESRGAN", ICCVW 2021, section 3.3, and its
published code ``UNetDiscriminatorWithSpectralNorm``), which RealBasicVSR uses in its second stage.
Names and shapes of the ``state_dict`` are those of the published checkpoints, ``weight_orig``,
``weight_u`` and ``weight_v`` included, so that their ``discriminator.*`` loads with
``strict=True``. This requires torch's older ``spectral_norm``: the newer parametrization has other
names.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

__all__ = ["Discriminator"]


class Discriminator(nn.Module):
    """Computes the logits of being real, one per pixel.

    Args:
        channels: number of channels at full resolution; 64 is the published size (4,376,897
            parameters).
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()

        def normalised(
            in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1
        ) -> nn.Module:
            conv = nn.Conv2d(in_channels, out_channels, kernel, stride, 1, bias=False)
            return spectral_norm(conv)

        self.conv_0 = nn.Conv2d(3, channels, 3, 1, 1)
        self.conv_1 = normalised(channels, channels * 2, 4, 2)
        self.conv_2 = normalised(channels * 2, channels * 4, 4, 2)
        self.conv_3 = normalised(channels * 4, channels * 8, 4, 2)
        self.conv_4 = normalised(channels * 8, channels * 4)
        self.conv_5 = normalised(channels * 4, channels * 2)
        self.conv_6 = normalised(channels * 2, channels)
        self.conv_7 = normalised(channels, channels)
        self.conv_8 = normalised(channels, channels)
        self.conv_9 = nn.Conv2d(channels, 1, 3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits; in training mode, each call also performs one power iteration step.

        Args:
            images: (N, 3, H, W), RGB, [0, 1]; H and W multiples of 8.

        Returns:
            (N, 1, H, W) logits.
        """

        def enlarged(x: Tensor) -> Tensor:
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

        full = F.leaky_relu(self.conv_0(images), 0.2)
        half = F.leaky_relu(self.conv_1(full), 0.2)
        quarter = F.leaky_relu(self.conv_2(half), 0.2)
        eighth = F.leaky_relu(self.conv_3(quarter), 0.2)
        x = F.leaky_relu(self.conv_4(enlarged(eighth)), 0.2) + quarter
        x = F.leaky_relu(self.conv_5(enlarged(x)), 0.2) + half
        x = F.leaky_relu(self.conv_6(enlarged(x)), 0.2) + full
        x = F.leaky_relu(self.conv_7(x), 0.2)
        x = F.leaky_relu(self.conv_8(x), 0.2)
        return self.conv_9(x)  # type: ignore[no-any-return]
