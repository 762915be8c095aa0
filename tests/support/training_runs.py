"""Runs training for a few iterations and reads the run folder."""

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
"""Training on the CPU, where results are reproducible bit for bit."""

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
"""Changes to ``tiny-stage1``: both phases, with a discriminator."""


def changed(config: TrainingConfig, *changes: str) -> TrainingConfig:
    """Return a config with changes applied like those of --set."""
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
    """Return the log entries without their timings."""
    read = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "waited")} for line in read]


def tensors(value: object, name: str = "") -> dict[str, Tensor]:
    """Return every tensor in nested dictionaries and lists by its path."""
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
    """Return networks, optimisers and random state of the latest checkpoint."""
    return tensors(torch.load(folder / "latest.pth", weights_only=True))


def state_of(folder: Path) -> tuple[str, int]:
    """Return phase and iteration of the latest checkpoint."""
    state = torch.load(folder / "latest.pth", weights_only=True)["run"]["state"]
    return state["phase"], state["iteration"]
