"""What is kept of an evaluation: ``scores.json``, plots over frames, worst and best frame."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy import __version__
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.files import write_atomically
from rbvsr_deploy.training.evaluate import BASELINE, RESULTS, Evaluation, Specimen
from rbvsr_deploy.training.metrics.catalogue import METRICS

__all__ = ["check_report_folder", "scores_as_json", "write_report"]

_LARGEST = 1280
"""Width, in pixels, that whole frames are reduced to in the pictures."""

_WHITE, _BLACK, _MARK = (255, 255, 255), (0, 0, 0), (255, 64, 64)


def check_report_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that may not be written into.

    Raises:
        MediaError: it is a file, or holds something that may not be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise MediaError(f"{folder} is no folder: choose another for the report")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise MediaError(f"the folder {folder} is not empty: choose another, or allow overwriting")


def scores_as_json(
    evaluation: Evaluation, *, settings: dict[str, Any], missing: dict[str, str]
) -> dict[str, Any]:
    """Everything in one object; nothing in it depends on when or where it was made.

    Args:
        settings: what was asked for.
        missing: metrics that could not be computed, and why.
    """
    return {
        "rbvsr_deploy": __version__,
        "settings": settings,
        "metrics": {
            name: {
                "title": METRICS[name].title,
                "better": "higher" if METRICS[name].higher_is_better else "lower",
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
    """Write ``scores.json``, ``worst.png``, ``best.png``, and ``plots`` if matplotlib is there.

    Raises:
        MediaError: something cannot be written.
    """
    files = {"scores.json": (json.dumps(scores, indent=1, allow_nan=False) + "\n").encode()}
    for which, specimen in (("worst", evaluation.worst), ("best", evaluation.best)):
        if specimen is not None:
            title = METRICS[evaluation.metrics[0]].title
            files[f"{which}.png"] = _png(specimen_picture(specimen, which=which, title=title))
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


def specimen_picture(specimen: Specimen, *, which: str, title: str) -> NDArray[np.uint8]:
    """A frame with a mark around its finest detail, and below it this detail three times larger:
    of the baseline, the result and the truth, as far as they are there.
    """
    shown = {"bicubic": specimen.baseline, "result": specimen.picture, "truth": specimen.truth}
    images = {label: image for label, image in shown.items() if image is not None}
    height, width = specimen.picture.shape[:2]
    side = max(1, min(height, width, 3 * _LARGEST // 4) // 3)
    top, left = _finest(images.get("truth", specimen.picture), side)
    whole = specimen.picture.copy()
    cv2.rectangle(whole, (left, top), (left + side - 1, top + side - 1), _MARK, 2)
    if width > _LARGEST:
        size = (_LARGEST, height * _LARGEST // width)
        whole = np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), np.uint8)
    crops = []
    for label, image in images.items():
        crop = image[top : top + side, left : left + side].repeat(3, axis=0).repeat(3, axis=1)
        crops.append(_labelled(crop, label))
    name = f"{which}: {specimen.sequence}, frame {specimen.frame}, {title} {specimen.score:.4f}"
    return _stacked(_labelled(whole, name), np.concatenate(crops, axis=1))


def _finest(image: NDArray[np.uint8], side: int) -> tuple[int, int]:
    """Top and left of the square with most detail."""
    edges = np.abs(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_32F))
    sums = cv2.integral(edges)
    of_squares = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side]
    of_squares += sums[:-side, :-side]
    top, left = np.unravel_index(np.argmax(of_squares), of_squares.shape)
    return int(top), int(left)


def _labelled(image: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """The picture under a line of text."""
    line = np.zeros((26, image.shape[1], 3), np.uint8)
    cv2.putText(line, text, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _WHITE, 1, cv2.LINE_AA)
    return np.concatenate((line, image))


def _stacked(*images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One above the other, black where one is narrower."""
    width = max(image.shape[1] for image in images)
    return np.concatenate(
        [
            cv2.copyMakeBorder(
                image, 0, 0, 0, width - image.shape[1], cv2.BORDER_CONSTANT, value=_BLACK
            )
            for image in images
        ]
    )


def _png(image: NDArray[np.uint8]) -> bytes:
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise MediaError("cannot encode a picture as PNG")
    return data.tobytes()


def _plot(evaluation: Evaluation, sequence: str) -> bytes | None:
    """Every metric over the frames of a sequence as a PNG; ``None`` without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return None
    count = len(evaluation.metrics)
    figure = Figure(figsize=(8, 0.6 + 1.9 * count), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, evaluation.metrics, strict=True):
        for method, colour in ((BASELINE, "tab:orange"), (RESULTS, "tab:blue")):
            if method not in evaluation.scores:
                continue
            scores = evaluation.scores[method][sequence]
            values = [np.nan if value is None else value for value in scores.per_frame[name]]
            mean = scores.mean(name)
            label = method if mean is None else f"{method}, mean {mean:.4g}"
            axis.plot(scores.frames, values, color=colour, marker=".", markersize=4, label=label)
        better = "higher" if METRICS[name].higher_is_better else "lower"
        axis.set_title(f"{METRICS[name].title} ({better} is better)", fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[-1].set_xlabel(f"frame of {sequence}")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()
