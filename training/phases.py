"""Trains the flow network alone, or the whole network with or without a discriminator.

A phase owns its optimisers and performs one iteration on given clips.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.training.clips import ClipDataset, FlowDataset, flow_training_set, to_frames
from rbvsr_deploy.training.config import TrainingConfig
from rbvsr_deploy.training.data.training_set import TrainingSet
from rbvsr_deploy.training.evaluation.metrics.alexnet import AlexNetDistance
from rbvsr_deploy.training.losses import (
    adversarial_loss,
    charbonnier,
    cleaning_target,
    flow_loss,
    gradient_loss,
    grid_loss,
    in_colours_of,
    l1,
    steadiness_loss,
)
from rbvsr_deploy.training.networks import FlowPass, Networks, NotFiniteError, RestorationPass
from rbvsr_deploy.training.perceptual import PerceptualLoss
from rbvsr_deploy.training.taught import TaughtClips, TaughtImages

__all__ = ["FlowPhase", "ImagePhase", "Phase", "RestorationPhase"]

Batch = dict[str, Tensor]


class Phase(ABC):
    """A phase of training, with one kind of iteration.

    Args:
        fabric: launched; knows the device, the precision and the other processes.
        config: recipe of the run.
        networks: networks on that device.
    """

    name: str
    batch: int
    """Clips per process and backward pass."""
    iterations: int

    def __init__(self, fabric: Fabric, config: TrainingConfig, networks: Networks) -> None:
        self.fabric, self.config, self.networks = fabric, config, networks
        self.optimizers: dict[str, Optimizer] = {}
        self.rates: dict[str, float] = {}

    @staticmethod
    @abstractmethod
    def dataset(config: TrainingConfig) -> ClipDataset:
        """Return the clips of this phase.

        Raises:
            MediaError: a source is missing or empty.
        """

    def strip(self) -> Tensor | None:
        """Return images of the last iteration side by side, (3, H, W) in [0, 1], if any."""
        return None

    @abstractmethod
    def step(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Perform one iteration and return the values to log.

        Raises:
            NotFiniteError: a loss or gradient of any process is infinite or NaN.
        """

    @abstractmethod
    def learning_rate_factor(self, iteration: int) -> float:
        """Return the factor of the configured learning rates."""

    def set_learning_rates(self, iteration: int) -> None:
        """Set the learning rates of the next iteration."""
        factor = self.learning_rate_factor(iteration)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[name] * group["factor"] * factor

    def _adam(self, name: str, groups: Any, rate: float) -> Adam:
        self.rates[name] = rate
        optimizer = Adam(groups, lr=rate, betas=self.config.optimizer.betas)
        self.optimizers[name] = optimizer
        return optimizer

    def _warm_up(self, iteration: int) -> float:
        return min(1.0, (iteration + 1) / max(1, self.config.optimizer.warm_up))

    def _unless(self, last: bool, module: Any) -> AbstractContextManager[None]:
        """Wrap a forward and backward pass so that gradients are averaged over the processes only
        in the last of several passes.
        """
        return self.fabric.no_backward_sync(module, enabled=not last)

    def _update(self, module: nn.Module, optimizer: Optimizer, loss: Tensor) -> Tensor:
        """Perform a step of an optimiser with the current gradients, and return their norm."""
        limit = self.config.optimizer.clip_norm or math.inf
        norm = self.fabric.clip_gradients(
            module, optimizer, max_norm=limit, error_if_nonfinite=False
        )
        assert norm is not None  # max_norm is given
        finite = torch.isfinite(loss)
        if self.config.precision != "float16":  # its scaler expects such steps and skips them
            finite &= torch.isfinite(norm)
        wrong = self.fabric.all_reduce((~finite).float(), reduce_op="sum")
        if isinstance(wrong, Tensor) and wrong > 0:
            raise NotFiniteError
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm


