"""Reads and writes checkpoints, from which a run resumes and which ``rbvsr-export`` accepts.

``state_dict`` has the names of published training checkpoints (``generator.*``,
``generator_ema.*``, ``discriminator.*``, ``step_counter``), and ``optimizer`` has their keys.
``run`` holds everything else that is needed to resume exactly.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.optim import Optimizer

from rbvsr_deploy.errors import CheckpointError, first_line
from rbvsr_deploy.files import write_atomically
from rbvsr_deploy.training.config import TrainingConfig
from rbvsr_deploy.training.networks import Networks
from rbvsr_deploy.training.run_folder import writes

__all__ = ["RunState", "read_checkpoint", "restore", "save_batches", "save_checkpoint"]

logger = logging.getLogger(__name__)

_FREE = (
    "workers",
    "checkpointing",
    "compile",
    "validation",
    "output",
    "data.cache",
    "distillation.folder",
)
"""Prefixes of recipe keys that do not affect the weights; they may change without a message."""

_CHANGEABLE = (
    "iterations",
    "images.iterations",
    "images.learning_rate",
    "flow.iterations",
    "distillation.clips",
    "batch",
    "accumulate",
    "precision",
    "optimizer.learning_rate",
    "optimizer.discriminator_learning_rate",
    "optimizer.schedule",
    "optimizer.warm_up",
    "optimizer.clip_norm",
)
"""Prefixes of recipe keys that may change when a run resumes, with a message. A change of any other
key would make the checkpoint disagree with the recipe.
"""


class RunState(msgspec.Struct):
    """The position of a run."""

    phase: str
    iteration: int = 0
    """Number of finished iterations in this phase."""
    clips: int = 0
    """Number of clips used in this phase by all processes together; the number of the next clip."""
    seconds: float = 0.0
    """Duration of the training over all restarts."""
    log_bytes: int = 0
    """Size of the log; later lines describe iterations that are repeated after a restart."""


def save_checkpoint(
    path: Path,
    *,
    state: RunState,
    config: TrainingConfig,
    networks: Networks,
    optimizers: Mapping[str, Optimizer],
    scaler: Mapping[str, Any],
) -> None:
    """Write or replace a checkpoint; the old one survives an interruption.

    Args:
        path: file to write.
        state: position of the run.
        config: recipe of the run.
        networks: networks to save.
        optimizers: optimisers by name.
        scaler: state of the gradient scaler for float16; empty for other precisions.

    Raises:
        RbvsrError: the file cannot be written.
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
    _write(path, checkpoint)


def save_batches(
    path: Path, batches: Sequence[Mapping[str, Tensor]], *, networks: Networks
) -> None:
    """Write batches of clips together with the networks that they were used with.

    Args:
        path: file to write.
        batches: batches of the training loop.
        networks: networks to save.

    Raises:
        RbvsrError: the file cannot be written.
    """
    states = {prefix: network.state_dict() for prefix, network in networks.published().items()}
    _write(path, {"batches": list(batches), **states})


def _write(path: Path, content: object) -> None:
    data = io.BytesIO()
    torch.save(content, data)
    with writes(path):
        write_atomically(path, data.getvalue())


def read_checkpoint(path: Path, config: TrainingConfig) -> dict[str, Any]:
    """Read the checkpoint of a run to resume.

    Raises:
        CheckpointError: the file is damaged, not a checkpoint of a run, or of a run with another
            recipe; the message names the keys that differ, with their values.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        theirs = checkpoint["run"]["config"]
    except Exception as error:  # torch can raise any exception for foreign data
        raise CheckpointError(
            f"'{path}' is damaged or not a checkpoint of a run ({first_line(error)}): remove it, "
            "or choose another output folder"
        ) from None
    ours = msgspec.to_builtins(config)
    changes = {
        key: f"{key} = {_shown(old)}, not {_shown(new)}"
        for key, old, new in sorted(_differing(theirs, ours))
        if not key.startswith(_FREE)
    }
    if refused := [text for key, text in changes.items() if not key.startswith(_CHANGEABLE)]:
        raise CheckpointError(
            f"'{path}' belongs to a run with {', and '.join(refused)}: repeat the same command to "
            "resume it, or choose another output folder"
        )
    if changes:
        logger.warning("the run so far had %s", ", and ".join(changes.values()))
    return dict(checkpoint)


def _differing(old: object, new: object, path: str = "") -> Iterator[tuple[str, object, object]]:
    """Yield the keys that differ or that only one side has, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from _differing(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    elif _shown(old) != _shown(new):
        yield path, old, new


def _shown(value: object) -> str:
    """Format a value of a recipe in one line."""
    return json.dumps(value, ensure_ascii=False)


def restore(
    checkpoint: Mapping[str, Any],
    *,
    networks: Networks,
    optimizers: Mapping[str, Optimizer],
) -> None:
    """Restore the weights, optimisers and random numbers of a run with the same recipe."""
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
