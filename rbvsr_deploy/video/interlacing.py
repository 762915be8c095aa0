"""Interlaced videos, whose frames hold two moments each: telling that one is, and deinterlacing."""

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

# Frames that are looked at where none is marked as interlaced. A tenth of what reading them takes.
_LOOK = 100
# The same before the first frame is deinterlaced; so many are held in memory meanwhile.
_LOOK_AHEAD = 25
# By how much the fields must be closer to the frame on one side than to that on the other. With
# FFmpeg's own 1.04, vertical motion in soft pictures looks like combs; at 1.4, much that is
# interlaced is overlooked.
_CLOSER = "1.1"
# Share of frames that are combed in the order of an interlaced video, and in the other order.
_COMBED, _OTHERWISE = 0.6, 0.1
_FEWEST = 8


class CombWatch:
    """Warns once if a video is interlaced, or looks so.

    Args:
        path: of the file, for the warning.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said = False

    def over(self, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        """Passes decoded frames on."""
        combs: _Combs | None = None
        try:
            for frame in frames:
                if not self._said:
                    if frame.interlaced_frame:
                        self._say("is marked as interlaced: if it has combs, use --deinterlace")
                    elif combs is None and _may_be_interlaced(frame):
                        combs = _Combs(frame)
                    if combs is not None and combs.frames < _LOOK:
                        combs.look_at(frame)
                        if combs.frames == _LOOK:
                            self._conclude(combs)
                yield frame
        finally:  # also where no more frames are asked for
            if combs is not None and combs.frames < _LOOK:
                self._conclude(combs)

    def _conclude(self, combs: _Combs) -> None:
        if combs.order is not None:
            first = {"tff": "top", "bff": "bottom"}[combs.order]
            self._say(f"looks interlaced, {first} field first: use --deinterlace")

    def _say(self, what: str) -> None:
        if not self._said:
            logger.warning("%s %s, or its combs are enlarged", self._path, what)
        self._said = True


class Deinterlacer:
    """Makes a whole picture of the first field of every frame; all else stays as it is.

    Where one of the first frames is marked as interlaced, those that are not stay as they are.
    Where none is, all frames are deinterlaced, in the order of fields that they look like.

    Args:
        path: of the file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said = False

    def over(self, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        """As many frames as come in, with their time stamps.

        Raises:
            MediaError: the frames are too small to have fields.
        """
        coming = iter(frames)
        start = list(itertools.islice(coming, _LOOK_AHEAD))
        options = {"mode": "send_frame", "parity": "auto", "deint": "interlaced"}
        guess = False
        with media_errors(f"cannot deinterlace {self._path}"):
            if start and not any(frame.interlaced_frame for frame in start):
                order = self._order(start)
                options |= {"parity": order or "auto", "deint": "all"}
                guess = order is None
            # A filter cannot take frames that change their size.
            for _, alike in itertools.groupby(itertools.chain(start, coming), key=_shape):
                yield from _deinterlaced(alike, options, guess=guess)

    def _order(self, frames: Sequence[VideoFrame]) -> str | None:
        combs = _Combs(frames[0])
        for frame in frames:
            combs.look_at(frame)
        if combs.order is None and not self._said:
            self._said = True
            logger.warning(
                "%s does not look interlaced; it is deinterlaced nevertheless", self._path
            )
        return combs.order


class _Combs:
    """How many frames of a video look combed."""

    frames: int
    """That were looked at."""

    def __init__(self, first: VideoFrame) -> None:
        self.frames = 0
        self._shape = _shape(first)
        self._graph, self._input = _graph_for(first)
        detector, split = self._graph.add("idet", intl_thres=_CLOSER), self._graph.add("split")
        self._input.link_to(detector)
        detector.link_to(split)
        # PyAV 17 cannot read what a filter says about a frame, hence the filters that let pass
        # those frames only of which a certain thing is said.
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
        """ "tff" or "bff", top or bottom field first; ``None``: not interlaced."""
        order = max(self._combed, key=lambda order: self._combed[order])
        combed, otherwise = self._combed[order], sum(self._combed.values()) - self._combed[order]
        many = combed >= max(_FEWEST, _COMBED * self.frames)
        return order if many and otherwise <= _OTHERWISE * self.frames else None

    def look_at(self, frame: VideoFrame) -> None:
        self.frames += 1
        # A video whose size changes is none that is interlaced.
        if _shape(frame) == self._shape:
            self._input.push(frame)
            for order, output in self._outputs.items():
                self._combed[order] += sum(1 for _ in _pulled(output))


def _deinterlaced(
    frames: Iterable[VideoFrame], options: dict[str, str], *, guess: bool
) -> Iterator[VideoFrame]:
    """Frames of one shape; ``guess``: in the order that each looks like."""
    frames = iter(frames)
    first = next(frames)
    graph, input_ = _graph_for(first)
    last = input_
    for name, wishes in ([("idet", {"intl_thres": _CLOSER})] if guess else []) + [
        ("bwdif", options)
    ]:
        added = graph.add(name, **wishes)
        last.link_to(added)
        last = added
    output = graph.add("buffersink")
    last.link_to(output)
    graph.configure()
    # One frame comes out for each that went in, later, and with time stamps of another unit.
    waiting: deque[VideoFrame] = deque()
    for frame in itertools.chain([first], frames, [None]):
        if frame is not None:
            waiting.append(frame)
        input_.push(frame)
        for whole in _pulled(output):
            yield _described_as(waiting.popleft(), whole)


def _described_as(frame: VideoFrame, picture: VideoFrame) -> VideoFrame:
    """``picture`` with the times and colours of ``frame``."""
    picture.pts, picture.time_base = frame.pts, frame.time_base
    picture.dts, picture.duration = frame.dts, frame.duration
    picture.colorspace, picture.color_range = frame.colorspace, frame.color_range
    picture.color_primaries, picture.color_trc = frame.color_primaries, frame.color_trc
    return picture


def _shape(frame: VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name


def _may_be_interlaced(frame: VideoFrame) -> bool:
    """Whether it is in the colours of television."""
    return not frame.format.is_rgb and len(frame.format.components) == 3


def _graph_for(frame: VideoFrame) -> tuple[Graph, FilterContext]:
    """A graph of filters and its input, for frames like this one."""
    from av.filter import Graph

    graph = Graph()
    return graph, graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base="1/1000",  # no filter here looks at times
        colorspace=str(int(frame.colorspace)),
        range=str(int(frame.color_range)),
    )


def _pulled(output: FilterContext) -> Iterator[VideoFrame]:
    """What a filter has ready."""
    import av

    while True:
        try:
            yield output.pull()  # type: ignore[misc]
        except (av.BlockingIOError, av.EOFError):
            return
