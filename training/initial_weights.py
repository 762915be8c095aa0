"""Loads the weights a run starts from: a checkpoint of an earlier stage, and SPyNet's weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from rbvsr_deploy.checkpoint_file import read_tensors
from rbvsr_deploy.errors import CheckpointError
from rbvsr_deploy.model import RealBasicVSR, RealBasicVSRConfig
from rbvsr_deploy.training.networks import Networks

__all__ = ["load_flow", "load_stage"]

# mmediting's spelling (basic_module.0.basic_module.1.conv.weight), alone or inside a checkpoint,
# and BasicSR's, which counts activations too (basic_module.0.basic_module.2.weight).
_FLOW_CONV = re.compile(
    r"^(.*\bspynet\.)?basic_module\.(\d+)\.basic_module\.(\d+)\.(conv\.)?(weight|bias)$"
)


def load_stage(path: Path, networks: Networks) -> None:
    """Load the weights of an earlier stage, in the layout of published training checkpoints.

    Generator and average come from ``generator.*`` and ``generator_ema.*``. If the file has only
    one of them, or a generator without a prefix, both come from that. The discriminator is loaded
    if the file has one.

    Raises:
        CheckpointError: the file cannot be read, or its networks have other sizes.
    """
    tensors = {name.removeprefix("module."): v for name, v in read_tensors(path).items()}
    generator, average, discriminator = (
        {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
        for prefix in ("generator.", "generator_ema.", "discriminator.")
    )
    generator = generator or average or tensors
    _load_generator(networks.generator, generator, path)
    _load_generator(networks.average, average or generator, path)
    if networks.discriminator is not None and discriminator:
        _load(networks.discriminator, discriminator, path, what="discriminator")


def _load_generator(network: RealBasicVSR, tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        sizes = RealBasicVSRConfig.from_state_dict({k: tuple(v.shape) for k, v in tensors.items()})
    except (KeyError, IndexError, ValueError):
        raise CheckpointError(
            f"'{path}' contains no RealBasicVSR generator: its tensors begin with "
            f"{', '.join(sorted(tensors)[:3])}"
        ) from None
    ours, theirs = dataclasses.asdict(network.config), dataclasses.asdict(sizes)
    if differing := [f"{k} {theirs[k]} instead of {ours[k]}" for k in ours if ours[k] != theirs[k]]:
        raise CheckpointError(
            f"the network in '{path}' differs in size from the recipe's ({', '.join(differing)}): "
            "use another checkpoint, or change the recipe's network"
        )
    _load(network, tensors, path, what="generator")


def load_flow(path: Path, network: RealBasicVSR) -> None:
    """Load the weights of SPyNet, from its own file or from a network that contains it.

    Raises:
        CheckpointError: the file cannot be read, or contains no SPyNet of the same size.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in read_tensors(path).items():
        if conv := _FLOW_CONV.match(name):
            prefix, level, number, mmediting, kind = conv.groups()
            index = int(number) if mmediting else int(number) // 2
            key = f"basic_module.{level}.basic_module.{index}.conv.{kind}"
            found.setdefault(prefix or "", {})[key] = value
    if not found:
        raise CheckpointError(
            f"'{path}' contains no SPyNet: expected names like "
            "basic_module.0.basic_module.0.conv.weight, alone or after 'spynet.'"
        )
    averaged = [prefix for prefix in found if prefix.startswith("generator_ema.")]
    tensors = found[averaged[0] if averaged else next(iter(found))]
    spynet = network.basicvsr.spynet
    normalisation = {"mean": spynet.mean, "std": spynet.std}
    _load(spynet, {**tensors, **normalisation}, path, what="flow network")


def _load(module: nn.Module, tensors: Mapping[str, Tensor], path: Path, *, what: str) -> None:
    """Load tensors strictly; report a mismatch in one sentence instead of torch's page."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    if wrong := sorted(
        k for k in expected.keys() | given.keys() if expected.get(k) != given.get(k)
    ):
        first = wrong[0]
        raise CheckpointError(
            f"the {what} in '{path}' differs in size from the recipe's: {first} has shape "
            f"{given.get(first, 'none')}, but {expected.get(first, 'none')} is expected, and "
            f"{len(wrong) - 1} more tensors differ"
        )
    module.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=True)
