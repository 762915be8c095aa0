"""Loads checkpoints: turns a file of any known layout into a
:class:`~rbvsr_deploy.model.RealBasicVSR`, with strict names.

Accepted layouts, all found in the wild:
- ``.safetensors``, or a pickle (``.pth``, ``.pt``, ``.ckpt``, ``.bin``) read with
  ``weights_only=True``;
- bare, or wrapped in ``state_dict`` (mmediting 0.x, mmagic 1.x) or ``params_ema``/``params``
  (BasicSR);
- names with the prefix ``generator_ema.`` (the released weights), ``generator.`` or none, each
  possibly preceded by ``module.``;
- published BasicVSR: names without ``basicvsr.``, in the spelling of mmediting or of BasicSR.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rbvsr_deploy.checkpoint_file import (
    claims_too_much,
    read_checkpoint,
    short_name,
)
from rbvsr_deploy.errors import CheckpointError
from rbvsr_deploy.model import RealBasicVSR, RealBasicVSRConfig

__all__ = ["Checkpoint", "load_checkpoint"]

logger = logging.getLogger(__name__)

RELEASED_REFINE_THRESHOLD = 255.0
"""Threshold of the released configuration, 255 of 255: exactly one cleaning pass."""

_LARGEST_THRESHOLD = 10**6
_MOST_NAMED = 10
"""Number of problems that a message lists."""
_LONGEST_PROBLEM = 200  # characters

_PREFIXES = ("generator_ema.", "generator.")
# Parts of a training checkpoint that inference does not need.
_TRAINING_ONLY = (
    *_PREFIXES,
    "discriminator.",
    "perceptual_loss.",
    "data_preprocessor.",
    "step_counter",
    "optimizer",
)

# BasicSR's names of the published BasicVSR -> mmediting's, which this project uses.
_BASICSR_NAMES = (
    (re.compile(r"^(backward|forward)_trunk\.main\."), r"\1_resblocks.main."),
    (re.compile(r"^upconv([12])\."), r"upsample\1.upsample_conv."),
)
_BASICSR_FLOW_CONV = re.compile(
    r"^(spynet\.basic_module\.\d+\.basic_module\.)(\d+)\.(weight|bias)$"
)


@dataclass(frozen=True)
class Checkpoint:
    """Holds a loaded generator and its origin."""

    model: RealBasicVSR
    """Float32, in eval mode, on the CPU."""
    file_name: str
    sha256: str
    """SHA-256 of the whole file, as in published checksums."""
    layout: str
    """The wrapper and prefix the names were found under, in words."""
    refine_threshold: float
    """Dynamic refinement threshold on the 0-255 scale: from the file's metadata, else the released
    255.
    """
    license: str | None
    provenance: str | None


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a RealBasicVSR or BasicVSR checkpoint.

    Args:
        path: a file in one of the layouts listed at the top of this module.

    Raises:
        CheckpointError: missing or unreadable file, an unsafe pickle (the global is named), or
            names and shapes that are not a complete generator (every missing, unexpected and
            mis-shaped key is listed).
        MissingDependencyError: a ``.safetensors`` file without the ``safetensors`` package.
    """
    tensors, wrapper, metadata = read_checkpoint(path)
    tensors, naming = _published_names(tensors)
    model = _build(tensors, path)
    refine_threshold = _refine_threshold(metadata, path)
    layout = ", ".join(part for part in (wrapper, naming) if part) or "bare"
    logger.info("%s: %s (%s)", path.name, model.config, layout)
    return Checkpoint(
        model=model,
        file_name=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        layout=layout,
        refine_threshold=refine_threshold,
        license=metadata.get("license"),
        provenance=metadata.get("provenance"),
    )


def _refine_threshold(metadata: Mapping[str, str], path: Path) -> float:
    text = metadata.get("refine_threshold")
    if text is None:
        return RELEASED_REFINE_THRESHOLD
    try:
        threshold = float(text)
    except ValueError:
        threshold = math.nan
    if not 0 <= threshold <= _LARGEST_THRESHOLD:
        raise CheckpointError(
            f"'{path}' has '{text[:40]}' for refine_threshold in its metadata: expected a number "
            f"from 0 to {_LARGEST_THRESHOLD}"
        )
    return threshold + 0.0  # -0.0 is 0


