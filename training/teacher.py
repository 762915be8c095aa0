"""Loads the teacher of a distillation: Real-ESRGAN's compact network, from ncnn weights.

Wang et al., *Real-ESRGAN*, ICCV workshops 2021: ``realesr-general-x4v3`` and its twin ``-wdn``, 34
convolutions in sequence. The weights come from a file that the user names, and are used only in
training; the student learns from the teacher's output alone.
"""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rbvsr_deploy.errors import CheckpointError

__all__ = ["Teacher", "load_teacher"]

_CHANNELS = 64
_HIDDEN = 32
"""Number of convolutions between the first and the last one."""
_SCALE = 4
_HALF_PRECISION = struct.pack("<I", 0x01306B47)
"""Marker that ncnn writes before float16 weights."""


class Teacher(nn.Module):
    """Upscales single frames x4; its weights are frozen."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *[_CHANNELS] * (_HIDDEN + 1)]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.PReLU(outputs)]
        layers.append(nn.Conv2d(_CHANNELS, 3 * _SCALE**2, 3, 1, 1))
        self.body = nn.Sequential(*layers)
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, frames: Tensor) -> Tensor:
        """Upscale a batch of frames.

        Args:
            frames: (N, 3, H, W), RGB, [0, 1].

        Returns:
            (N, 3, 4H, 4W), not clamped.
        """
        enlarged = F.interpolate(frames, scale_factor=_SCALE, mode="nearest")
        return F.pixel_shuffle(self.body(frames), _SCALE) + enlarged

    def upscale(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Upscale 8-bit images: (N, H, W, 3) RGB -> (N, 4H, 4W, 3).

        They are upscaled one at a time, so that no result depends on the other images.
        """
        upscaled = []
        with torch.inference_mode():
            for image in images:
                # Permuted from (1, H, W, 3): the memory format in which convolutions are fastest.
                frame = torch.from_numpy(image)[None].permute(0, 3, 1, 2).float().div(255.0)
                levels = self(frame)[0].clamp(0.0, 1.0).mul(255.0).round()
                upscaled.append(levels.to(torch.uint8).permute(1, 2, 0).numpy())
        return np.stack(upscaled)


def load_teacher(weights: Path, *, other: Path | None = None, share: float = 1.0) -> Teacher:
    """Load a teacher, or mix two of the same kind, parameter by parameter.

    Args:
        weights: ncnn ``.bin`` file of the network.
        other: file of a second network, for instance the twin that denoises less.
        share: share of the first network in the mixture, 0 to 1.

    Raises:
        CheckpointError: a file cannot be read or contains another network.
    """
    teacher = Teacher()
    tensors = _read(weights, teacher)
    if other is not None:
        theirs = _read(other, teacher)
        tensors = {name: torch.lerp(theirs[name], value, share) for name, value in tensors.items()}
    teacher.load_state_dict(tensors)
    return teacher


def _read(path: Path, teacher: Teacher) -> dict[str, Tensor]:
    """Read the parameters in the order of the file: float16 weights and float32 bias of each
    convolution, float32 slopes of each PReLU.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"the teacher's weights '{path}' cannot be read: {error.strerror or error}"
        ) from None
    tensors, position = {}, 0
    for name, parameter in teacher.state_dict().items():
        kind = "<f4"
        if parameter.dim() == 4:
            if content[position : position + 4] != _HALF_PRECISION:
                raise CheckpointError(_misfit(path, f"no float16 weights at byte {position}"))
            position, kind = position + 4, "<f2"
        count = parameter.numel()
        size = count * np.dtype(kind).itemsize
        if position + size > len(content):
            raise CheckpointError(_misfit(path, f"{len(content)} bytes end within {name}"))
        values = np.frombuffer(content, kind, count, position).astype(np.float32)
        if not np.isfinite(values).all():
            raise CheckpointError(_misfit(path, f"{name} is not finite"))
        tensors[name] = torch.from_numpy(values).view(parameter.shape)
        position += (size + 3) // 4 * 4
    if position != len(content):
        raise CheckpointError(_misfit(path, f"{len(content)} bytes instead of {position}"))
    return tensors


def _misfit(path: Path, what: str) -> str:
    return (
        f"'{path}' does not contain the network of the teacher ({what}): use the ncnn .bin file of "
        "realesr-general-x4v3 or realesr-general-wdn-x4v3"
    )
