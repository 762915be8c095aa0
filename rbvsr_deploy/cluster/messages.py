"""Defines the messages between a coordinator and its workers, one JSON object each."""

from __future__ import annotations

import base64
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec

from rbvsr_deploy.engines.base import Description
from rbvsr_deploy.jobs.summary import Summary
from rbvsr_deploy.runtime.memory_plan import MemoryPlan
from rbvsr_deploy.runtime.output_size import OutputSize, Target
from rbvsr_deploy.runtime.stream import Settings
from rbvsr_deploy.video import ReadOptions, WriteOptions

__all__ = [
    "Cancel",
    "Done",
    "Failed",
    "FileTask",
    "FromWorker",
    "Gone",
    "Note",
    "Part",
    "Piece",
    "Progress",
    "Ready",
    "Refused",
    "ScanTask",
    "Scanned",
    "Setup",
    "Task",
    "ToWorker",
    "UnitTask",
    "from_json",
    "to_json",
]


class Setup(msgspec.Struct, tag=True, frozen=True):
    """Says what engine a worker opens, and how much of the machine it may use."""

    model: Path
    device: str
    trust_engines: bool
    settings: Settings
    size: tuple[int, int] | None = None
    """H and W of the first input, for engines that are compiled for it."""
    place: int = 0
    """Number of the worker among those that share its device."""
    share: int = 1
    """Number of workers that share the device: its memory and, of a processor, its cores."""
    on_gpu: bool = False
    """Whether the device is a GPU, so that any core may be used."""


class UnitTask(msgspec.Struct, tag=True, frozen=True):
    """Asks for the encoded segments of a part of an input."""

    number: int
    path: Path
    output: Path
    folder: Path
    """Folder that holds the units' job folders."""
    reading: ReadOptions
    writing: WriteOptions
    first: int
    stop: int
    starts: list[int]
    """Frames of the part that begin a scene."""
    stamps: bytes
    sums: bytes
    """Timestamps and checksums of its frames; see ``FrameIndex``."""
    target: Target | None
    """Size of the output; four times that of the input if ``None``."""
    work: str
    """Identifies everything the segments depend on."""
    state: bytes | None = None
    """State of the stream before the first frame; ``None``: between scenes."""
    staged: bool = False
    """Whether the input comes in pieces, and the segments go back in parts."""


class Piece(msgspec.Struct, tag=True, frozen=True):
    """Brings bytes of the input of a task that follows."""

    number: int
    """Number of the task."""
    name: str
    size: int
    """Bytes of the whole file."""
    offset: int
    data: bytes


class Part(msgspec.Struct, tag=True, frozen=True):
    """Brings bytes of a unit's segments back, to be appended to their file."""

    number: int
    """Number of the task."""
    folder: str
    file: str
    data: bytes


class FileTask(msgspec.Struct, tag=True, frozen=True):
    """Asks for the output of a whole input."""

    number: int
    path: Path
    output: Path
    reading: ReadOptions
    writing: WriteOptions
    size: OutputSize
    scene_cuts: bool
    overwrite: bool
    keep_job: bool


class ScanTask(msgspec.Struct, tag=True, frozen=True):
    """Asks for the checksums and cuts of a part of an input."""

    number: int
    path: Path
    reading: ReadOptions
    begin: int | None
    """Timestamp from which on to read; ``None``: from the first frame."""
    stop: int | None
    """Timestamp before which to stop; ``None``: at the end."""
    detect: bool
    """Whether to detect cuts."""
    keeps_captions: bool


class Scanned(msgspec.Struct, frozen=True):
    """Lists the frames of a part of an input; see ``FrameIndex``."""

    stamps: bytes
    sums: bytes
    cuts: list[int]
    """Frames that begin a scene, counted from the part's first."""
    changes: list[tuple[str, str, str]]
    is_regular: bool


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """Ends a task whose result is no longer needed."""

    number: int


class Ready(msgspec.Struct, tag=True, frozen=True):
    """Says that a worker has opened its engine."""

    engine: Description
    versions: dict[str, str]
    """Everything else on the worker that values or encoded bytes may depend on."""
    host: str
    process: int


class Refused(msgspec.Struct, tag=True, frozen=True):
    """Says why a worker cannot work at all, in one sentence."""

    error: str


class Progress(msgspec.Struct, tag=True, frozen=True):
    """Says how many frames of a task each stage has done, those of an earlier try included."""

    number: int
    stages: dict[str, int]
    kept: int
    """Frames in finished segments, which another try does not repeat."""
    frames: int | None = None
    """Frames of the whole input, of a task that is one."""


class Done(msgspec.Struct, tag=True, frozen=True):
    """Says that a task is finished."""

    number: int
    frames: int
    """Frames that this try has upscaled."""
    seconds: dict[str, float]
    size: int
    """Bytes of the encoded frames."""
    folder: Path | None = None
    """Job folder of a unit's segments."""
    memory: int = 0
    plan: MemoryPlan | None = None
    summary: Summary | None = None
    """Of a whole file; ``None`` if it was upscaled before."""
    scanned: Scanned | None = None


class Failed(msgspec.Struct, tag=True, frozen=True):
    """Says why a task failed, in one sentence."""

    number: int
    error: str
    cancelled: bool = False


class Note(msgspec.Struct, tag=True, frozen=True):
    """Passes on a warning."""

    text: str


class Gone(msgspec.Struct, tag=True, frozen=True):
    """Says how a worker ended; made on the coordinator's side."""

    why: str


Task = UnitTask | FileTask | ScanTask
ToWorker = Setup | UnitTask | FileTask | ScanTask | Piece | Cancel
FromWorker = Ready | Refused | Progress | Part | Done | Failed | Note | Gone


def _encode(value: Any) -> Any:
    if isinstance(value, Path):
        return os.fsencode(value)  # a path need not be text
    if isinstance(value, Fraction):
        return str(value)
    raise NotImplementedError


def _decode(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(os.fsdecode(base64.b64decode(value)))
    if kind is Fraction:
        return Fraction(value)
    raise NotImplementedError


_ENCODER = msgspec.json.Encoder(enc_hook=_encode)
_TO_WORKER = msgspec.json.Decoder(ToWorker, dec_hook=_decode)
_FROM_WORKER = msgspec.json.Decoder(FromWorker, dec_hook=_decode)


def to_json(message: ToWorker | FromWorker) -> bytes:
    """Return a message as one line without its end."""
    return _ENCODER.encode(message)


def from_json(line: bytes, *, of_worker: bool) -> Any:
    """Return the message of a line, which a worker has sent or received.

    Raises:
        msgspec.MsgspecError: it is not a message.
    """
    return (_FROM_WORKER if of_worker else _TO_WORKER).decode(line)
