"""Scores sequences frame by frame, in display order, with only a few frames in memory.

The score of a sequence is the mean over its frames. The score of a set is the mean over its
sequences, regardless of their lengths.
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
from rbvsr_deploy.training.evaluation.metrics.base import CroppedImage, ScoredFrame, Scorer
from rbvsr_deploy.training.evaluation.metrics.catalogue import METRICS
from rbvsr_deploy.training.evaluation.metrics.resize import enlarge
from rbvsr_deploy.training.evaluation.sequences import Item
from rbvsr_deploy.video import open_source

if TYPE_CHECKING:
    from rbvsr_deploy.upscaler import Upscaler

__all__ = ["BASELINE", "RESULTS", "Evaluation", "SequenceScores", "Specimen", "evaluate"]

logger = logging.getLogger(__name__)

RESULTS, BASELINE = "results", "bicubic"
"""Names of the two methods: the results, and the inputs enlarged by bicubic interpolation."""

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class SequenceScores:
    """Holds the scores of one sequence for one method."""

    frames: list[int]
    """Numbers of the scored frames; the first frame of the sequence is 0."""
    per_frame: dict[str, list[float | None]]
    """Scores by metric, one per entry of ``frames``; ``None`` where the metric is undefined."""

    def mean(self, metric: str) -> float | None:
        """Return the mean over the frames for which the metric is defined."""
        values = [value for value in self.per_frame[metric] if value is not None]
        return math.fsum(values) / len(values) if values else None


@dataclass(frozen=True, eq=False)
class Specimen:
    """A frame worth looking at, with its baseline and ground truth; images are (H, W, 3) uint8."""

    sequence: str
    frame: int
    score: float
    baseline_score: float | None
    image: Image
    baseline: Image | None
    truth: Image | None


@dataclass
class Evaluation:
    """Holds the results of an evaluation."""

    metrics: tuple[str, ...]
    scores: dict[str, dict[str, SequenceScores]] = field(default_factory=dict)
    """Scores by method, then by sequence."""
    worst: Specimen | None = None
    """Frame of the results with the worst score by the first metric."""
    best: Specimen | None = None
    """Frame of the results with the best score by the first metric."""

    def mean(self, method: str, metric: str) -> float | None:
        """Return the mean over the sequences for which the metric is defined."""
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
        items: the sequences, with what they are compared with.
        scorers: scorers by the name of their metric.
        border: number of pixels to ignore at each side.
        frames: numbers of the frames to score; ``None`` scores all.
        baseline: also score the inputs, if given, enlarged by bicubic interpolation.
        upscaler: upscales the inputs of items without results.
        progress: called with the name of a sequence, the number of finished frames, and the total
            if known.

    Raises:
        MediaError: a file cannot be read to its end, or ends before its counterpart.
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
    previous: dict[str, ScoredFrame] = {}
    count = 0
    with closing(_read_item(item, upscaler=upscaler, progress=progress)) as all_images:
        end = None if frames is None else frames[-1] + 1
        for number, current in enumerate(itertools.islice(all_images, end)):
            count += 1
            if frames is not None and number not in frames:
                continue
            images = {RESULTS: current.result}
            large = None if current.input is None else enlarge(current.input, SCALE)
            if baseline and large is not None:
                images[BASELINE] = large
            truth, guide = (
                None if image is None else CroppedImage(image, border=border)
                for image in (current.truth, large)
            )
            for method, image in images.items():
                frame = ScoredFrame(
                    CroppedImage(image, border=border), truth, truth or guide, previous.get(method)
                )
                here = scores.setdefault(method, SequenceScores([], {name: [] for name in scorers}))
                here.frames.append(number)
                for name, scorer in scorers.items():
                    here.per_frame[name].append(scorer(frame))
                # Without its own previous frame, or all frames would stay in memory.
                previous[method] = ScoredFrame(frame.image, truth, frame.guide)
            _keep_specimen(result, item, number, scores, current, images.get(BASELINE))
    _check_frames(item, frames, count)
    for method, of_method in scores.items():
        result.scores.setdefault(method, {})[item.name] = of_method


@dataclass(frozen=True, eq=False)
class _ItemImages:
    """Holds the images of one frame: (H, W, 3) uint8, the input at a quarter of the size."""

    result: Image
    truth: Image | None
    input: Image | None


def _read_item(
    item: Item,
    *,
    upscaler: Upscaler | None,
    progress: Callable[[str, int, int | None], None],
) -> Generator[_ItemImages, None, None]:
    """Read all images of an item, frame by frame.

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
                raise ValueError(f"{item.name} has no results, and no inputs or upscaler for them")
            again = stack.enter_context(open_source(item.inputs))
            upscaled = _upscaled(upscaler, (frame.image for frame in again))
            streams["results"] = stack.enter_context(closing(upscaled))
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
                    f"{paths[ended[0]]} ends after {number} frames, but {paths[next(iter(row))]} "
                    "continues: both must have the same number of frames"
                )
            yield _ItemImages(row["results"], row.get("truth"), row.get("inputs"))
            progress(item.name, number + 1, total)


def _upscaled(upscaler: Upscaler, frames: Iterator[AnyImage]) -> Generator[AnyImage, None, None]:
    """Upscale frames; closing the generator releases the upscaler."""
    yield from upscaler.frames(frames)


def _keep_specimen(
    result: Evaluation,
    item: Item,
    number: int,
    scores: Mapping[str, SequenceScores],
    current: _ItemImages,
    baseline: Image | None,
) -> None:
    """Keep a frame that is the worst or the best so far by the first metric."""
    first = result.metrics[0]
    latest = {method: of_method.per_frame[first][-1] for method, of_method in scores.items()}
    score = latest[RESULTS]
    if score is None:
        return
    sign = 1 if METRICS[first].higher_is_better else -1
    specimen = Specimen(
        item.name, number, score, latest.get(BASELINE), current.result, baseline, current.truth
    )
    if result.best is None or sign * score > sign * result.best.score:
        result.best = specimen
    if result.worst is None or sign * score < sign * result.worst.score:
        result.worst = specimen


def _check_frames(item: Item, frames: list[int] | None, count: int) -> None:
    missing = [number for number in frames or () if number >= count]
    if count == 0 or (frames is not None and len(missing) == len(frames)):
        wanted = "no frames" if frames is None else f"none of the frames {_listed(frames)}"
        raise MediaError(f"{item.name} has {wanted}: remove the sequence, or choose other frames")
    if missing:
        logger.warning(
            "%s has only %d frames: skipping frame %s", item.name, count, _listed(missing)
        )


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
