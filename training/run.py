"""A training run: the flow network first, on motion known exactly, then everything together.

Phase "flow": the flow network alone learns the true motion of degraded photographs under a
synthetic camera. Phase "joint": the whole network, Charbonnier loss on the output plus the cleaning
loss of RealBasicVSR (CVPR 2022), with exactly one cleaning pass; the result is an exponential
moving average of the weights.

The run folder holds a checkpoint, replaced atomically; the same command goes on from it, bit for
bit if there is no limit in minutes (with one, the learning rate follows the clock). Weights start
from noise: none are borrowed.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.files import write_atomically
from rbvsr_deploy.model import COMPACT, RealBasicVSR, RealBasicVSRConfig
from rbvsr_deploy.training.losses import flow_loss, joint_loss
from rbvsr_deploy.training.old_data import ClipSpec, TrainingSet, true_flow

__all__ = ["TrainingConfig", "train"]

_FLOW_LENGTH = 3
_FLOW_CROP_FACTOR = 4 / 3
_FLOW_MAX_SPEED = 8.0
_FLOW_TIME_SHARE = 0.12
"""With a wall-clock limit, the flow phase ends here at the latest."""
_WARMUP_STEPS = 100
_MAX_BAD_STEPS = 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingConfig:
    """What determines the result of a run; with ``minutes``, the machine's speed does too."""

    iterations: int = 100_000
    flow_iterations: int = 3_000
    batch: int = 4
    length: int = 6
    crop: int = 48
    learning_rate: float = 4e-4
    flow_learning_rate: float = 1e-3
    """Of the flow phase."""
    flow_factor: float = 0.25
    """In the joint phase the flow network learns at this part of the learning rate."""
    cleaning_weight: float = 1.0
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    seed: int = 0
    workers: int = 2
    """Threads that share the batch: on a shared CPU faster than parallel operators."""
    minutes: float | None = None
    """Wall-clock limit over all restarts; the schedules then end with it."""
    checkpoint_seconds: float = 180.0


@dataclass
class _State:
    """Where a run is, beside the weights."""

    phase: str = "flow"
    iteration: int = 0
    elapsed: float = 0.0
    """Seconds of training so far, over all restarts."""
    joint_started: float = 0.0
    bad_steps: int = 0
    log_bytes: int = 0


# -------------------------------------------------------------------------------------------- a run


