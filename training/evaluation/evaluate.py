"""Scores of sequences: frame by frame, in the order they are shown, a few frames held at a time.

The score of a sequence is the mean over its frames, and the score of a set the mean over its
sequences, however long they are.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.pixels import Image as AnyImage
from rbvsr_deploy.pixels import eight_bits
from rbvsr_deploy.training.evaluation.metrics.base import Picture, Scorer, Shown
from rbvsr_deploy.training.evaluation.metrics.catalogue import METRICS
from rbvsr_deploy.training.evaluation.metrics.resize import enlarge
from rbvsr_deploy.training.evaluation.sequences import Item
from rbvsr_deploy.video import open_source

if TYPE_CHECKING:
    from rbvsr_deploy.upscaler import Upscaler

__all__ = ["BASELINE", "RESULTS", "Evaluation", "SequenceScores", "Specimen", "evaluate"]

logger = logging.getLogger(__name__)

RESULTS, BASELINE = "results", "bicubic"
"""What is scored: the results, and the inputs enlarged by bicubic interpolation."""

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class SequenceScores:
    """Scores of one sequence as one method made it."""

    frames: list[int]
    """Numbers of the frames that were scored, the first of the sequence being 0."""
    per_frame: dict[str, list[float | None]]
    """Of each metric, as many as ``frames``; ``None`` where it is not defined."""

    def mean(self, metric: str) -> float | None:
        """Over the frames where it is defined."""
        values = [value for value in self.per_frame[metric] if value is not None]
        return math.fsum(values) / len(values) if values else None


@dataclass(frozen=True, eq=False)
class Specimen:
    """A frame to look at."""

    sequence: str
    frame: int
    score: float
    baseline_score: float | None
    picture: Image
    baseline: Image | None
    truth: Image | None


@dataclass
class Evaluation:
    """What was found."""

    metrics: tuple[str, ...]
    scores: dict[str, dict[str, SequenceScores]] = field(default_factory=dict)
    """By method, then by sequence."""
    worst: Specimen | None = None
    """Of the results' frames, by the first metric."""
    best: Specimen | None = None

    def mean(self, method: str, metric: str) -> float | None:
        """Over the sequences where it is defined."""
        means = [scores.mean(metric) for scores in self.scores[method].values()]
        known = [mean for mean in means if mean is not None]
        return math.fsum(known) / len(known) if known else None


def evaluate(
    items: Sequence[Item],
    scorers: Mapping[str, Scorer],
    *,
    border: int,
    frames: Sequence[int] | None = None,
    baseline: bool = True,
    upscaler: Upscaler | None = None,
    progress: Callable[[str, int, int | None], None] = lambda name, done, total: None,
) -> Evaluation:
    """Score sequences.

    Args:
        items: what is scored, and what it is held against.
        scorers: by the name of their metric.
        border: pixels left out at each side.
        frames: numbers of the frames to score; ``None``: all.
        baseline: also score the inputs, where given, enlarged by bicubic interpolation.
        upscaler: makes the results of the inputs where an item has none.
        progress: called with a sequence's name, its frames that are done, and, where known, all.

    Raises:
        MediaError: something cannot be read to its end, or ends before what it belongs to.
        EngineError: the engine failed.
    """
    result = Evaluation(tuple(scorers))
    for item in items:
        _evaluate_item(
            result,
            item,
            scorers,
            border=border,
            frames=None if frames is None else sorted(set(frames)),
            baseline=baseline,
            upscaler=upscaler,
            progress=progress,
        )
    return result


