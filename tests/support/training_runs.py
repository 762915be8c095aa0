"""Provides recipes of a few iterations, and reads the files in a run folder."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from rbvsr_deploy.training import run
from rbvsr_deploy.training.config import TrainingConfig

train = functools.partial(run.train, device="cpu")
"""Training on the CPU, where results are bit-identical."""

SMALL = (
    "iterations=4",
    "workers=0",
    "data.length=4",
    "data.crop=16",
    "flow.iterations=3",
    "flow.batch=2",
    "losses.gan_weight=0.05",
    "discriminator_channels=4",
    "output.checkpoint_every=1",
    "output.keep_every=2",
    "output.log_every=1",
    "output.pictures_every=2",
)
"""Changes of ``tiny-stage1``: both phases, with a discriminator."""


def changed(config: TrainingConfig, *changes: str) -> TrainingConfig:
    """Apply changes to a recipe like ``--set``."""
    values = msgspec.to_builtins(config)
    for change in changes:
        keys, _, value = change.partition("=")
        *sections, key = keys.split(".")
        table = values
        for section in sections:
            table = table[section]
        table[key] = json.loads(value)
    return msgspec.convert(values, TrainingConfig)


def lines(folder: Path) -> list[dict[str, Any]]:
    """Read the log, without the values that depend on timing."""
    read = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "waited")} for line in read]


def tensors(value: object, name: str = "") -> dict[str, Tensor]:
    """Collect all tensors in nested dictionaries and lists, by their path."""
    if isinstance(value, Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[arg-type]
    return {
        place: tensor
        for key, inner in items
        if isinstance(inner, Tensor | dict | list)
        for place, tensor in tensors(inner, f"{name}/{key}").items()
    }


def saved(folder: Path) -> dict[str, Tensor]:
    """Read the networks, optimisers and random state of the latest checkpoint."""
    return tensors(torch.load(folder / "latest.pth", weights_only=True))


def state_of(folder: Path) -> tuple[str, int]:
    """Read the phase and iteration of the latest checkpoint."""
    state = torch.load(folder / "latest.pth", weights_only=True)["run"]["state"]
    return state["phase"], state["iteration"]
