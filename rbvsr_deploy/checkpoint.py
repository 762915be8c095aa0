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

A pickle is a program. Only tensors and plain containers are rebuilt here; any other global is
refused by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rbvsr_deploy.errors import CheckpointError, MissingDependencyError, first_line
from rbvsr_deploy.model import RealBasicVSR, RealBasicVSRConfig

__all__ = ["Checkpoint", "load_checkpoint", "read_tensors"]

logger = logging.getLogger(__name__)

PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
RELEASED_REFINE_THRESHOLD = 255.0
"""Threshold of the released configuration, 255 of 255: exactly one cleaning pass."""

_WRAPPERS = ("state_dict", "params_ema", "params")
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

# Globals that the pickle of a plain state_dict may refer to, and how torch's message names others.
_PLAIN_GLOBALS = ("torch.", "collections.", "builtins.set", "_codecs.encode")
_TORCH_REFUSES = re.compile(r"GLOBAL (\S+)")


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
    tensors, wrapper, metadata = _read(path)
    tensors, naming = _published_names(tensors)
    model = _build(tensors, path)
    threshold = metadata.get("refine_threshold", RELEASED_REFINE_THRESHOLD)
    try:
        refine_threshold = float(threshold)
    except ValueError:
        raise CheckpointError(
            f"'{path}' has '{threshold}' for refine_threshold in its metadata: expected a number"
        ) from None
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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint of any network, under their names in the file.

    Raises:
        CheckpointError: missing or unreadable file, an unsafe pickle, or no tensors in it.
        MissingDependencyError: a ``.safetensors`` file without the ``safetensors`` package.
    """
    return _read(path)[0]


# ----------------------------------------------------------------------------------------- reading


def _read(path: Path) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """Return the tensors, the name of their wrapper, and the metadata of a safetensors file."""
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint '{path}' is not a file: give the path of a .safetensors or .pth file"
        )
    if path.suffix == ".safetensors":
        tensors, metadata = _read_safetensors(path)
        return tensors, "", metadata
    if path.suffix in PICKLE_SUFFIXES:
        return *_unwrap(_read_pickle(path), path), {}
    raise CheckpointError(
        f"checkpoint '{path}' has the suffix '{path.suffix}': known are .safetensors, "
        f"{', '.join(PICKLE_SUFFIXES)}"
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise MissingDependencyError(
            "safetensors", extra="export", purpose=f"reading '{path.name}'"
        ) from None
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"'{path}' is not a readable safetensors file ({error}): download or save it again"
        ) from None


class _Inert:
    """Stands in for training-time bookkeeping (mmengine's message hub), which is discarded."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _inert_getattr(*args: object) -> None:
    """Replace ``getattr`` in such bookkeeping: return ``None``, whatever is looked up."""


def _read_pickle(path: Path) -> object:
    # mmagic 1.x stores its message hub next to the weights: loss histories with references to their
    # own methods.
    bookkeeping: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (_Inert, "mmengine.logging.history_buffer.HistoryBuffer"),
        (_inert_getattr, "builtins.getattr"),
        (_Inert, "numpy.core.multiarray._reconstruct"),
        (_Inert, "numpy._core.multiarray._reconstruct"),
        (_Inert, "numpy.core.multiarray.scalar"),
        (_Inert, "numpy._core.multiarray.scalar"),
        (_Inert, "numpy.ndarray"),
        (_Inert, "numpy.dtype"),
    ]
    try:
        with torch.serialization.safe_globals(bookkeeping), warnings.catch_warnings():
            # About a pickle protocol that torch does not write itself; the error below reports it.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything on foreign bytes
        pickled = _pickle_in(path)
        plain = (*_PLAIN_GLOBALS, *(item[1] for item in bookkeeping if isinstance(item, tuple)))
        unsafe = [name for name in _globals_in(pickled) if not name.startswith(plain)]
        if pickled:
            unsafe += _TORCH_REFUSES.findall(str(error))
        if unsafe:
            raise CheckpointError(
                f"'{path}' is refused: its pickle calls '{unsafe[0]}', and only plain tensors "
                "are loaded; save only its state_dict, preferably as .safetensors"
            ) from None
        if pickled and "Unsupported operand" in str(error):  # an opcode of protocol 3 or newer
            raise CheckpointError(
                f"'{path}' uses a pickle protocol that is not supported: save it without "
                "pickle_protocol, preferably as .safetensors"
            ) from None
        useful = isinstance(error, OSError | RuntimeError) and str(error)
        reason = f" ({first_line(error).split('. ')[0]})" if useful else ""
        raise CheckpointError(
            f"'{path}' is not a PyTorch checkpoint, or a damaged one{reason}: download or save "
            "it again"
        ) from None