# ------------------------------------------------------------------------------------------ naming


def _published_names(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Convert the generator's names to the published ones, and drop training-only tensors."""
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in tensors)), "")
    if prefix:
        tensors = {
            name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)
        }
    tensors = {name: v for name, v in tensors.items() if not name.startswith(_TRAINING_ONLY)}
    if any(name.startswith("basicvsr.") for name in tensors) or "fusion.weight" not in tensors:
        return tensors, prefix
    basicsr = "upconv1.weight" in tensors
    if basicsr:
        tensors = {_from_basicsr(name): value for name, value in tensors.items()}
    tensors = {f"basicvsr.{name}": value for name, value in tensors.items()}
    return tensors, ", ".join(
        p for p in (prefix, "BasicVSR of BasicSR" if basicsr else "BasicVSR of mmediting") if p
    )


def _from_basicsr(name: str) -> str:
    for pattern, replacement in _BASICSR_NAMES:
        name = pattern.sub(replacement, name)
    # BasicSR numbers activations too: the convolutions are 0, 2, 4, ...
    if flow := _BASICSR_FLOW_CONV.match(name):
        name = f"{flow[1]}{int(flow[2]) // 2}.conv.{flow[3]}"
    return name


# ---------------------------------------------------------------------------------------- building


def _build(tensors: dict[str, Tensor], path: Path) -> RealBasicVSR:
    """Return the model that the shapes describe, with the weights loaded."""
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    try:
        config = RealBasicVSRConfig.from_state_dict(shapes)
    except (KeyError, IndexError, ValueError) as error:
        missing = error.args[0] if isinstance(error, KeyError) else "the sizes of its layers"
        raise CheckpointError(
            f"'{path}' is not a RealBasicVSR or BasicVSR generator: it lacks {missing} (its "
            f"{len(shapes)} tensors begin "
            f"with {', '.join(map(short_name, sorted(shapes)[:3])) or 'nothing'})"
        ) from None
    expected = _expected_shapes(config, path)
    if sum(v.numel() * v.element_size() for v in tensors.values()) > path.stat().st_size:
        raise claims_too_much(path, "all its tensors together")
    problems = [f"missing {name}" for name in sorted(expected.keys() - shapes.keys())]
    problems += [f"unexpected {name}" for name in sorted(shapes.keys() - expected.keys())]
    problems += [
        f"{name} has shape {shapes[name]} where {expected[name]} is expected"
        for name in sorted(expected.keys() & shapes.keys())
        if shapes[name] != expected[name]
    ]
    problems += [
        f"{name} holds {str(value.dtype).removeprefix('torch.')}, not floating point"
        for name, value in sorted(tensors.items())
        if not value.is_floating_point()
    ]
    problems += [
        f"{name} holds values that are not finite"
        for name, value in sorted(tensors.items())
        if value.is_floating_point() and not torch.isfinite(value.float()).all()
    ]
    if problems:
        named = [problem[:_LONGEST_PROBLEM] for problem in problems[:_MOST_NAMED]]
        more = len(problems) - _MOST_NAMED
        raise CheckpointError(
            f"'{path}' does not match the network its sizes describe, {len(problems)} keys are "
            f"wrong: {'; '.join(named)}{f'; and {more} more' * (more > 0)}"
        )
    model = RealBasicVSR(config).eval().requires_grad_(False)
    model.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=True)
    return model


def _expected_shapes(config: RealBasicVSRConfig, path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network, without memory for its weights: a file of a few bytes can
    describe one of any size.
    """
    try:
        with torch.device("meta"):
            state = RealBasicVSR(config).state_dict()
    except (RuntimeError, ValueError, TypeError, ZeroDivisionError, OverflowError):
        raise CheckpointError(
            f"'{path}' describes a network that cannot exist: its sizes are {config}"
        ) from None
    return {name: tuple(value.shape) for name, value in state.items()}
