"""What determines a training run, as typed values, and the TOML files they come from.

A file has the sections of :class:`TrainingConfig`; what it leaves out has the published value. The
sections ``network`` and ``degradation`` may name a ``preset`` to start from.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from rbvsr_deploy.errors import RbvsrError
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
Count = Annotated[int, Meta(ge=1)]
CountOrNone = Annotated[int, Meta(ge=0)]


class FlowConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The flow network: given and frozen, as published, or trained here."""

    weights: str | None = None
    """File of SPyNet's weights, alone or inside a BasicVSR or RealBasicVSR checkpoint."""
    iterations: CountOrNone = 0
    """Of a first phase, in which the flow network alone learns the true motion of photographs under
    the synthetic camera; 0 leaves it out."""
    learning_rate: Positive = 1e-3
    """Of that phase; falls to 0 along a cosine."""
    batch: Count = 4
    """Clips of three frames in that phase, per process."""
    max_speed: Positive = 8.0
    """Fastest synthetic camera in that phase, degraded pixels per frame."""
    factor: NotNegative = 0.0
    """Afterwards the flow network learns at this part of the generator's learning rate; 0 freezes
    it, as published."""


class LossConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is minimised; a weight of 0 leaves a loss out."""

    pixel: Literal["l1", "charbonnier"] = "l1"
    """Of output and cleaning: l1 is the released configuration's choice, charbonnier the paper's
    text."""
    pixel_weight: NotNegative = 1.0
    cleaning_weight: NotNegative = 1.0
    perceptual_weight: NotNegative = 0.0
    perceptual_layers: dict[Layer, NotNegative] = msgspec.field(
        default_factory=lambda: dict(LAYER_WEIGHTS)
    )
    vgg: str | None = None
    """File of VGG19's weights, for the perceptual loss."""
    gan_weight: NotNegative = 0.0
    """Above 0 a discriminator is trained along, as in the published second stage (0.05)."""


class OptimizerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Adam, for generator and discriminator."""

    learning_rate: Positive = 1e-4
    discriminator_learning_rate: Positive = 1e-4
    betas: tuple[Share, Share] = (0.9, 0.99)
    schedule: Literal["constant", "cosine"] = "constant"
    """constant as published, or falling to 0 at the last iteration along a cosine."""
    warm_up: CountOrNone = 0
    """Iterations over which the learning rate rises from 0 at the start."""
    clip_norm: Positive | None = None
    """Gradients longer than this are shortened to it."""
    ema_decay: Share = 0.999
    """Of the moving average of the generator, which is what is exported."""


class ValidationConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """PSNR of the averaged generator on clips that are not trained on; none without sources."""

    sources: tuple[SourceConfig, ...] = ()
    clips: Count = 8
    every: Count = 5000
    """Iterations."""


class OutputConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is written when; nothing here changes the weights."""

    checkpoint_every: Count = 1000
    """Iterations after which the latest checkpoint is replaced."""
    keep_every: CountOrNone = 0
    """Iterations after which a checkpoint is kept for good; 0 keeps the latest only."""
    log_every: Count = 100
    """Iterations averaged in a line of the log."""
    pictures_every: CountOrNone = 1000
    """Iterations after which TensorBoard gets a strip of pictures; 0 is never."""


class TrainingConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A training run. The defaults are the first stage as published."""

    data: DataConfig
    iterations: Count = 300_000
    batch: Count = 2
    """Clips per process and backward pass; published: 2 on each of 8 GPUs, 1 in the second
    stage."""
    accumulate: Count = 1
    """Backward passes per iteration: the gradients are those of one batch that many times as
    large (but for the discriminator's spectral norms, which are refined with every pass)."""
    seed: CountOrNone = 0
    load_from: str | None = None
    """Checkpoint to start from: of the first stage for the second."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of convolutions; the weights, the flow and the losses are always float32."""
    checkpointing: bool = False
    """Features are computed again in the backward pass instead of kept: less memory, slower."""
    compile: bool = False
    """The pieces of the network are compiled by torch.compile."""
    workers: CountOrNone = 4
    """Processes per GPU that prepare clips; 0 prepares them in between."""
    network: RealBasicVSRConfig = PUBLISHED
    discriminator_channels: Count = 64
    degradation: DegradationConfig = degradation_config.PUBLISHED
    flow: FlowConfig = FlowConfig()
    losses: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    validation: ValidationConfig = ValidationConfig()
    output: OutputConfig = OutputConfig()

    def __post_init__(self) -> None:
        for name, size in self.network.as_dict().items():
            sizes = size if isinstance(size, tuple) else (size,)
            if any(type(s) is int and s < 1 for s in sizes):
                raise ValueError(f"network.{name} must be 1 or more, got {size}")
        if self.network.flow_kernel % 2 == 0:
            raise ValueError(f"network.flow_kernel must be odd, got {self.network.flow_kernel}")
        if self.losses.perceptual_weight and not self.losses.perceptual_layers:
            raise ValueError("losses.perceptual_weight needs a layer in losses.perceptual_layers")
        if self.losses.cleaning_weight and self.network.cleaning_blocks is None:
            raise ValueError("a network without cleaning_blocks needs losses.cleaning_weight = 0")
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


def load_config(
    recipe: str, *, changes: Sequence[str] = (), sources: Sequence[SourceConfig] = ()
) -> TrainingConfig:
    """Read a recipe.

    Args:
        recipe: path of a TOML file (with that suffix), or name of a preset.
        changes: ``section.key=value`` each, the value in TOML or, failing that, a string.
        sources: in place of ``data.sources``, if there are any.

    Raises:
        RbvsrError: the recipe is missing or no TOML, or a key or value is not known or allowed; one
            sentence that names the key and what is allowed.
    """
    if recipe not in PRESETS and not recipe.endswith(".toml"):
        raise RbvsrError(
            f"'{recipe}' is neither a .toml file nor a preset: presets are {', '.join(PRESETS)}"
        )
    try:
        text = PRESETS.get(recipe, Path(recipe)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RbvsrError(f"the recipe '{recipe}' cannot be read: {error}") from None
    try:
        values = msgspec.toml.decode(text)
    except msgspec.DecodeError as error:
        raise RbvsrError(f"the recipe '{recipe}' is no TOML: {error}") from None
    for change in changes:
        _apply(change, values)
    data = values.setdefault("data", {})
    if sources and isinstance(data, dict):
        data["sources"] = [msgspec.to_builtins(source) for source in sources]
    if isinstance(data, dict) and not data.get("sources"):
        raise RbvsrError(
            "there is nothing to train on: give folders of clips, for example as data.sources",
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
    """``section.key=value`` into nested tables."""
    keys, equals, text = change.partition("=")
    *sections, key = keys.strip().split(".")
    if not equals or not key:
        raise RbvsrError(f"'{change}' changes nothing: give section.key=value")
    try:
        value = msgspec.toml.decode(f"value = {text}")["value"]
    except msgspec.DecodeError:
        value = text.strip()
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise RbvsrError(f"'{change}' goes into {section}, which is no section")
    values[key] = value


def _start_from_preset(values: dict[str, Any], section: str, presets: Mapping[str, object]) -> None:
    """Fill a section with its preset, below what it says itself."""
    given = values.get(section)
    if not isinstance(given, dict) or "preset" not in given:
        return
    name = given.pop("preset")
    if name not in presets:
        raise RbvsrError(f"{section}.preset is {name!r}: allowed are {', '.join(presets)}")
    values[section] = _merged(msgspec.to_builtins(presets[name]), given)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables merged key by key, at every depth."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merged(old, value)
        result[key] = value
    return result


# ----------------------------------------------------------------------------- what is not right


def _check_names(value: object, kind: msgspec.inspect.Type, path: str = "") -> None:
    """Refuse keys that are not known, at every depth, and say which are."""
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
                        f"{path}{key} is not known: {f'in {path[:-1]} ' * bool(path)}allowed are "
                        f"{', '.join(known)}{hint}"
                    )
                _check_names(inner, known[key], f"{path}{key}.")
        case msgspec.inspect.VarTupleType():
            for i, item in enumerate(value if isinstance(value, list) else ()):
                _check_names(item, kind.item_type, f"{path[:-1]}[{i}].")
        case msgspec.inspect.UnionType():
            for option in kind.types:
                _check_names(value, option, path)


def _sentence(error: str) -> str:
    """``Expected `int`, got `str` - at `$.data.crop``` -> ``data.crop: expected int, got str``."""
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
    """The values that a key may have, or, of ``key in $.section``, the keys of a section."""
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
