"""Writes the report of an evaluation: ``scores.json``, plots over frames, worst and best frame."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.files import write_atomically
from rbvsr_deploy.training.evaluation.evaluate import BASELINE, RESULTS, Evaluation, Specimen
from rbvsr_deploy.training.evaluation.metrics.catalogue import METRICS, Metric
from rbvsr_deploy.version import __version__

__all__ = ["check_report_folder", "scores_as_json", "write_report"]

_WIDTH, _TALLEST = 1280, 720
"""Maximum width of the images, and maximum height of the whole frame in them, in pixels."""

_ZOOM = 3
"""Minimum zoom of the detail; small frames are zoomed further."""

_GAP = 8
_LINE, _LETTERS = 36, 0.8
_PAPER, _INK, _MARK = (255, 255, 255), (20, 20, 20), (255, 64, 64)

_ROWS = 4
"""Maximum number of plots in one column; more are laid out in two columns."""

_TICKS = 12
"""Maximum number of scored frames for which every frame gets a tick."""

_STYLES: dict[str, dict[str, Any]] = {
    BASELINE: {"color": "tab:orange", "marker": "s"},
    RESULTS: {"color": "tab:blue", "marker": "o"},
}


def check_report_folder(folder: Path, *, overwrite: bool) -> None:
    """Check that a report may be written to a folder.

    Raises:
        MediaError: it is a file, or it is not empty and overwriting is not allowed.
    """
    if folder.exists() and not folder.is_dir():
        raise MediaError(f"{folder} is a file: choose a folder for the report")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise MediaError(f"the folder {folder} is not empty: choose another, or allow overwriting")


def scores_as_json(
    evaluation: Evaluation, *, settings: dict[str, Any], missing: dict[str, str]
) -> dict[str, Any]:
    """Convert an evaluation to an object for JSON that does not depend on when or where it ran.

    Args:
        evaluation: the scores.
        settings: settings of the evaluation.
        missing: reason for each metric that could not be computed.
    """
    return {
        "rbvsr_deploy": __version__,
        "settings": settings,
        "metrics": {
            name: {
                "title": METRICS[name].title,
                "better": METRICS[name].better,
            }
            for name in evaluation.metrics
        },
        "missing": missing,
        "means": {
            method: {name: evaluation.mean(method, name) for name in evaluation.metrics}
            for method in evaluation.scores
        },
        "sequences": {
            method: {
                sequence: {
                    "frames": scores.frames,
                    "means": {name: scores.mean(name) for name in evaluation.metrics},
                    "per_frame": scores.per_frame,
                }
                for sequence, scores in sequences.items()
            }
            for method, sequences in evaluation.scores.items()
        },
        **{
            which: {"sequence": found.sequence, "frame": found.frame, "score": found.score}
            for which, found in (("worst", evaluation.worst), ("best", evaluation.best))
            if found is not None
        },
    }


def write_report(folder: Path, evaluation: Evaluation, scores: dict[str, Any]) -> None:
    """Write ``scores.json``, ``worst.png``, ``best.png``, and ``plots`` if matplotlib is installed.

    Raises:
        MediaError: a file cannot be written.
    """
    files = {"scores.json": (json.dumps(scores, indent=1, allow_nan=False) + "\n").encode()}
    for which, specimen in (("worst", evaluation.worst), ("best", evaluation.best)):
        if specimen is not None:
            metric = METRICS[evaluation.metrics[0]]
            files[f"{which}.png"] = _png(specimen_image(specimen, which=which, metric=metric))
    for sequence in evaluation.scores[RESULTS]:
        plot = _plot(evaluation, sequence)
        if plot is not None:
            files[f"plots/{sequence}.png"] = plot
    try:
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, data)
    except OSError as error:
        raise MediaError(f"cannot write the report to {folder}: {error.strerror}") from None


def specimen_image(specimen: Specimen, *, which: str, metric: Metric) -> NDArray[np.uint8]:
    """Draw a frame with a mark around its finest detail, and below it this detail enlarged, for the
    baseline, the result and the ground truth if they exist.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    panels = {}
    if specimen.baseline is not None:
        panels[_labelled("bicubic", specimen.baseline_score)] = specimen.baseline
    panels[_labelled("result", specimen.score)] = specimen.image
    if specimen.truth is not None:
        panels["ground truth"] = specimen.truth
    height, width = specimen.image.shape[:2]
    room = (_WIDTH - _GAP * (len(panels) - 1)) // len(panels)
    side = min(height, width, room // _ZOOM)
    zoom = room // side
    top, left = _finest(panels.get("ground truth", specimen.image), side)
    row = []
    for label, image in panels.items():
        crop = image[top : top + side, left : left + side]
        row.append(_titled(crop.repeat(zoom, axis=0).repeat(zoom, axis=1), label))
        row.append(np.full((len(row[0]), _GAP, 3), _PAPER, np.uint8))
    detail = np.concatenate(row[:-1], axis=1)
    factor = min(1.0, detail.shape[1] / width, _TALLEST / height)
    whole = np.asarray(
        cv2.resize(specimen.image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA),
        np.uint8,
    )
    corner, opposite = (
        (round(factor * x), round(factor * y))
        for x, y in ((left, top), (left + side - 1, top + side - 1))
    )
    cv2.rectangle(whole, corner, opposite, _MARK, 2)
    title = (
        f"{which} frame by {metric.title} ({metric.better} is better): "
        f"{specimen.sequence}, frame {specimen.frame}"
    )
    return np.concatenate((_titled(_centred(whole, detail.shape[1]), title), detail))


def _finest(image: NDArray[np.uint8], side: int) -> tuple[int, int]:
    """Return the top and left of the square with the most detail."""
    edges = np.abs(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_32F))
    sums = cv2.integral(edges)
    of_squares = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side]
    of_squares += sums[:-side, :-side]
    top, left = np.unravel_index(np.argmax(of_squares), of_squares.shape)
    return int(top), int(left)


