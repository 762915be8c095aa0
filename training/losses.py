"""Computes the losses: flow error, and output, cleaning and adversarial loss.

The weights of the published recipe are in :mod:`rbvsr_deploy.training.config`. The perceptual loss,
which needs its own network, is in :mod:`rbvsr_deploy.training.perceptual`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.model import warp

__all__ = [
    "adversarial_loss",
    "charbonnier",
    "cleaning_target",
    "flow_loss",
    "gradient_loss",
    "grid_loss",
    "in_colours_of",
    "l1",
    "steadiness_loss",
]


def l1(output: Tensor, target: Tensor) -> Tensor:
    """Compute the mean of ``|d|``: the output and cleaning loss of the released configuration."""
    return F.l1_loss(output, target)


def charbonnier(output: Tensor, target: Tensor, *, epsilon: float = 1e-3) -> Tensor:
    """Compute the mean of ``sqrt(d^2 + epsilon^2)``, an L1 loss that is smooth at 0.

    It is the output and cleaning loss in the text of the paper (section 3.1). The epsilon is
    LapSRN's (Lai et al., CVPR 2017), a quarter of a level of 255; the published code's 1e-6 has
    hardly any smoothing effect.
    """
    return ((output - target) ** 2 + epsilon**2).sqrt().mean()


def gradient_loss(output: Tensor, target: Tensor) -> Tensor:
    """Compute the mean absolute error of the differences between neighbours, in x and in y. It
    favours edges where a pixel loss would accept their average.

    Args:
        output, target: (..., H, W).
    """
    error = output - target
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def grid_loss(output: Tensor, target: Tensor) -> Tensor:
    """Compute the mean absolute error of the pattern that repeats every 4x4 pixels, in squares of
    up to 32x32: the mean of each of the 16 places over its 64 repetitions, without the mean of all.
    The head's pixel shuffles leave such a grid in flat areas; other losses hardly see it.

    Args:
        output, target: (..., 3, 4H, 4W).
    """
    error = (output - target).flatten(0, -4)
    places = F.pixel_unshuffle(error, SCALE).unflatten(1, (3, SCALE**2)).flatten(0, 1)
    square = [min(8, size) for size in places.shape[-2:]]
    means = F.avg_pool2d(places, square)
    return (means - means.mean(dim=1, keepdim=True)).abs().mean()


def steadiness_loss(output: Tensor, target: Tensor, flow: Tensor, known: Tensor) -> Tensor:
    """Compute the mean absolute error of the changes from frame to frame along the true flow.

    Args:
        output, target: (N, T, 3, 4H, 4W).
        flow: (N, T-1, 2, H, W), from each frame but the first to the previous one, in degraded
            pixels.
        known: (N, T-1, H, W) bool; pixels whose true flow is unknown are ignored.
    """
    error = output - target
    before, now = error[:, :-1].flatten(0, 1), error[:, 1:].flatten(0, 1)
    finer = F.interpolate(flow.flatten(0, 1), scale_factor=4.0, mode="bilinear") * 4.0
    asked = F.interpolate(known.flatten(0, 1)[:, None].to(error.dtype), scale_factor=4.0)
    change = now - warp(before, finer, padding_mode="border")
    return (asked * change).abs().sum() / (3.0 * asked.sum()).clamp(min=1.0)


def cleaning_target(truth: Tensor) -> Tensor:
    """Compute the target of the cleaning module: the sharpened ground truth, reduced to the size of
    the degraded frames by averaging blocks of 4x4 (paper, section 3.1; published code: ``area``,
    x0.25).

    Args:
        truth: (N, T, 3, 4H, 4W), sharpened.

    Returns:
        (N, T, 3, H, W).
    """
    reduced = F.avg_pool2d(truth.flatten(0, 1), 4)
    return reduced.view(*truth.shape[:3], *reduced.shape[-2:])


def in_colours_of(degraded: Tensor, target: Tensor) -> Tensor:
    """The target, shifted by a constant per clip and channel to the mean of the degraded frames:
    compression, and a teacher, change it by a level or so, which a network should neither undo nor
    learn.

    Args:
        degraded: (N, T, 3, H, W).
        target: (N, T, 3, 4H, 4W).
    """
    of_clip = (1, 3, 4)
    return target + (degraded.mean(of_clip, keepdim=True) - target.mean(of_clip, keepdim=True))


def adversarial_loss(logits: Tensor, *, real: bool) -> Tensor:
    """Compute the binary cross entropy of logits for "real" (1) or "generated" (0) images.

    It is the published ``vanilla`` GAN loss. The discriminator passes what the images are, the
    generator always passes ``real=True``.
    """
    target = torch.ones_like(logits) if real else torch.zeros_like(logits)
    return F.binary_cross_entropy_with_logits(logits, target)


def flow_loss(flow: Tensor, truth: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the end-point error, weighted so that slow motion counts as much as fast motion.

    Args:
        flow, truth: (N, 2, H, W), pixels.
        known: (N, H, W) bool; pixels whose true flow is unknown are ignored.

    Returns:
        The loss, and the unweighted mean end-point error in pixels without gradient.
    """
    asked = known.to(truth.dtype)
    error = ((flow - truth) ** 2).sum(dim=1).add(1e-6).sqrt()  # (N, H, W)
    weight = asked / (0.5 + truth.norm(dim=1))
    count = asked.sum().clamp(min=1.0)
    return (weight * error).sum() / count, (asked * error).sum().detach() / count