class FlowPhase(Phase):
    """Trains the flow network alone on the true motion of photographs filmed synthetically."""

    name = "flow"

    def __init__(self, fabric: Fabric, config: TrainingConfig, networks: Networks) -> None:
        super().__init__(fabric, config, networks)
        self.batch, self.iterations = config.flow.batch, config.flow.iterations
        networks.generator.requires_grad_(False)
        flow = networks.generator.basicvsr.spynet
        flow.requires_grad_(True)
        groups = [{"params": list(flow.parameters()), "factor": 1.0}]
        adam = self._adam("generator", groups, config.flow.learning_rate)
        self.module, self.optimizer = fabric.setup(FlowPass(networks.generator), adam)

    @staticmethod
    def dataset(config: TrainingConfig) -> ClipDataset:
        return FlowDataset(flow_training_set(config))

    def learning_rate_factor(self, iteration: int) -> float:
        return self._warm_up(iteration) * _cosine(iteration / self.iterations)

    def step(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        device, parts = self.fabric.device, len(batches)
        losses, errors = [], []
        for i, batch in enumerate(batches):
            truth, known = (batch[k].to(device).flatten(0, 1) for k in ("flow", "known"))
            with self._unless(i == parts - 1, self.module):
                flow = self.module(to_frames(batch["degraded"], device)).flatten(0, 1)
                loss, error = flow_loss(flow, truth, known)
                self.fabric.backward(loss / parts)
            losses.append(loss.detach())
            errors.append(error)
        loss = torch.stack(losses).mean()
        norm = self._update(self.module, self.optimizer, loss)
        return {"loss": loss, "end_point_error": torch.stack(errors).mean(), "norm": norm}


class RestorationPhase(Phase):
    """Trains the whole network, with output and cleaning loss (published first stage), and with
    perceptual and adversarial loss (second stage).

    Args:
        fabric, config, networks: as for :class:`Phase`.
        perceptual, lpips: required if their loss has a weight.
    """

    name = "restoration"

    def __init__(
        self,
        fabric: Fabric,
        config: TrainingConfig,
        networks: Networks,
        *,
        perceptual: PerceptualLoss | None,
        lpips: AlexNetDistance | None,
    ) -> None:
        super().__init__(fabric, config, networks)
        self.perceptual = perceptual and perceptual.to(fabric.device)
        self.lpips = lpips and lpips.to(fabric.device)
        self._shown: list[Tensor] = []
        self.batch, self.iterations, rate = self._size()
        factor = self._flow_factor()
        networks.generator.requires_grad_(True)
        flow = networks.generator.basicvsr.spynet
        flow.requires_grad_(factor > 0.0)
        of_flow = {id(p) for p in flow.parameters()}
        rest = [p for p in networks.generator.parameters() if id(p) not in of_flow]
        groups = [{"params": rest, "factor": 1.0}]
        if factor > 0.0:
            groups.append({"params": list(flow.parameters()), "factor": factor})
        adam = self._adam("generator", groups, rate)
        self.module, self.optimizer = fabric.setup(RestorationPass(networks.generator), adam)

        self.pixel_loss = {"l1": l1, "charbonnier": charbonnier}[config.losses.pixel]
        if networks.discriminator is not None:
            parameters = [{"params": list(networks.discriminator.parameters()), "factor": 1.0}]
            adam = self._adam(
                "discriminator", parameters, config.optimizer.discriminator_learning_rate
            )
            self.judge, self.judge_optimizer = fabric.setup(networks.discriminator, adam)

    @staticmethod
    def dataset(config: TrainingConfig) -> ClipDataset:
        if config.distillation.share:
            return TaughtClips(config)
        return ClipDataset(TrainingSet(config.data, config.degradation, seed=config.seed))

    def _size(self) -> tuple[int, int, float]:
        """Return clips per process and backward pass, iterations, and learning rate."""
        config = self.config
        return config.batch, config.iterations, config.optimizer.learning_rate

    def _flow_factor(self) -> float:
        """Return the learning rate of the flow network as a fraction of the others' rate."""
        return self.config.flow.factor

    def learning_rate_factor(self, iteration: int) -> float:
        decay = 1.0
        if self.config.optimizer.schedule == "cosine":
            decay = _cosine(iteration / self.iterations)
        return self._warm_up(iteration) * decay

    def step(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        # The discriminator is constant while the generator learns, and vice versa; both see the
        # same images, as published.
        parts, outputs, logged = len(batches), [], []
        with _constant(self.networks.discriminator):
            for i, batch in enumerate(batches):
                with self._unless(i == parts - 1, self.module):
                    loss, values, output = self._generator_loss(batch)
                    self.fabric.backward(loss / parts)
                outputs.append(output)
                logged.append({"loss": loss.detach(), **values})
        means = {k: torch.stack([values[k] for values in logged]).mean() for k in logged[0]}
        means["norm"] = self._update(self.module, self.optimizer, means["loss"])
        if self.networks.discriminator is not None:
            means |= self._discriminator_step(batches, outputs)
        return means

    def strip(self) -> Tensor | None:
        """Return the middle frame of a clip: degraded, cleaned, output and target."""
        return side_by_side(self._shown) if self._shown else None

    def _generator_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Compute the loss, its parts, and the output (N*T, 3, 4H, 4W) without gradient."""
        weights, device = self.config.losses, self.fabric.device
        degraded, truth, sharpened = (
            to_frames(batch[k], device) for k in ("degraded", "truth", "sharpened")
        )
        wanted = sharpened
        if "taught" in batch:
            taught = in_colours_of(degraded, to_frames(batch["taught"], device))
            sharpened = in_colours_of(degraded, sharpened)
            wanted = sharpened.lerp(taught, self.config.distillation.share)
        cleaned, output = self.module(degraded)
        losses = {"pixel": weights.pixel_weight * self.pixel_loss(output, wanted)}
        if weights.gradient_weight:
            losses["gradient"] = weights.gradient_weight * gradient_loss(output, wanted)
        if weights.grid_weight:
            losses["grid"] = weights.grid_weight * grid_loss(output, wanted)
        if weights.cleaning_weight:
            target = cleaning_target(sharpened)
            losses["cleaning"] = weights.cleaning_weight * self.pixel_loss(cleaned, target)
        if weights.steadiness_weight and "flow" in batch:
            flow, known = (batch[k].to(device) for k in ("flow", "known"))
            change = steadiness_loss(output, wanted, flow, known)
            losses["steadiness"] = weights.steadiness_weight * change
        images = output.flatten(0, 1)
        with self.fabric.autocast():
            if self.perceptual is not None:
                distance = self.perceptual(images, wanted.flatten(0, 1))
                losses["perceptual"] = weights.perceptual_weight * distance
            if self.lpips is not None:
                # AlexNet strides by four, as the head's pixel shuffle does. A random offset lets
                # the distance see a pattern that repeats every four pixels.
                top, left = torch.randint(SCALE, (2,)).tolist()
                part = (
                    slice(None, None, weights.lpips_every),
                    ...,
                    slice(top, None),
                    slice(left, None),
                )
                distance = self.lpips(images[part], truth.flatten(0, 1)[part]).mean()
                losses["lpips"] = weights.lpips_weight * distance
            if self.networks.discriminator is not None:
                logits = self.networks.discriminator(images)
                losses["gan"] = weights.gan_weight * adversarial_loss(logits.float(), real=True)
        middle = output.shape[1] // 2
        self._shown = [x[0, middle].detach().clone() for x in (degraded, cleaned, output, wanted)]
        error = ((output.detach() - wanted) ** 2).mean(dim=(1, 2, 3, 4)).clamp(min=1e-10)
        values = {name: loss.detach() for name, loss in losses.items()}
        values["psnr"] = (-10.0 * error.log10()).mean()
        return torch.stack(list(losses.values())).sum(), values, images.detach()

    def _discriminator_step(
        self, batches: Sequence[Batch], outputs: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Train the discriminator. Its real images are not sharpened, so that the generator is not
        judged by its sharpness.
        """
        parts, losses = len(batches), []
        for i, (batch, output) in enumerate(zip(batches, outputs, strict=True)):
            truth = to_frames(batch["truth"], self.fabric.device).flatten(0, 1)
            sides = []
            for images, is_real in ((truth, True), (output, False)):
                with self._unless(i == parts - 1 and not is_real, self.judge):
                    side = adversarial_loss(self.judge(images).float(), real=is_real)
                    self.fabric.backward(side / parts)
                sides.append(side.detach())
            losses.append(sides[0] + sides[1])
        loss = torch.stack(losses).mean()
        norm = self._update(self.judge, self.judge_optimizer, loss)
        return {"discriminator": loss, "discriminator_norm": norm}


class ImagePhase(RestorationPhase):
    """Trains the network on single images, without flow and with zero states, before clips."""

    name = "images"

    @staticmethod
    def dataset(config: TrainingConfig) -> ClipDataset:
        return TaughtImages(config)

    def _size(self) -> tuple[int, int, float]:
        images = self.config.images
        return images.batch, images.iterations, images.learning_rate

    def _flow_factor(self) -> float:
        return 0.0


def side_by_side(images: Sequence[Tensor]) -> Tensor:
    """Place images (3, h, w) side by side, enlarging smaller ones without smoothing."""
    size = max((image.shape[-2:] for image in images), key=lambda size: size[0])
    return torch.cat([F.interpolate(i[None], size, mode="nearest")[0] for i in images], dim=-1)


def _cosine(part: float) -> float:
    """Fall from 1 at the beginning to 0 at the end, along a cosine."""
    return 0.5 * (1.0 + math.cos(math.pi * min(part, 1.0)))


@contextlib.contextmanager
def _constant(network: nn.Module | None) -> Iterator[None]:
    """Let gradients flow through the network, but not to its weights."""
    if network is not None:
        network.requires_grad_(False)
    try:
        yield
    finally:
        if network is not None:
            network.requires_grad_(True)
