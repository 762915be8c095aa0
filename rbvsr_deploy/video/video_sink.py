"""Writing a video file: the frames encoded, everything else copied from the source."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.base import Frame, Sink, Source
from rbvsr_deploy.video.colour import FULL, RGB_MATRIX, Colour, from_rgb
from rbvsr_deploy.video.copied_streams import CopiedStreams, portable_tags
from rbvsr_deploy.video.encoder import Encoder, needs_constant_rate
from rbvsr_deploy.video.publish import Publication
from rbvsr_deploy.video.pyav import media_errors, open_output
from rbvsr_deploy.video.video_source import VideoSource

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.stream import Disposition
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

# These formats hold any start and the negative decoding times of B-frames as they are.
_KEEPS_STAMPS = ("mp4", "mov", "matroska", "webm")
# Half a millisecond: nobody sees it, and formats of constant rate round to less.
_NOTABLE_SHIFT = Fraction(1, 2000)
_LARGEST_TIMESCALE = 2**31 - 1


class VideoSink(Sink):
    """One video file.

    Args:
        path: the file to publish.
        source: whose time stamps, colours, sound and subtitles the output takes over.
        width, height: size of the frames that will be written, in pixels.
        container: FFmpeg's name of the output's format.
        encoder: how the frames are encoded.
        overwrite: whether an existing file may be replaced.

    Raises:
        MediaError: the output cannot be opened with these settings.
    """

    def __init__(
        self,
        path: Path,
        *,
        source: Source,
        width: int,
        height: int,
        container: str,
        encoder: Encoder,
        overwrite: bool = False,
    ) -> None:
        self.path = path
        self._size = (width, height)
        self._source = source
        self._colour = source.colour
        self._pix_fmt = encoder.pix_fmt
        self._constant_rate = needs_constant_rate(container, codec=encoder.name)
        self._time_base = 1 / source.rate if self._constant_rate else source.time_base
        self._next_pts = 0
        self._frames = 0
        self._warned = False
        self._shifts = False
        self._keeps_stamps = container in _KEEPS_STAMPS or self._constant_rate
        self._copies: CopiedStreams | None = None
        self._container: OutputContainer | None = None
        self._publication = Publication(path, overwrite=overwrite, folder=False)
        try:
            with media_errors(f"cannot write {path} as {container} with {encoder.name}"):
                self._open(container, encoder)
        except BaseException:
            self.close()
            raise

    def write(self, frame: Frame) -> None:
        width, height = self._size
        if frame.image.shape != (height, width, 3) or frame.image.dtype != np.uint8:
            raise ValueError(
                f"expected uint8 ({height}, {width}, 3), "
                f"got {frame.image.dtype} {frame.image.shape}"
            )
        with self._writing():
            picture = from_rgb(frame.image, pix_fmt=self._pix_fmt, colour=self._colour)
            picture.pts = self._stamp(frame)
            picture.time_base = self._time_base
            picture.duration = round(frame.duration * self._source.time_base / self._time_base)
            self._mux(picture)
        self._frames += 1

    def finish(self) -> None:
        if not self._frames:
            self.close()
            raise MediaError(f"{self.path} is not written: there was no frame to write")
        try:
            with self._writing():
                self._mux(None)
                if self._copies is not None:
                    self._copies.advance(None)
                self._opened().close()
        except BaseException:
            self.close()
            raise
        self._close_copies()
        self._container = None
        self._publication.publish()

    def close(self) -> None:
        self._close_copies()
        if self._container is not None:
            with contextlib.suppress(Exception):
                self._container.close()
            self._container = None
        self._publication.discard()

    def _open(self, container: str, encoder: Encoder) -> None:
        options = {"avoid_negative_ts": "disabled"} if self._keeps_stamps else {}
        if container in ("mp4", "mov"):
            options["movie_timescale"] = str(_movie_timescale(self._time_base, self._source))
        output = open_output(self._publication.temp, container=container, options=options)
        self._container = output
        stream = cast(
            "VideoStream",
            output.add_stream(encoder.name, rate=self._source.rate, options=encoder.options),
        )
        self._stream = stream
        self._configure(stream, encoder)
        if isinstance(self._source, VideoSource):
            stream.metadata.update(portable_tags(self._source.tags))
            stream.disposition = cast("Disposition", self._source.disposition)
            self._copies = CopiedStreams(self._source, target=output)
        output.start_encoding()

    def _configure(self, stream: VideoStream, encoder: Encoder) -> None:
        from av.codec.context import Flags

        context = stream.codec_context
        context.width, context.height = self._size
        context.pix_fmt = encoder.pix_fmt
        context.time_base = stream.time_base = self._time_base
        context.flags |= Flags.frame_duration
        if self._source.sample_aspect is not None:
            context.sample_aspect_ratio = self._source.sample_aspect
        if self._constant_rate:
            # Without time stamps in the file, pictures must be stored in the order shown.
            context.max_b_frames = 0
        self._colour = _tagged(context, colour=self._colour, pix_fmt=encoder.pix_fmt)

    def _mux(self, picture: VideoFrame | None) -> None:
        output = self._opened()
        for packet in self._stream.encode(picture):
            stamp = packet.dts if packet.dts is not None else packet.pts
            if stamp is not None:
                self._bring_along(stamp * packet.time_base)
            output.mux_one(packet)

    def _bring_along(self, time: Fraction) -> None:
        """Writes what is copied up to the decoding time of the video's next packet."""
        start = time
        if self._copies is not None and self._copies.start is not None:
            start = min(time, self._copies.start)
        if start < 0 and not self._shifts and not self._keeps_stamps:
            logger.warning(
                "%s cannot hold times before 0: everything in it comes %.3f s later than in %s",
                self.path,
                float(-start),
                self._source.path,
            )
            self._shifts = True
        if self._copies is not None:
            self._copies.advance(time)

    def _stamp(self, frame: Frame) -> int:
        """The frame's time stamp in ticks of the encoder."""
        exact = (
            Fraction(self._next_pts)
            if frame.pts is None
            else frame.pts * self._source.time_base / self._time_base
        )
        pts = round(exact)
        if pts < self._next_pts and self._frames:
            raise MediaError(
                f"{self.path} can hold a constant frame rate only, and the time stamps of "
                f"{self._source.path} vary: give the output a name ending in .mkv or .mp4"
            )
        if abs(exact - pts) * self._time_base > _NOTABLE_SHIFT and not self._warned:
            logger.warning("%s holds a constant frame rate only: frames move in time", self.path)
            self._warned = True
        self._next_pts = pts + 1
        return pts

    def _opened(self) -> OutputContainer:
        if self._container is None:
            raise ValueError(f"{self.path} is finished or closed")
        return self._container

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return media_errors(f"cannot write {self.path}")

    def _close_copies(self) -> None:
        if self._copies is not None:
            self._copies.close()
            self._copies = None


def _movie_timescale(time_base: Fraction, source: Source) -> int:
    """Ticks per second of an MP4's own clock, in which the start of every track is kept.

    The usual 1000 would move tracks that do not start at 0 by up to half a millisecond.
    """
    scale = time_base.denominator
    if isinstance(source, VideoSource):
        for rate in source.audio_rates:
            common = math.lcm(scale, rate)
            scale = common if common <= _LARGEST_TIMESCALE else scale
    return min(scale, _LARGEST_TIMESCALE)


def _tagged(context: VideoCodecContext, *, colour: Colour, pix_fmt: str) -> Colour:
    """Tells the encoder the colours it gets; returns how frames have to be converted for it."""
    from av.video.format import VideoFormat

    if pix_fmt.startswith("yuvj"):
        colour = dataclasses.replace(colour, range=FULL)
    rgb = VideoFormat(pix_fmt, 16, 16).is_rgb
    context.colorspace = RGB_MATRIX if rgb else colour.matrix
    context.color_range = FULL if rgb else colour.range
    context.color_primaries = colour.primaries
    context.color_trc = colour.transfer
    return colour
