"""The networks of a run: the generator, its moving average and the discriminator."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rbvsr_deploy.model import RealBasicVSR
from rbvsr_deploy.training.config import TrainingConfig
from rbvsr_deploy.training.discriminator import Discriminator

__all__ = [
    "FlowPass",
    "Networks",
    "NotFiniteError",
    "RestorationPass",
    "build_networks",
    "update_average",
]

_PIECES = ("clean", "flow", "backward_step", "forward_step", "reconstruct")


class NotFiniteError(Exception):
    """A flow, a loss or a gradient is infinite or not a number; the weights have not been changed
    by it.
    """


@dataclass(frozen=True)
class Networks:
    """What a checkpoint holds."""

    generator: RealBasicVSR
    average: RealBasicVSR
    """Moving average of the generator: what is validated and exported."""
    discriminator: Discriminator | None

    def published(self) -> dict[str, nn.Module]:
        """By the prefix of their tensors in a published training checkpoint."""
        networks: dict[str, nn.Module] = {
            "generator": self.generator,
            "generator_ema": self.average,
        }
        if self.discriminator is not None:
            networks["discriminator"] = self.discriminator
        return networks


def build_networks(config: TrainingConfig, device: torch.device) -> Networks:
    """With fresh weights, which follow from the seed."""
    torch.manual_seed(config.seed)
    generator, average = RealBasicVSR(config.network), RealBasicVSR(config.network)
    average.load_state_dict(generator.state_dict())
    average.requires_grad_(False).eval()
    discriminator = None
    if config.losses.gan_weight:
        discriminator = Discriminator(config.discriminator_channels).to(device)
    for network in (generator, average):
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu":
        for level in generator.basicvsr.spynet.basic_module:
            level.register_forward_hook(_check_flow)
    _prepare_pieces(generator, checkpointing=config.checkpointing, compiled=config.compile)
    return Networks(generator, average, discriminator)


def _check_flow(module: nn.Module, inputs: tuple[Tensor, ...], flow: Tensor) -> None:
    """torch 2.13 crashes on a CPU where it samples a border at positions that are no numbers."""
    if flow.isnan().any():
        raise NotFiniteError


def _prepare_pieces(generator: RealBasicVSR, *, checkpointing: bool, compiled: bool) -> None:
    """Compile the pieces of the network, and have their features computed again in the backward
    pass. A piece is one step of one frame: the whole sequence would be too long to compile.
    """
    for name in _PIECES:
        piece = getattr(generator, name)
        if compiled:
            piece = torch.compile(piece)
        if checkpointing:
            piece = partial(checkpoint, piece, use_reentrant=False)
        setattr(generator, name, piece)


@torch.no_grad()
def update_average(networks: Networks, *, decay: float) -> None:
    """``average = decay * average + (1 - decay) * generator``; what is not trained (a frozen flow
    network, buffers) is copied, as published.
    """
    ours = networks.generator.state_dict(keep_vars=True)
    for name, value in networks.average.state_dict().items():
        if ours[name].requires_grad:
            value.lerp_(ours[name], 1.0 - decay)
        else:
            value.copy_(ours[name])


class RestorationPass(nn.Module):
    """One forward pass as trained, with exactly one cleaning."""

    def __init__(self, generator: RealBasicVSR) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, degraded: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T, 3, H, W) -> cleaned (N, T, 3, H, W) and output (N, T, 3, 4H, 4W)."""
        cleaned = self.generator.refine(degraded, cleanings=1)
        return cleaned, self.generator.propagate(cleaned)


class FlowPass(nn.Module):
    """The flow network alone."""

    def __init__(self, generator: RealBasicVSR) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, degraded: Tensor) -> Tensor:
        """(N, T, 3, H, W) -> (N, 2 (T-1), 2, H, W): flows to the next frame, then to the previous
        one.
        """
        return torch.cat(self.generator.flows(degraded), dim=1)
