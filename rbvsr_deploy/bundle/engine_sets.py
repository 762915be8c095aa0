"""Compiled engines in a bundle: which machine a set of them is for, and for which sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rbvsr_deploy.graphs import SCALE, GraphSpec

__all__ = ["EngineSet", "Flavour", "ShapeProfile", "Shapes"]

Flavour = Literal["tensorrt", "tensorrt-rtx"]

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""The smallest, the usual and the largest shape of an input."""

_STEPS = ("backward", "forward")
_IN_BANDS = ("reconstruct", "emit")


@dataclass(frozen=True)
class ShapeProfile:
    """The sizes of frames, (H, W), and the batches that engines are compiled for: they take
    anything between the smallest and the largest, and are tuned for the usual.

    Raises:
        ValueError: the sizes are not in that order, or a number is not positive.
    """

    min_size: tuple[int, int] = (64, 64)
    opt_size: tuple[int, int] = (180, 320)
    max_size: tuple[int, int] = (720, 1280)
    batch: int = 4
    """The most frames per run of the graphs without recurrence, and the usual number."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"the batch must be 1 or more, got {self.batch}")
        for least, usual, most in zip(self.min_size, self.opt_size, self.max_size, strict=True):
            if not 1 <= least <= usual <= most:
                raise ValueError(
                    f"sizes must be 1 or more, and the smallest <= the usual <= the largest "
                    f"in both directions, got {self}"
                )

    def __str__(self) -> str:
        sizes = (f"{w}x{h}" for h, w in (self.min_size, self.opt_size, self.max_size))
        return f"{'_'.join(sizes)}-b{self.batch}"

    def covers(self, height: int, width: int, *, batch: int = 1) -> bool:
        """Whether frames of a size, so many at once, are within the profile."""
        within = (
            least <= size <= most
            for least, size, most in zip(self.min_size, (height, width), self.max_size, strict=True)
        )
        return all(within) and batch <= self.batch

    def shapes(self, spec: GraphSpec, *, channels: int) -> dict[str, Shapes]:
        """Shapes of a graph's inputs by their name.

        The recurrent steps take one frame at a time. ``reconstruct`` and ``emit`` also run on bands
        of a picture, which may be one row high.
        """
        found: dict[str, list[tuple[int, ...]]] = {item.name: [] for item in spec.inputs}
        for which, (height, width) in enumerate((self.min_size, self.opt_size, self.max_size)):
            rows = 1 if which == 0 and spec.name in _IN_BANDS else height
            batch = 1 if which == 0 or spec.name in _STEPS else self.batch
            sizes = {"N": batch, "C": channels, "H": rows, "W": width}
            sizes |= {"4H": SCALE * rows, "4W": SCALE * width}
            for item in spec.inputs:
                shape = (size if isinstance(size, int) else sizes[size] for size in item.shape)
                found[item.name].append(tuple(shape))
        return {name: (shapes[0], shapes[1], shapes[2]) for name, shapes in found.items()}


@dataclass(frozen=True)
class EngineSet:
    """One engine per graph, compiled by one TensorRT for one kind of GPU."""

    flavour: Flavour
    version: str
    """Of TensorRT, such as "10.3.0"."""
    compute_capability: str
    """Of the GPU, such as "8.9"."""
    platform: str
    """Operating system and processor, such as "linux-x86_64"."""
    profile: ShapeProfile
    version_compatible: bool = False
    """Whether later versions of the same TensorRT may run it."""
    hardware_compatible: bool = False
    """Whether any GPU from compute capability 8.0 on may run it."""
    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Per graph how many layers of each kind the parsed network has in each type, such as
    "CONVOLUTION float16".
    """
    signature: str = ""
    """Of the user who compiled it, in hexadecimal, as ``engines/tensorrt/signing.py`` makes it;
    empty: unsigned.
    """

    @property
    def name(self) -> str:
        """Of the set's folder in a bundle."""
        capability = self.compute_capability.replace(".", "")
        where = f"{self.platform}-sm{capability}"
        return f"{self.flavour}-{self.version}-{where}-{self.profile}"

    def as_dict(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EngineSet:
        """What :meth:`as_dict` gave, through JSON.

        Raises:
            TypeError, ValueError, KeyError: the values describe none.
        """
        profile = values["profile"]
        names = ("min_size", "opt_size", "max_size")
        smallest, usual, largest = ((int(h), int(w)) for h, w in (profile[name] for name in names))
        sizes = ShapeProfile(smallest, usual, largest, batch=int(profile["batch"]))
        return cls(**{**values, "profile": sizes})
