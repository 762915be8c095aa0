"""Describes everything a job's output depends on: an interrupted run is resumed only if all of it
is the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

from rbvsr_deploy.engines.base import Description
from rbvsr_deploy.runtime.output_size import OutputSize
from rbvsr_deploy.runtime.scenes import SceneCuts
from rbvsr_deploy.runtime.stream import Settings
from rbvsr_deploy.video import ImageSource, ReadOptions, Source, is_pipe
from rbvsr_deploy.video.input_files import sampled

__all__ = ["has_same_images", "image_record", "job_identity"]


_SAME_OUTPUT_SINCE = "0.3.0"
"""The first version with the same output as this one: its unfinished jobs are continued. Set it to
the coming version in any change that alters frames or packets.
"""


def job_identity(
    path: Path,
    *,
    engine: Description,
    settings: Settings,
    size: OutputSize,
    reading: ReadOptions,
    cuts: SceneCuts,
) -> dict[str, str]:
    """Return everything the output depends on, by readable names; the sink adds its own part.

    Args:
        path: the input. Of an image folder only the name belongs to the identity: segments record
            which images they were made of, see :func:`image_record`.
        engine: its network, version, device and placement belong to the identity.
        settings: settings of the stream; the memory limit is left out, as it does not affect the
            output.
        size: how large the output is.
        reading: options for reading the input.
        cuts: where scenes begin.

    Raises:
        OSError: the input cannot be read.
    """
    threshold = settings.refine_threshold
    return {
        "input": "standard input" if is_pipe(path) else _input(path),
        **{
            f"option {name}": "not given" if value is None else str(value)
            for name, value in dataclasses.asdict(reading).items()
            # Changes no output, and is newer than job folders that are still to be resumed.
            if name != "allow_playlists"
        },
        "model": f"{engine.model} ({engine.weights[:16]})",
        "engine": f"{engine.engine} {engine.version} on {engine.device}",
        **({"placement": engine.placement} if engine.placement else {}),
        "version of rbvsr-deploy": _SAME_OUTPUT_SINCE,
        "scene cuts": cuts.identity,
        "lookahead": "all" if settings.lookahead is None else str(settings.lookahead),
        "longest scene": str(settings.max_scene),
        "refinement threshold": "the model's" if threshold is None else f"{threshold:g}",
        "refinement scope": settings.refine_scope,
        "number of cleanings": "by refinement"
        if settings.cleanings is None
        else str(settings.cleanings),
        # Newer than job folders that are still to be resumed, which have neither.
        **{
            name: f"{value:.12g}"
            for name, value in (("strength", settings.strength), ("denoise", settings.denoise))
            if value != 1
        },
        **({"size of the output": str(size)} if size != OutputSize() else {}),
    }


def image_record(source: Source, frames: int, *, ended: bool) -> dict[str, Any] | None:
    """Return a record of the first images of a folder, for the note of a segment made of them.

    Args:
        source: the input.
        frames: number of images that the segment depends on, from the first one on.
        ended: whether it also depends on these being all.

    Returns:
        ``None`` if the input is not an image folder.
    """
    if not isinstance(source, ImageSource):
        return None
    digest = source.files.digest(frames, are_all=ended)
    return {"frames": frames, "ended": ended, "sha256": digest}


def has_same_images(source: Source, record: object) -> bool:
    """Return whether the images of a record from :func:`image_record` are still those of a source.

    Raises:
        KeyError, TypeError: the record is malformed.
        MediaError: an image cannot be read.
    """
    if not isinstance(source, ImageSource):
        return True
    if not isinstance(record, dict) or type(record["frames"]) is not int:
        return False
    found = image_record(source, record["frames"], ended=record["ended"] is True)
    return found is not None and found["sha256"] is not None and found == record


def _input(path: Path) -> str:
    """Describe a folder by its name, and a file by its name and a checksum of its size,
    modification time and samples of its content.
    """
    if path.is_dir():
        return f"the image folder {path.name}"
    status = path.lstat()
    digest = hashlib.sha256(os.fsencode(f"{path.name} {status.st_size} {status.st_mtime_ns}"))
    digest.update(sampled(path))
    return f"{path.name} of {status.st_size} bytes ({digest.hexdigest()[:16]})"