def _pickle_in(path: Path) -> bytes:
    """Return the pickle in a file (several in a row before PyTorch 1.6), or nothing."""
    with contextlib.suppress(Exception):  # a damaged zip raises nearly anything
        data = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                data = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
        return data if data.startswith(pickle.PROTO) else b""
    return b""


def _globals_in(pickled: bytes) -> Iterator[str]:
    """Yield the globals that pickles refer to, read from their opcodes without running any."""
    stream = io.BytesIO(pickled)
    with contextlib.suppress(Exception):  # truncated, or followed by something else
        while pickled.startswith(pickle.PROTO, stream.tell()):
            for name in _globals_of_one_pickle(stream):
                yield name.replace("__builtin__.", "builtins.")  # its name in Python 2


def _globals_of_one_pickle(stream: io.BytesIO) -> Iterator[str]:
    strings: list[str] = []
    memo: dict[int, str] = {}
    top = ""  # the top of the pickle's stack, if it is a string
    for opcode, argument, _ in pickletools.genops(stream):
        match opcode.name:
            case "GLOBAL":
                yield str(argument).replace(" ", ".")
            case "STACK_GLOBAL":  # pops module and name from the stack
                yield ".".join(strings[-2:])
            case "MEMOIZE" | "BINPUT" | "LONG_BINPUT":
                memo[len(memo) if argument is None else int(argument)] = top
                continue
        if opcode.name in ("BINGET", "LONG_BINGET"):
            top = memo.get(int(argument or 0), "")
        else:
            top = argument if isinstance(argument, str) else ""
        strings += [top] * bool(top)


# ------------------------------------------------------------------------------------------ naming


def _unwrap(raw: object, path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the dictionary of tensors inside the file, and the wrapper's name."""
    wrapper = ""
    if isinstance(raw, Mapping):
        wrapper = next((name for name in _WRAPPERS if isinstance(raw.get(name), Mapping)), "")
    inner: Any = raw[wrapper] if wrapper and isinstance(raw, Mapping) else raw
    tensors = (
        {k: v for k, v in inner.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if isinstance(inner, Mapping)
        else {}
    )
    if not tensors:
        raise CheckpointError(
            f"'{path}' holds no weights: expected a dictionary of tensors, bare or under "
            f"{', '.join(_WRAPPERS)}"
        )
    return tensors, wrapper


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
            f"with {', '.join(sorted(shapes)[:3]) or 'nothing'})"
        ) from None
    model = RealBasicVSR(config).eval().requires_grad_(False)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    problems = [f"missing {name}" for name in sorted(expected.keys() - shapes.keys())]
    problems += [f"unexpected {name}" for name in sorted(shapes.keys() - expected.keys())]
    problems += [
        f"{name} has shape {shapes[name]} where {expected[name]} is expected"
        for name in sorted(expected.keys() & shapes.keys())
        if shapes[name] != expected[name]
    ]
    problems += [
        f"{name} holds values that are not finite"
        for name, value in sorted(tensors.items())
        if not torch.isfinite(value.float()).all()
    ]
    if problems:
        raise CheckpointError(
            f"'{path}' does not match the network its sizes describe, {len(problems)} keys are "
            f"wrong: {'; '.join(problems)}"
        )
    model.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=True)
    return model
