"""Draws a contact sheet of the degradations of a clip.

The sheet has one row per step, in order: the parameters, frames spread over the clip, and the walk
of the parameters over time. All frames are shown at the same size and labelled with their actual
size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.files import write_atomically
from rbvsr_deploy.training.data.training_set import DataConfig, Sample, TrainingSet
from rbvsr_deploy.training.degradations.clip_degradation import (
    MODERATE,
    PUBLISHED,
    Degradation,
    walk_through,
)
from rbvsr_deploy.training.degradations.steps import FloatImage, Step, from_bytes, to_bytes

__all__ = ["contact_sheet", "write_contact_sheet"]

_TILE = 224
_TEXT = 300
_LINE = 17
_SHOWN = 5
_INK, _PAPER, _FAINT = (30, 30, 30), (250, 250, 250), (200, 200, 200)
_CURVES = ((180, 60, 40), (40, 110, 180), (60, 140, 60), (150, 80, 160))

Image = NDArray[np.uint8]


def write_contact_sheet(
    output: Path,
    clip: Path,
    *,
    published: bool = True,
    seed: int = 0,
    length: int = 30,
    crop: int = 64,
    stochastic: bool = True,
    write_to: Path | None = None,
    replay: Path | None = None,
) -> tuple[int, str]:
    """Degrade an excerpt of a clip and write its contact sheet.

    Args:
        output: PNG file to write.
        clip: video file or folder of frames.
        published: use the published ranges and probabilities instead of the moderate ones.
        seed: seed of the random draw.
        length: number of frames in the excerpt.
        crop: side of the degraded frames, in pixels.
        stochastic: vary the parameters over the clip, and mirror the clip in time.
        write_to: JSON file to write the drawn parameters to.
        replay: JSON file of an earlier run, whose parameters are used instead of drawing new ones.

    Returns:
        The number of steps, and the name of the file the frames come from.

    Raises:
        RbvsrError: the clip cannot be used, or the parameters do not fit it.
    """
    try:
        data = msgspec.convert(
            {
                "sources": [{"kind": "frames" if clip.is_dir() else "videos", "path": str(clip)}],
                "length": length,
                "crop": crop,
                "stochastic": stochastic,
            },
            DataConfig,
        )
        clips = TrainingSet(data, PUBLISHED if published else MODERATE, seed=seed)
        clips.check()
        sample = clips.sample(0)
        degradation = sample.degradation
        if replay is not None:
            degradation = msgspec.json.decode(replay.read_bytes(), type=Degradation)
        sheet = contact_sheet(sample, degradation)
        _, data_of_png = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
        write_atomically(output, data_of_png.tobytes())
        if write_to is not None:
            write_atomically(write_to, msgspec.json.encode(degradation) + b"\n")
    except (ValueError, OSError, msgspec.MsgspecError) as error:
        raise RbvsrError(str(error)) from error
    return len(degradation.steps), sample.source


def contact_sheet(sample: Sample, degradation: Degradation) -> Image:
    """Draw the ground truth, the sharpened ground truth and the frames after every step.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    shown = np.unique(np.linspace(0, degradation.length - 1, _SHOWN).round().astype(int))
    truth = [from_bytes(frame) for frame in sample.truth]
    rows = [_row(["ground truth", Path(sample.source).name], truth, shown, walks={})]
    for step, images in walk_through(sample.sharpened, degradation):
        if step is None:
            rows.append(_row(["unsharp mask", "target of the losses"], images, shown, walks={}))
        else:
            lines, walks = _described(step)
            rows.append(_row(lines, images, shown, walks=walks))
    return np.concatenate(rows)


def _described(step: Step) -> tuple[list[str], dict[str, list[float]]]:
    """Return the name and parameters of a step as text, and the values that change over time."""
    fields = msgspec.to_builtins(step)
    lines, walks = [str(fields.pop("step"))], {}
    for name, value in fields.items():
        if value is None:
            continue
        if not isinstance(value, tuple | list):
            lines.append(f"{name} {value}")
        elif min(value) == max(value):
            lines.append(f"{name} {value[0]:.4g}")
        else:
            lines.append(f"{name} {value[0]:.4g} .. {value[-1]:.4g}")
            walks[name] = [float(v) for v in value]
    return lines, walks


def _row(
    lines: list[str],
    images: list[FloatImage],
    shown: NDArray[Any],
    *,
    walks: dict[str, list[float]],
) -> Image:
    text: Image = np.full((_TILE, _TEXT, 3), 250, np.uint8)
    for number, line in enumerate(lines):
        weight = 2 if number == 0 else 1
        _write(text, line, (10, 26 + _LINE * number), weight=weight)
    tiles = [_tile(images[i], frame=int(i)) for i in shown]
    return np.concatenate([text, *tiles, _curves(walks)], axis=1)


def _tile(image: FloatImage, *, frame: int) -> Image:
    height, width = image.shape[:2]
    size = (_TILE - 4, _TILE - 4)
    enlarged = cv2.resize(to_bytes(image), size, interpolation=cv2.INTER_NEAREST)
    tile = cv2.copyMakeBorder(enlarged, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=_PAPER)
    cv2.rectangle(tile, (2, _TILE - 19), (112, _TILE - 3), _PAPER, -1)
    _write(tile, f"#{frame} {width}x{height}", (5, _TILE - 7))  # type: ignore[arg-type]
    return tile  # type: ignore[return-value]


def _curves(walks: dict[str, list[float]]) -> Image:
    """Plot every walk, each scaled to its own smallest and largest value."""
    plot: Image = np.full((_TILE, _TILE, 3), 250, np.uint8)
    height = (_TILE - 8) // max(len(walks), 1)
    for number, (name, values) in enumerate(walks.items()):
        top, colour = 4 + number * height, _CURVES[number % len(_CURVES)]
        low, high = min(values), max(values)
        x = np.linspace(8, _TILE - 8, len(values))
        y = top + height - 6 - (np.array(values) - low) / (high - low) * (height - 24)
        points = np.stack((x, y), axis=-1).round().astype(np.int32)
        cv2.line(plot, (8, top + height - 2), (_TILE - 8, top + height - 2), _FAINT, 1)
        cv2.polylines(plot, [points], False, colour, 2, cv2.LINE_AA)
        _write(plot, f"{name} {low:.3g} .. {high:.3g}", (8, top + 12), colour=colour)
    return plot


def _write(
    image: Image,
    text: str,
    place: tuple[int, int],
    *,
    weight: int = 1,
    colour: tuple[int, int, int] = _INK,
) -> None:
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, weight, cv2.LINE_AA)
