"""A run's checkpoint: one file that continues the run and that ``rbvsr-export`` takes.

``state_dict`` has the names of published training checkpoints (``generator.*``,
``generator_ema.*``, ``discriminator.*``, ``step_counter``), ``optimizer`` their keys; ``run`` is
what else is needed to go on exactly.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.optim import Optimizer

from rbvsr_deploy.errors import CheckpointError, first_line
from rbvsr_deploy.files import write_atomically
from rbvsr_deploy.training.config import TrainingConfig
from rbvsr_deploy.training.networks import Networks

__all__ = ["RunState", "read_checkpoint", "restore", "save_checkpoint"]

logger = logging.getLogger(__name__)

_MAY_DIFFER = (
    "iterations",
    "batch",
    "accumulate",
    "workers",
    "precision",
    "checkpointing",
    "compile",
    "optimizer",
    "validation",
    "output",
    "data.cache",
)
"""Keys of a recipe (or how they begin) that a run may be continued with other values of."""


class RunState(msgspec.Struct):
    """Where a run is."""

    phase: str
    iteration: int = 0
    """Done in this phase."""
    clips: int = 0
    """Seen in this phase by all processes together: the number of the next one."""
    seconds: float = 0.0
    """Of training, over all restarts."""
    log_bytes: int = 0
    """Length of the log; lines beyond describe iterations that are repeated."""


def save_checkpoint(
    path: Path,
    *,
    state: RunState,
    config: TrainingConfig,
    networks: Networks,
    optimizers: Mapping[str, Optimizer],
    scaler: Mapping[str, Any],
) -> None:
    """Write or replace a checkpoint; an interruption leaves the old one.

    Args:
        scaler: of float16's gradients; empty for other precisions.

    Raises:
        OSError: it cannot be written.
    """
    tensors = {
        f"{prefix}.{name}": value
        for prefix, network in networks.published().items()
        for name, value in network.state_dict().items()
    }
    checkpoint = {
        "state_dict": {**tensors, "step_counter": torch.tensor([float(state.iteration)])},
        "optimizer": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        "run": {
            "state": msgspec.to_builtins(state),
            "config": msgspec.to_builtins(config),
            "scaler": dict(scaler),
            "random": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        },
    }
    data = io.BytesIO()
    torch.save(checkpoint, data)
    write_atomically(path, data.getvalue())


def read_checkpoint(path: Path, config: TrainingConfig) -> dict[str, Any]:
    """A checkpoint of the run that goes on.

    Raises:
        CheckpointError: it is damaged, no checkpoint of a run, or of a run with another recipe; the
            keys that differ are named.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        theirs = checkpoint["run"]["config"]
    except Exception as error:  # torch raises nearly anything on foreign bytes
        raise CheckpointError(
            f"'{path}' is no checkpoint that a run can go on from, or a damaged one "
            f"({first_line(error)}): remove it, or choose another output folder"
        ) from None
    ours = msgspec.to_builtins(config)
    differing = sorted(_differing(ours, theirs))
    if refused := [key for key in differing if not key.startswith(_MAY_DIFFER)]:
        raise CheckpointError(
            f"'{path}' belongs to a run with other values of {', '.join(refused)}: repeat the "
            "same command to go on, or choose another output folder"
        )
    if differing:
        logger.warning("the run goes on with other values of %s", ", ".join(differing))
    return dict(checkpoint)


def _differing(ours: object, theirs: object, path: str = "") -> Iterator[str]:
    """Keys with other values, or in one of the two only."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in ours.keys() | theirs.keys():
            yield from _differing(ours.get(key), theirs.get(key), f"{path}.{key}".lstrip("."))
    elif _plain(ours) != _plain(theirs):
        yield path


def _plain(value: object) -> object:
    """Tuples as lists."""
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def restore(
    checkpoint: Mapping[str, Any],
    *,
    networks: Networks,
    optimizers: Mapping[str, Optimizer],
) -> None:
    """Weights, optimisers and random numbers of a run of the same recipe."""
    tensors = checkpoint["state_dict"]
    for prefix, network in networks.published().items():
        start = f"{prefix}."
        inside = {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
        network.load_state_dict(inside, strict=True)
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(checkpoint["optimizer"][name])
    random = checkpoint["run"]["random"]
    torch.set_rng_state(random["cpu"])
    if torch.cuda.is_available() and len(random["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(random["cuda"])
