"""Weights of a teacher, random, in ncnn's layout."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Layers = list[tuple[Array, Array, Array | None]]
"""Weight, bias and slopes of every convolution."""


def make_layers(seed: int) -> Layers:
    """34 convolutions under which every layer matters and the output stays near [0, 1]."""
    rng = np.random.default_rng(seed)
    layers: Layers = []
    for i in range(34):
        inputs, outputs = 3 if i == 0 else 64, 48 if i == 33 else 64
        scale = (1.0 if i == 33 else 1.37) / np.sqrt(9 * inputs)
        weight = rng.normal(0, scale, (outputs, inputs, 3, 3)).astype(np.float16)
        bias = rng.normal(0, 0.02, outputs).astype(np.float32)
        slopes = rng.uniform(0.1, 0.4, outputs).astype(np.float32)
        layers.append((weight.astype(np.float32), bias, slopes if i < 33 else None))
    return layers


def write_ncnn(path: Path, layers: Layers) -> None:
    """As the file's description has it: mark, float16 weights padded to 4 bytes, float32 bias, and
    float32 slopes.
    """
    with path.open("wb") as file:
        for weight, bias, slopes in layers:
            data = weight.astype("<f2").tobytes()
            file.write(struct.pack("<I", 0x01306B47) + data + b"\0" * (-len(data) % 4))
            file.write(bias.astype("<f4").tobytes())
            if slopes is not None:
                file.write(slopes.astype("<f4").tobytes())