def _evaluate_item(
    result: Evaluation,
    item: Item,
    scorers: Mapping[str, Scorer],
    *,
    border: int,
    frames: list[int] | None,
    baseline: bool,
    upscaler: Upscaler | None,
    progress: Callable[[str, int, int | None], None],
) -> None:
    scores: dict[str, SequenceScores] = {}
    before: dict[str, Shown] = {}
    count = 0
    with closing(_moments(item, upscaler=upscaler, progress=progress)) as moments:
        end = None if frames is None else frames[-1] + 1
        for number, moment in enumerate(itertools.islice(moments, end)):
            count += 1
            if frames is not None and number not in frames:
                continue
            images = {RESULTS: moment.picture}
            large = None if moment.input is None else enlarge(moment.input, SCALE)
            if baseline and large is not None:
                images[BASELINE] = large
            truth, guide = (
                None if image is None else Picture(image, border=border)
                for image in (moment.truth, large)
            )
            for method, image in images.items():
                shown = Shown(
                    Picture(image, border=border), truth, truth or guide, before.get(method)
                )
                here = scores.setdefault(method, SequenceScores([], {name: [] for name in scorers}))
                here.frames.append(number)
                for name, scorer in scorers.items():
                    here.per_frame[name].append(scorer(shown))
                before[method] = Shown(shown.picture, truth, shown.guide)  # without its own past
            _keep_specimen(result, item, number, scores, moment, images.get(BASELINE))
    _check_frames(item, frames, count)
    for method, of_method in scores.items():
        result.scores.setdefault(method, {})[item.name] = of_method


@dataclass(frozen=True, eq=False)
class _Moment:
    """The pictures of one point in time: (H, W, 3) uint8, the input a quarter of the size."""

    picture: Image
    truth: Image | None
    input: Image | None


def _moments(
    item: Item,
    *,
    upscaler: Upscaler | None,
    progress: Callable[[str, int, int | None], None],
) -> Generator[_Moment, None, None]:
    """Everything that belongs to an item, frame by frame.

    Raises:
        MediaError: one of the streams ends before another.
    """
    wanted = {"results": item.results, "truth": item.truth, "inputs": item.inputs}
    paths = {what: path for what, path in wanted.items() if path is not None}
    with ExitStack() as stack:
        sources = {what: stack.enter_context(open_source(path)) for what, path in paths.items()}
        total = next(iter(sources.values())).frame_count
        streams: dict[str, Iterator[AnyImage]] = {
            what: (frame.image for frame in source) for what, source in sources.items()
        }
        if item.results is None:
            if item.inputs is None or upscaler is None:
                raise ValueError(f"{item.name} has no results, and nothing to make them of or with")
            again = stack.enter_context(open_source(item.inputs))
            made = _made(upscaler, (frame.image for frame in again))
            streams["results"] = stack.enter_context(closing(made))
        for number in itertools.count():
            row: dict[str, Image] = {}
            for what, stream in streams.items():
                image = next(stream, None)
                if image is not None:
                    row[what] = eight_bits(image)
            if not row:
                return
            ended = [what for what in streams if what not in row]
            if ended:
                raise MediaError(
                    f"{paths[ended[0]]} ends after {number} frames and {paths[next(iter(row))]} "
                    "goes on: they must have as many"
                )
            yield _Moment(row["results"], row.get("truth"), row.get("inputs"))
            progress(item.name, number + 1, total)


def _made(upscaler: Upscaler, frames: Iterator[AnyImage]) -> Generator[AnyImage, None, None]:
    """What the upscaler makes of frames; it is free again once this is closed."""
    yield from upscaler.frames(frames)


def _keep_specimen(
    result: Evaluation,
    item: Item,
    number: int,
    scores: Mapping[str, SequenceScores],
    moment: _Moment,
    baseline: Image | None,
) -> None:
    """Hold on to a frame that is the worst or the best so far, by the first metric."""
    first = result.metrics[0]
    latest = {method: of_method.per_frame[first][-1] for method, of_method in scores.items()}
    score = latest[RESULTS]
    if score is None:
        return
    sign = 1 if METRICS[first].higher_is_better else -1
    specimen = Specimen(
        item.name, number, score, latest.get(BASELINE), moment.picture, baseline, moment.truth
    )
    if result.best is None or sign * score > sign * result.best.score:
        result.best = specimen
    if result.worst is None or sign * score < sign * result.worst.score:
        result.worst = specimen


def _check_frames(item: Item, frames: list[int] | None, count: int) -> None:
    missing = [number for number in frames or () if number >= count]
    if count == 0 or (frames is not None and len(missing) == len(frames)):
        wanted = "no frame" if frames is None else f"none of the frames {_listed(frames)}"
        raise MediaError(f"{item.name} holds {wanted}: leave the sequence out, or name others")
    if missing:
        logger.warning("%s has %d frames: without frame %s", item.name, count, _listed(missing))


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