class _Run:
    """One training run: weights, average, optimiser, data and files."""

    def __init__(
        self,
        config: TrainingConfig,
        *,
        data: TrainingSet,
        output: Path,
        network: RealBasicVSRConfig,
    ) -> None:
        self.config, self.data, self.output = config, data, output
        self.joint_spec = ClipSpec(length=config.length, crop=config.crop)
        flow_crop = int(config.crop * _FLOW_CROP_FACTOR) // 4 * 4
        self.flow_spec = ClipSpec(length=_FLOW_LENGTH, crop=flow_crop, max_speed=_FLOW_MAX_SPEED)
        data.check(self.joint_spec)
        if data.photos:
            TrainingSet(data.photos).check(self.flow_spec)
        if config.workers < 1 or config.batch % config.workers:
            raise ValueError(
                f"{config.workers} workers cannot share a batch of {config.batch} evenly"
            )
        self.pool = ThreadPoolExecutor(config.workers)
        torch.manual_seed(config.seed)
        self.model = RealBasicVSR(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.state = _State(phase="flow" if config.flow_iterations and data.photos else "joint")
        self.ema: dict[str, Tensor] = {}
        self.optimizer = self._start_phase()
        self.load()
        self.last_save = time.monotonic()

    def _start_phase(self) -> torch.optim.Optimizer:
        """Optimiser of the current phase; the average starts anew from the current weights."""
        self.ema = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        flow = list(self.model.basicvsr.spynet.parameters())
        if self.state.phase == "flow":
            groups = [{"params": flow, "factor": 1.0}]
        else:
            known = {id(p) for p in flow}
            rest = [p for p in self.model.parameters() if id(p) not in known]
            groups = [
                {"params": rest, "factor": 1.0},
                {"params": flow, "factor": self.config.flow_factor},
            ]
        return torch.optim.Adam(groups, lr=self.config.learning_rate, betas=(0.9, 0.99))

    # ------------------------------------------------------------------------------------- schedule

    def progress(self) -> float:
        """Part of the phase that is done, by iterations or by the clock, whichever is further."""
        state, config = self.state, self.config
        total = config.flow_iterations if state.phase == "flow" else config.iterations
        done = state.iteration / max(total, 1)
        if config.minutes is not None:
            limit = 60.0 * config.minutes * (_FLOW_TIME_SHARE if state.phase == "flow" else 1.0)
            available = max(limit - state.joint_started, 1e-9)
            done = max(done, (state.elapsed - state.joint_started) / available)
        return done

    def set_learning_rate(self) -> float:
        """Cosine decay to zero after a short linear start; returns the rate of the main group."""
        config, flow = self.config, self.state.phase == "flow"
        base = config.flow_learning_rate if flow else config.learning_rate
        decay = 0.5 * (1.0 + math.cos(math.pi * min(self.progress(), 1.0)))
        rate = base * decay * min(1.0, (self.state.iteration + 1) / _WARMUP_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        return rate

    # ---------------------------------------------------------------------------------------- steps

    def batch(self, phase: str, iteration: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one iteration; a pure function of its arguments."""
        flow = phase == "flow"
        spec = self.flow_spec if flow else self.joint_spec
        first = iteration * self.config.batch
        samples = [
            self.data.sample(first + i, spec=spec, stream=int(not flow), motion_only=flow)
            for i in range(self.config.batch)
        ]
        degraded = _to_tensor(np.stack([s.degraded for s in samples]))
        if not flow:
            return degraded, _to_tensor(np.stack([s.truth for s in samples]))
        flows = []
        for s in samples:
            assert s.path is not None  # motion_only
            pairs = [(0, 1), (1, 2), (1, 0), (2, 1)]
            flows.append(
                [true_flow(s.path, reference=r, neighbour=n, crop=spec.crop) for r, n in pairs]
            )
        return degraded, torch.from_numpy(np.array(flows))

    def loss(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Loss of the current phase, and the values to log."""
        if self.state.phase == "joint":
            return joint_loss(
                self.model, inputs, targets, cleaning_weight=self.config.cleaning_weight
            )
        flow = torch.cat(
            self.model.flows(inputs), dim=1
        )  # (N, 4, 2, S, S): to next, then to previous
        loss, error = flow_loss(flow.flatten(0, 1), targets.flatten(0, 1))
        return loss, {"flow_loss": loss.item(), "epe": error.item()}

    def gradients(
        self, parameters: list[nn.Parameter], inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Set the gradients of a batch; returns the mean loss and the mean of the values to log."""
        workers = self.config.workers

        def part(
            pair: tuple[Tensor, Tensor],
        ) -> tuple[Tensor, dict[str, float], tuple[Tensor, ...]]:
            loss, values = self.loss(*pair)
            return loss.detach(), values, torch.autograd.grad(loss, parameters)

        parts = list(
            self.pool.map(part, zip(inputs.chunk(workers), targets.chunk(workers), strict=True))
        )
        # Summed in the order of the parts, not in that of their arrival, so that a run can be
        # repeated.
        for i, parameter in enumerate(parameters):
            parameter.grad = torch.stack([grads[i] for _, _, grads in parts]).mean(dim=0)
        values = {k: sum(v[k] for _, v, _ in parts) / workers for k in parts[0][1]}
        return torch.stack([loss for loss, _, _ in parts]).mean(), values

    def step(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        """One update of the weights and of their average; a step that is not finite is left out."""
        rate = self.set_learning_rate()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        loss, values = self.gradients(parameters, inputs, targets)
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        if torch.isfinite(loss) and torch.isfinite(norm):
            self.optimizer.step()
            self._update_average()
            self.state.bad_steps = 0
        else:
            self.state.bad_steps += 1
            logger.warning("iteration %d is not finite; left out", self.state.iteration)
            if self.state.bad_steps >= _MAX_BAD_STEPS:
                raise RbvsrError(
                    f"training diverged: {_MAX_BAD_STEPS} iterations in a row were not finite; "
                    "lower --learning-rate"
                )
        return {**values, "loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate}

    @torch.no_grad()
    def _update_average(self) -> None:
        """Moving average of the weights; remembers less while it is young."""
        decay = min(
            self.config.ema_decay, (1.0 + self.state.iteration) / (10.0 + self.state.iteration)
        )
        for name, value in self.model.state_dict().items():
            self.ema[name].lerp_(value, 1.0 - decay)

    # ---------------------------------------------------------------------------------------- files

    def save(self) -> None:
        """Write checkpoint and average, each atomically."""
        self.last_save = time.monotonic()
        checkpoint = {
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "state": asdict(self.state),
            "config": asdict(self.config),
        }
        data = io.BytesIO()
        torch.save(checkpoint, data)
        write_atomically(self.output / "checkpoint.pt", data.getvalue())
        self.save_weights("ema-latest.safetensors")

    def save_weights(self, name: str) -> None:
        """Write the averaged weights under the names of ``model.py``."""
        weights = {k: v.contiguous() for k, v in self.ema.items()}
        write_atomically(self.output / name, safetensors_bytes(weights))

    def load(self) -> None:
        """Go on from the checkpoint of the run folder, if there is one."""
        path = self.output / "checkpoint.pt"
        if not path.exists():
            return
        checkpoint = torch.load(path, weights_only=True)
        ours, theirs = asdict(self.config), checkpoint["config"]
        differing = sorted(
            k for k in ours if ours[k] != theirs.get(k) and k != "checkpoint_seconds"
        )
        if differing:
            raise RbvsrError(
                f"{path} was made with other values of {', '.join(differing)}: "
                "repeat the same command, or choose another --output"
            )
        self.state = _State(**checkpoint["state"])
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer = self._start_phase()
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.ema = dict(checkpoint["ema"])
        # Lines written after the checkpoint describe iterations that are about to be repeated.
        log = self.output / "log.jsonl"
        if log.exists() and log.stat().st_size > self.state.log_bytes:
            os.truncate(log, self.state.log_bytes)
        logger.info("going on from %s iteration %d", self.state.phase, self.state.iteration)

    def log(self, values: dict[str, float]) -> None:
        """Append one JSON line."""
        head: dict[str, Any] = {"phase": self.state.phase, "iteration": self.state.iteration}
        line = json.dumps({**head, "elapsed": round(self.state.elapsed, 1), **values}) + "\n"
        with (self.output / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line)
        self.state.log_bytes = (self.output / "log.jsonl").stat().st_size

    # ----------------------------------------------------------------------------------------- loop

    def run_phase(self, on_step: Callable[[str, int], None] | None, *, log_every: int) -> None:
        """Iterate until the current phase is done; the next batch is prepared meanwhile."""
        state = self.state
        logged: list[dict[str, float]] = []
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(self.batch, state.phase, state.iteration)
            while self.progress() < 1.0:
                started = time.monotonic()
                inputs, targets = pending.result()
                waited = time.monotonic() - started
                pending = pool.submit(self.batch, state.phase, state.iteration + 1)
                values = {**self.step(inputs, targets), "waited": waited}
                state.iteration += 1
                state.elapsed += time.monotonic() - started
                logged.append(values)
                if state.iteration % log_every == 0:  # fewer values than that just after a restart
                    means = {k: sum(v[k] for v in logged) / len(logged) for k in values}
                    self.log({k: round(v, 6) for k, v in means.items()})
                    logged = []
                if time.monotonic() - self.last_save >= self.config.checkpoint_seconds:
                    self.save()
                if on_step is not None:
                    on_step(state.phase, state.iteration)

    def run(self, on_step: Callable[[str, int], None] | None, *, log_every: int) -> Path:
        """Everything from where the run is to its end."""
        if self.state.phase == "flow":
            self.run_phase(on_step, log_every=log_every)
            self.state = replace(
                self.state, phase="joint", iteration=0, joint_started=self.state.elapsed
            )
            self.optimizer = self._start_phase()
            self.save()
        self.run_phase(on_step, log_every=log_every)
        self.save()
        self.save_weights("model.safetensors")
        return self.output / "model.safetensors"


def _to_tensor(frames: np.ndarray[Any, Any]) -> Tensor:
    """(N, T, H, W, 3) uint8 -> (N, T, 3, H, W) float32, [0, 1]."""
    return torch.from_numpy(frames).permute(0, 1, 4, 2, 3).float().div(255.0).contiguous()


def train(
    config: TrainingConfig,
    *,
    data: TrainingSet,
    output: Path,
    network: RealBasicVSRConfig = COMPACT,
    on_step: Callable[[str, int], None] | None = None,
    log_every: int = 20,
) -> Path:
    """Train, or go on training, in a run folder.

    Args:
        output: run folder; gets ``checkpoint.pt``, ``log.jsonl``, ``ema-latest.safetensors`` and,
            at the end, ``model.safetensors``.
        network: sizes of the network.
        on_step: called after each iteration with the phase and the number of iterations done in it.
        log_every: iterations averaged in one line of the log.

    Returns:
        Path of the final weights.

    Raises:
        RbvsrError: the folder holds a different run, or training diverged.
    """
    output.mkdir(parents=True, exist_ok=True)
    return _Run(config, data=data, output=output, network=network).run(on_step, log_every=log_every)
