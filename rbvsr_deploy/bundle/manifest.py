"""Defines the manifest of a bundle and the schema that validates it.

A manifest may come from anyone, so it is checked before use: every field has a type, every number
has bounds, and the length of texts and of the whole is limited. Unknown fields are refused, except
in the records of measurements, on which nothing depends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from rbvsr_deploy.bundle.engine_sets import EngineSet
from rbvsr_deploy.errors import first_line
from rbvsr_deploy.graphs import GRAPHS, PRECISIONS, Precision, graph_names, head_channels

__all__ = [
    "SCHEMA_VERSION",
    "Manifest",
    "ManifestError",
    "Weights",
    "graph_io",
    "read_manifest",
]

SCHEMA_VERSION = 1

_LARGEST = 4 * 2**20  # bytes; the manifest of the published network in int8 has 30,000
_DEEPEST = 16  # levels of nested lists and objects
_LONGEST = 10_000  # characters of one text
_HIGHEST = 2.0**53  # absolute value of a number


class ManifestError(ValueError):
    """The manifest is invalid or of another version; the message is a clause that says why."""


@dataclass(frozen=True)
class Weights:
    """Records the origin of the weights."""

    file_name: str
    sha256: str
    """SHA-256 of the checkpoint file, comparable with published checksums."""
    license: str | None = None
    provenance: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Describes the network in a bundle; ``rbvsr-info`` shows it."""

    model: Mapping[str, Any]
    """``RealBasicVSRConfig.as_dict()``."""
    weights: Weights
    precision: Precision
    opset: int
    refine_threshold: float
    """Default threshold of dynamic refinement, on the 0-255 scale."""
    graphs: Mapping[str, Any]
    """Inputs and outputs of each graph with name, dtype and shape."""
    verification: Mapping[str, Any]
    """Largest difference from the torch model per graph, output and size, measured by the export.
    """
    toolkit_version: str
    scale: int = 4
    quantisation: Mapping[str, Any] | None = None
    """Calibration record of an INT8 bundle; ``None`` for floating point."""
    engine_sets: tuple[EngineSet, ...] = ()
    """Sets of compiled engines in the bundle."""
    schema_version: int = SCHEMA_VERSION
    members: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of every other member; filled in by :func:`write_bundle`."""

    @property
    def has_cleaning(self) -> bool:
        """Return whether there is a ``clean`` graph, as in RealBasicVSR but not in BasicVSR."""
        return self.model["cleaning_blocks"] is not None

    @property
    def channels(self) -> int:
        """Channels of the recurrent state."""
        return int(self.model["mid_channels"])

    @property
    def head_channels(self) -> int:
        """See :func:`rbvsr_deploy.graphs.head_channels`."""
        return head_channels(
            channels=self.channels, single_shuffle=bool(self.model["single_shuffle"])
        )


def graph_io(*, has_cleaning: bool, channels: int, precision: Precision) -> dict[str, Any]:
    """Return the inputs and outputs of every graph in plain values, for the manifest and for checks
    by the engines.
    """
    return {
        name: {
            side: [
                {
                    "name": item.name,
                    "dtype": item.numpy_dtype(precision),
                    "shape": [channels if size == "C" else size for size in item.shape],
                }
                for item in items
            ]
            for side, items in (("inputs", GRAPHS[name].inputs), ("outputs", GRAPHS[name].outputs))
        }
        for name in graph_names(has_cleaning=has_cleaning)
    }


# ------------------------------------------------------------------------------------- the schema

_Sum = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Count = Annotated[int, Meta(ge=0, le=2**40)]
_Size = Annotated[int, Meta(ge=1, le=2**16)]
_Layers = Annotated[int, Meta(ge=0, le=1000)]
_Channels = Annotated[int, Meta(ge=1, le=4096)]


class _Strict(Struct, forbid_unknown_fields=True):
    """Base of the parts that the program acts on."""


class _Record(Struct):
    """Base of the measurements, which are shown but not acted on."""


class _Weights(_Strict):
    file_name: str
    sha256: str
    license: str | None = None
    provenance: str | None = None


class _Model(_Strict):
    mid_channels: _Channels
    cleaning_blocks: _Layers | None
    single_shuffle: bool
    propagation_blocks: _Layers = 0
    flow_channels: Annotated[list[_Channels], Meta(max_length=100)] = []
    flow_kernel: Annotated[int, Meta(ge=1, le=101)] = 1
    flow_levels: _Layers = 0
    flow_reduction: Annotated[int, Meta(ge=1, le=16)] = 1
    reconstruction_blocks: _Layers = 0


class _Profile(_Strict):
    min_size: tuple[_Size, _Size]
    opt_size: tuple[_Size, _Size]
    max_size: tuple[_Size, _Size]
    batch: _Size
    band: _Size | None = None


class _Milliseconds(_Strict):
    int8: float
    float16: float


class _EngineSet(_Strict):
    flavour: Literal["tensorrt", "tensorrt-rtx"]
    version: Annotated[str, Meta(pattern=r"\A[0-9A-Za-z.+-]{1,40}\Z")]
    compute_capability: Annotated[str, Meta(pattern=r"\A[0-9]{1,3}\.[0-9]\Z")]
    platform: Annotated[str, Meta(pattern=r"\A[a-z0-9_]{1,20}-[a-z0-9_]{1,20}\Z")]
    profile: _Profile
    version_compatible: bool = False
    hardware_compatible: bool = False
    layers: dict[str, dict[str, _Count]] = {}
    psnr: dict[str, float] = {}
    milliseconds: dict[str, _Milliseconds] = {}
    interface: _Count = 1
    signature: str = ""


class _ImageScores(_Record):
    psnr: float
    max_difference: float


class _OnClip(_Record):
    clip: str
    sha256: str
    frames: _Count
    pictures: _ImageScores


class _Verification(_Record):
    runtime: str = ""
    outputs: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    clip: _OnClip | None = None


class _Block(_Record):
    form: str


class _Clip(_Record):
    name: str
    frames: _Count


class _Score(_Record):
    psnr: float


class _Scores(_Record):
    int8: _Score
    float16: _Score


class _Quantisation(_Record):
    graphs: dict[str, list[_Block]] = {}
    clips: list[_Clip] = []
    psnr: _Scores | None = None


class _Manifest(_Strict):
    """The schema of format 1."""

    schema_version: Literal[1]
    model: _Model
    weights: _Weights
    precision: str
    opset: Annotated[int, Meta(ge=1, le=1000)]
    refine_threshold: Annotated[float, Meta(ge=0, le=10**6)]
    graphs: dict[str, Any]  # compared with the contract as a whole
    verification: _Verification
    toolkit_version: str
    members: dict[str, _Sum]
    scale: Literal[4] = 4
    quantisation: _Quantisation | None = None
    engine_sets: Annotated[list[_EngineSet], Meta(max_length=1000)] = []


def read_manifest(data: bytes | memoryview) -> Manifest:
    """Read a manifest from JSON.

    Raises:
        ManifestError: it is invalid or of another version.
    """
    if len(data) > _LARGEST:
        raise ManifestError(
            f"has a manifest of {len(data) / 2**20:.1f} MiB, which no bundle needs: export the "
            "checkpoint again"
        )
    try:
        values = msgspec.json.decode(data, type=dict[str, Any])
        _check_bounds(values)
        if (version := values.get("schema_version")) != SCHEMA_VERSION:
            raise ManifestError(
                f"has bundle format {version!s:.20}, and this version of rbvsr-deploy reads "
                f"{SCHEMA_VERSION}: update rbvsr-deploy, or export the checkpoint again"
            )
        msgspec.convert(values, _Manifest)
        sets = tuple(EngineSet.from_dict(item) for item in values.get("engine_sets", ()))
    except ManifestError:
        raise
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ManifestError(
            f"is not a bundle of this toolkit: its manifest is invalid ({first_line(error):.200}); "
            "export the checkpoint again"
        ) from None
    weights = Weights(**values["weights"])
    manifest = Manifest(**{**values, "weights": weights, "engine_sets": sets})
    _check(manifest)
    return manifest


def _check_bounds(values: Any) -> None:
    """Check nesting depth, text lengths and numbers anywhere in the values.

    Raises:
        ValueError: a bound is exceeded.
    """
    level = [values]
    for _ in range(_DEEPEST):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += [*item, *item.values()]
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str) and len(item) > _LONGEST:
                raise ValueError(f"it has a text of {len(item)} characters")
            elif isinstance(item, (int, float)) and not abs(item) <= _HIGHEST:
                raise ValueError(f"it has a number beyond {_HIGHEST:g}")
        level = inner
    if level:
        raise ValueError(f"it nests deeper than {_DEEPEST} levels")


def _check(manifest: Manifest) -> None:
    """Check that the parts of a manifest are consistent."""
    if manifest.precision not in PRECISIONS:
        raise ManifestError(
            f"has precision '{manifest.precision}'; known are {', '.join(PRECISIONS)}"
        )
    contract = graph_io(
        has_cleaning=manifest.has_cleaning,
        channels=manifest.channels,
        precision=manifest.precision,
    )
    if not manifest.graphs:
        raise ManifestError("has no graphs: export the checkpoint again")
    for name, sides in manifest.graphs.items():
        if name not in contract or sides != contract[name]:
            raise ManifestError(
                f"describes a graph '{name}' that this network does not have: export the "
                "checkpoint again"
            )
    names = [engine_set.name for engine_set in manifest.engine_sets]
    if len(set(names)) != len(names):
        raise ManifestError("has two engine sets with the same name: export the checkpoint again")
