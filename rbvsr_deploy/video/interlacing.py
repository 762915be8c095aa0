"""Detects and deinterlaces interlaced video, whose frames consist of two fields."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rbvsr_deploy.video.pyav import media_errors

if TYPE_CHECKING:
    from av import VideoFrame
    from av.filter.context import FilterContext
    from av.filter.graph import Graph

__all__ = ["CombWatch", "Deinterlacer"]

logger = logging.getLogger(__name__)

# Frames to analyse if none is marked as interlaced. This adds a tenth to the time for reading them.
_ANALYSED = 100
# Frames to analyse before the first one is deinterlaced; these are held in memory.
_LOOK_AHEAD = 25
# Factor by which the fields must be closer to the frame on one side than to that on the other. At
# 1.04, FFmpeg's default, vertical motion in soft images is mistaken for combing; at 1.4, much
# interlaced video is missed.
_THRESHOLD = "1.1"
# Minimum share of frames combed in the video's field order, and maximum share in the other order.
_COMBED, _OTHERWISE = 0.6, 0.1
_FEWEST = 8


class CombWatch:
    """Warns once if a video is marked as interlaced or appears to be.

    Args:
        path: the file, for the warning.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._warned = False

    def over(self, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        """Yield the decoded frames unchanged."""
        combs: _CombDetector | None = None
        try:
            for frame in frames:
                if not self._warned:
                    if frame.interlaced_frame:
                        self._warn("is marked as interlaced: if it shows combing, deinterlace it")
                    elif combs is None and _may_be_interlaced(frame):
                        combs = _CombDetector(frame)
                    if combs is not None and combs.frames < _ANALYSED:
                        combs.analyse(frame)
                        if combs.frames == _ANALYSED:
                            self._conclude(combs)
                yield frame
        finally:  # also if the caller stops early
            if combs is not None and combs.frames < _ANALYSED:
                self._conclude(combs)

    def _conclude(self, combs: _CombDetector) -> None:
        if combs.order is not None:
            first = {"tff": "top", "bff": "bottom"}[combs.order]
            self._warn(f"looks interlaced, {first} field first: deinterlace it")

    def _warn(self, finding: str) -> None:
        if not self._warned:
            logger.warning("%s %s, or combing artefacts are upscaled", self._path, finding)
        self._warned = True


class Deinterlacer:
    """Converts the first field of every frame to a progressive frame.

    If one of the first frames is marked as interlaced, only marked frames are deinterlaced. If none
    is, all frames are deinterlaced, with the field order that is detected.

    Args:
        path: the file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._warned = False

    def over(self, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        """Yield one progressive frame for every frame, with the same timestamp.

        Raises:
            MediaError: the frames are too small to have fields.
        """
        upcoming = iter(frames)
        start = list(itertools.islice(upcoming, _LOOK_AHEAD))
        options = {"mode": "send_frame", "parity": "auto", "deint": "interlaced"}
        guess = False
        with media_errors(f"cannot deinterlace {self._path}"):
            if start and not any(frame.interlaced_frame for frame in start):
                order = self._order(start)
                options |= {"parity": order or "auto", "deint": "all"}
                guess = order is None
            # Filters do not support a change of frame size.
            for _, alike in itertools.groupby(itertools.chain(start, upcoming), key=_shape):
                yield from _deinterlaced(alike, options, guess=guess)

    def _order(self, frames: Sequence[VideoFrame]) -> str | None:
        combs = _CombDetector(frames[0])
        for frame in frames:
            combs.analyse(frame)
        if combs.order is None and not self._warned:
            self._warned = True
            logger.warning("%s does not look interlaced; it is deinterlaced anyway", self._path)
        return combs.order


class _CombDetector:
    """Counts the frames of a video that show combing."""

    frames: int
    """Number of frames analysed."""

    def __init__(self, first: VideoFrame) -> None:
        self.frames = 0
        self._shape = _shape(first)
        self._graph, self._input = _graph_for(first)
        detector, split = self._graph.add("idet", intl_thres=_THRESHOLD), self._graph.add("split")
        self._input.link_to(detector)
        detector.link_to(split)
        # PyAV 17 cannot read the metadata that a filter attaches to a frame, hence a filter for
        # each field order that passes only the frames with that metadata.
        self._outputs = {}
        self._combed = {"tff": 0, "bff": 0}
        for number, order in enumerate(self._combed):
            key = "lavfi.idet.multiple.current_frame"
            select = self._graph.add("metadata", mode="select", key=key, value=order)
            output = self._graph.add("buffersink")
            split.link_to(select, output_idx=number)
            select.link_to(output)
            self._outputs[order] = output
        self._graph.configure()

    @property
    def order(self) -> str | None:
        """Field order: "tff" (top first) or "bff" (bottom first); ``None``: not interlaced."""
        order = max(self._combed, key=lambda order: self._combed[order])
        combed, otherwise = self._combed[order], sum(self._combed.values()) - self._combed[order]
        many = combed >= max(_FEWEST, _COMBED * self.frames)
        return order if many and otherwise <= _OTHERWISE * self.frames else None

    def analyse(self, frame: VideoFrame) -> None:
        self.frames += 1
        # A video with changing frame size is not interlaced.
        if _shape(frame) == self._shape:
            self._input.push(frame)
            for order, output in self._outputs.items():
                self._combed[order] += sum(1 for _ in _pulled(output))


def _deinterlaced(
    frames: Iterable[VideoFrame], options: dict[str, str], *, guess: bool
) -> Iterator[VideoFrame]:
    """Yield deinterlaced frames of one size; ``guess``: detect the field order of each frame."""
    frames = iter(frames)
    first = next(frames)
    graph, input_ = _graph_for(first)
    last = input_
    for name, settings in ([("idet", {"intl_thres": _THRESHOLD})] if guess else []) + [
        ("bwdif", options)
    ]:
        added = graph.add(name, **settings)
        last.link_to(added)
        last = added
    output = graph.add("buffersink")
    last.link_to(output)
    graph.configure()
    # The filter returns one frame per input frame, delayed and with a different time base.
    waiting: deque[VideoFrame] = deque()
    for frame in itertools.chain([first], frames, [None]):
        if frame is not None:
            waiting.append(frame)
        input_.push(frame)
        for progressive in _pulled(output):
            yield _with_properties(progressive, like=waiting.popleft())


def _with_properties(frame: VideoFrame, *, like: VideoFrame) -> VideoFrame:
    """Copy the times and colour tags of ``like`` to ``frame``, and return it."""
    frame.pts, frame.time_base = like.pts, like.time_base
    frame.dts, frame.duration = like.dts, like.duration
    frame.colorspace, frame.color_range = like.colorspace, like.color_range
    frame.color_primaries, frame.color_trc = like.color_primaries, like.color_trc
    return frame


def _shape(frame: VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name


def _may_be_interlaced(frame: VideoFrame) -> bool:
    """Return whether a frame is YUV without alpha, as interlaced video always is."""
    return not frame.format.is_rgb and len(frame.format.components) == 3


def _graph_for(frame: VideoFrame) -> tuple[Graph, FilterContext]:
    """Return a filter graph and its input, for frames like this one."""
    from av.filter import Graph

    graph = Graph()
    return graph, graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base="1/1000",  # none of the filters uses timestamps
        colorspace=str(int(frame.colorspace)),
        range=str(int(frame.color_range)),
    )


def _pulled(output: FilterContext) -> Iterator[VideoFrame]:
    """Yield the frames that a filter has ready."""
    import av

    while True:
        try:
            yield output.pull()  # type: ignore[misc]
        except (av.BlockingIOError, av.EOFError):
            return
