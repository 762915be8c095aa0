"""Reads the tensors of a checkpoint file, without running code or trusting sizes in it.

A pickle is a program. Only tensors and plain containers are rebuilt here; any other global is
refused by name.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rbvsr_deploy.errors import CheckpointError, MissingDependencyError, first_line

__all__ = ["PICKLE_SUFFIXES", "claims_too_much", "read_checkpoint", "read_tensors", "short_name"]

PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")

_WRAPPERS = ("state_dict", "params_ema", "params")
_MOST_TENSORS = 10_000  # a training checkpoint of the published network has 1,300
_MOST_INSTRUCTIONS = 200_000
"""Instructions of a pickle, each of which takes PyTorch several microseconds; the same has 52,000.
"""
_LONGEST_HEADER = 2**22  # bytes of a safetensors file; a tensor takes about a hundred
_LONGEST_NAME = 100
"""Characters of a tensor's name in a message."""

# Globals that the pickle of a plain state_dict may refer to, and how torch's message names others.
_PLAIN_GLOBALS = ("torch.", "collections.", "builtins.set", "_codecs.encode")
_TORCH_REFUSES = re.compile(r"GLOBAL (\S+)")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint of any network, under their names in the file.

    Raises:
        CheckpointError: missing or unreadable file, an unsafe pickle, or no tensors in it.
        MissingDependencyError: a ``.safetensors`` file without the ``safetensors`` package.
    """
    return read_checkpoint(path)[0]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """Return the tensors, the name of their wrapper, and the metadata of a safetensors file."""
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint '{path}' is not a file: give the path of a .safetensors or .pth file"
        )
    if path.suffix == ".safetensors":
        tensors, metadata = _read_safetensors(path)
        _check_storage(tensors, path)
        return tensors, "", metadata
    if path.suffix in PICKLE_SUFFIXES:
        _check_zip(path)
        _check_pickle(path)
        tensors, wrapper = _unwrap(_read_pickle(path), path)
        _check_storage(tensors, path)
        return tensors, wrapper, {}
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
        with path.open("rb") as start:
            size = int.from_bytes(start.read(8), "little")
        size = min(size, path.stat().st_size)  # other files are not of this format at all
        _check_count(path, size, "bytes of names and sizes", most=_LONGEST_HEADER)
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            _check_count(path, len(names), "tensors", most=_MOST_TENSORS)
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, MemoryError) as error:
        raise CheckpointError(
            f"'{path}' is not a readable safetensors file ({error}): download or save it again"
        ) from None


def _check_zip(path: Path) -> None:
    """Refuse a zip whose members are larger than itself: PyTorch compresses nothing."""
    with contextlib.suppress(OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
            _check_count(path, len(members), "members", most=_MOST_TENSORS)
            claimed = sum(member.file_size for member in members)
            if claimed > path.stat().st_size:
                raise CheckpointError(
                    f"'{path}' is refused: it claims {claimed:,} bytes of content in a file of "
                    f"{path.stat().st_size:,}; save it again with PyTorch"
                )


def _check_pickle(path: Path) -> None:
    """Refuse a pickle that would take minutes to read."""
    for pickled in _pickles_in(path):
        if len(pickled) <= _MOST_INSTRUCTIONS:
            continue  # each one takes a byte at least
        count = 0
        stream = io.BytesIO(pickled)
        with contextlib.suppress(ValueError):  # damaged, or followed by something else
            while pickled.startswith(pickle.PROTO, stream.tell()):
                for _ in pickletools.genops(stream):
                    count += 1
                    _check_count(path, count, "instructions", most=_MOST_INSTRUCTIONS)


def _check_count(path: Path, count: int, what: str, *, most: int) -> None:
    if count > most:
        raise CheckpointError(
            f"'{path}' is refused: it has more than {most:,} {what}, far more than a network of "
            "this kind; save only its state_dict"
        )


def _check_storage(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not plain arrays, or that are larger than what the file holds."""
    size = path.stat().st_size
    for name, value in tensors.items():
        dense = value.layout == torch.strided and value.device.type == "cpu"
        if not dense or value.is_quantized or value.is_nested:
            raise CheckpointError(
                f"'{path}' is refused: {short_name(name)} is sparse, quantised, nested or without "
                "values; save dense weights"
            )
        if value.numel() * value.element_size() > size:
            raise claims_too_much(path, short_name(name))


def claims_too_much(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"'{path}' is refused: {what} would take more bytes than the whole file, which has "
        f"{path.stat().st_size:,}; save a copy (clone) of every tensor"
    )


def short_name(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."


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
        pickled = b"".join(_pickles_in(path)[:1])
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


def _pickles_in(path: Path) -> list[bytes]:
    """Return the pickles in a file (several in a row in one item before PyTorch 1.6)."""
    with contextlib.suppress(Exception):  # a damaged zip raises nearly anything
        data = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return [archive.read(n) for n in archive.namelist() if n.endswith("data.pkl")]
        return [data] if data.startswith(pickle.PROTO) else []
    return []


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