def _labelled(name: str, score: float | None) -> str:
    return name if score is None else f"{name}: {score:.4f}"


def _titled(image: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """Add a line of text above an image, shrinking long text to fit."""
    width = image.shape[1]
    line = np.full((_LINE, width, 3), _PAPER, np.uint8)
    face, thickness = cv2.FONT_HERSHEY_SIMPLEX, 1
    (needed, _), _ = cv2.getTextSize(text, face, _LETTERS, thickness)
    letters = _LETTERS * min(1.0, (width - 2 * _GAP) / needed)
    cv2.putText(line, text, (_GAP, _LINE - 11), face, letters, _INK, thickness, cv2.LINE_AA)
    return np.concatenate((line, image))


def _centred(image: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    left = (width - image.shape[1]) // 2
    right = width - image.shape[1] - left
    return np.pad(image, ((0, 0), (left, right), (0, 0)), constant_values=_PAPER[0])


def _png(image: NDArray[np.uint8]) -> bytes:
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise MediaError("cannot encode an image as PNG")
    return data.tobytes()


def _plot(evaluation: Evaluation, sequence: str) -> bytes | None:
    """Plot every metric over the frames of a sequence as PNG; ``None`` without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return None
    columns = 1 if len(evaluation.metrics) <= _ROWS else 2
    rows = -(-len(evaluation.metrics) // columns)
    width, height = 4 + 4 * columns, 1.2 + 2 * rows  # inches
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    # Matplotlib's own layout engines take as long as everything else together.
    figure.subplots_adjust(
        left=0.7 / width,
        right=1 - 0.2 / width,
        bottom=0.7 / height,
        top=1 - 0.7 / height,
        hspace=0.35,
        wspace=0.15,
    )
    figure.suptitle(sequence, fontsize=11, y=1 - 0.2 / height, va="center", parse_math=False)
    figure.supxlabel("frame", fontsize=10, y=0.25 / height, va="center")
    methods = [method for method in _STYLES if method in evaluation.scores]
    for place, name in enumerate(evaluation.metrics):
        axis = figure.add_subplot(rows, columns, place + 1)
        means = []
        for method in methods:
            scores = evaluation.scores[method][sequence]
            values = [np.nan if value is None else value for value in scores.per_frame[name]]
            successive = len(scores.frames) == scores.frames[-1] - scores.frames[0] + 1
            line: dict[str, Any] = {
                "linestyle": "-" if successive else ":",
                "markersize": 3 if successive else 6,
            }
            axis.plot(scores.frames, values, label=method, **_STYLES[method], **line)
            mean = scores.mean(name)
            means.append(f"{method} {'not defined' if mean is None else format(mean, '.4f')}")
        axis.set_title(
            f"{METRICS[name].title} ({METRICS[name].better} is better)", fontsize=9, loc="left"
        )
        axis.set_title("mean: " + ", ".join(means), fontsize=9, loc="right")
        axis.grid(alpha=0.3)
        if len(scores.frames) <= _TICKS:
            axis.set_xticks(scores.frames)
        else:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower right", ncols=len(labels))
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about characters of a name that the font lacks
        figure.savefig(data, format="png", dpi=110)
    return data.getvalue()
