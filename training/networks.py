"""Builds the networks of a run: the generator, its moving average and the discriminator."""

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
    """Raised when a flow, loss or gradient is infinite or NaN, before it affects the weights."""


@dataclass(frozen=True)
class Networks:
    """The networks that a checkpoint holds."""

    generator: RealBasicVSR
    average: RealBasicVSR
    """Moving average of the generator, which is validated and exported."""
    discriminator: Discriminator | None

    def published(self) -> dict[str, nn.Module]:
        """Return the networks by the prefix of their tensors in published training checkpoints."""
        networks: dict[str, nn.Module] = {
            "generator": self.generator,
            "generator_ema": self.average,
        }
        if self.discriminator is not None:
            networks["discriminator"] = self.discriminator
        return networks


def build_networks(config: TrainingConfig, device: torch.device) -> Networks:
    """Build networks with random weights, which depend only on the seed."""
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
    """Raise ``NotFiniteError`` for NaN: sampling there crashes torch 2.13 on a CPU."""
    if flow.isnan().any():
        raise NotFiniteError


def _prepare_pieces(generator: RealBasicVSR, *, checkpointing: bool, compiled: bool) -> None:
    """Compile the pieces of the network and enable their checkpointing, if requested. A piece is
    one step of one frame, as the whole sequence would be too long to compile.
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
    """Update ``average = decay * average + (1 - decay) * generator``. As published, tensors that
    are not trained (a frozen flow network, buffers) are copied.
    """
    ours = networks.generator.state_dict(keep_vars=True)
    for name, value in networks.average.state_dict().items():
        if ours[name].requires_grad:
            value.lerp_(ours[name], 1.0 - decay)
        else:
            value.copy_(ours[name])


class RestorationPass(nn.Module):
    """Runs one forward pass as trained, with exactly one cleaning."""

    def __init__(self, generator: RealBasicVSR) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, degraded: Tensor) -> tuple[Tensor, Tensor]:
        """Return cleaned (N, T, 3, H, W) and output (N, T, 3, 4H, 4W) for (N, T, 3, H, W)."""
        cleaned = self.generator.refine(degraded, cleanings=1)
        return cleaned, self.generator.propagate(cleaned)


class FlowPass(nn.Module):
    """Runs the flow network alone."""

    def __init__(self, generator: RealBasicVSR) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, degraded: Tensor) -> Tensor:
        """Return flows (N, 2 (T-1), 2, H, W) for (N, T, 3, H, W): first those to the next frames,
        then those to the previous frames.
        """
        return torch.cat(self.generator.flows(degraded), dim=1)
