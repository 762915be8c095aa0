"""Reading a video file: every frame upright, in RGB, with its time stamp."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.base import Excerpt, Frame, Source
from rbvsr_deploy.video.colour.colour import colour_of, depth_of, has_alpha, untold_colour
from rbvsr_deploy.video.colour.conversion import opacity_of, to_rgb
from rbvsr_deploy.video.colour.hdr import TRANSFERS, dynamic_metadata, hdr_metadata
from rbvsr_deploy.video.colour.opacity import keeps_opacity
from rbvsr_deploy.video.colour.orientation import orientation_of, upright
from rbvsr_deploy.video.completeness import cut_off, refuse_cut_off
from rbvsr_deploy.video.decoder import first_frame
from rbvsr_deploy.video.excerpts import count, cut_out
from rbvsr_deploy.video.interlacing import CombWatch, Deinterlacer
from rbvsr_deploy.video.options import ReadOptions
from rbvsr_deploy.video.pyav import media_errors, open_input
from rbvsr_deploy.video.timestamps import Clock, Discontinuity
from rbvsr_deploy.video.video_pass import VideoPass

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

_FALLBACK_RATE, _FASTEST = Fraction(25), 500
# FFmpeg draws the letters of any text as a video.
_TEXT_FORMATS = frozenset({"tty", "bin", "adf", "idf", "xbin"})
_DISCONTINUOUS = 0x0200  # AVFMT_TS_DISCONT
_DEFAULT_READING = ReadOptions()


class VideoSource(Source):
    """The first video stream of a file that is not a cover picture.

    Args:
        path: an existing file.
        options: how it is read.

    Raises:
        MediaError: the file is no video, has no video stream, is cut off, or not one of its
            frames can be decoded; or it has no frame in the excerpt that is asked for.
    """

    reopenable = True
    """Whether ``path`` can be opened again, for what is there beside the video."""
    stream_index: int
    """Number of the video stream within the file."""
    tags: dict[str, str]
    """Language, title and the like of the video stream."""
    disposition: int
    """Flags of the video stream such as "default", as FFmpeg counts them."""
    audio_rates: tuple[int, ...]
    """Samples per second of the audio streams."""

    def __init__(self, path: Path, options: ReadOptions = _DEFAULT_READING) -> None:
        self.path = path
        self._options = options
        self._late: int | None = None  # ticks by which frames of an AVI leave the decoder
        with media_errors(f"{path} is no complete video, picture or folder of pictures"):
            self._container = self._open()
        try:
            if self._container.format.name in _TEXT_FORMATS:
                raise MediaError(
                    f"{path} is text, no complete video, picture or folder of pictures"
                )
            self._stream = _pick_stream(self._container, path=path)
            self.stream_index = self._stream.index
            self.rate = _rate(self._stream)
            if self.reopenable:
                refuse_cut_off(
                    self._container,
                    video=self._stream,
                    rate=self.rate,
                    path=path,
                    options=options,
                )
            self.time_base = self._stream.time_base or 1 / self.rate
            self._fields = Deinterlacer(path) if options.deinterlace else CombWatch(path)
            # A decoder that was asked for knows only what is in the packets.
            self._usual_first = (
                first_frame(path, stream=self.stream_index, decoder=options.decoder)
                if options.decoder is not None
                else None
            )
            self._frames = self._shown()
            self._first: tuple[VideoFrame, int] | None = next(self._frames)
            self._describe(self._usual_first or self._first[0])
        except BaseException:
            self._container.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        first, self._first = self._first, None
        if first is None:
            raise RuntimeError("a source is read in one pass: open it again for another")
        for number, (decoded, stamp) in enumerate(itertools.chain((first,), self._frames), start=1):
            yield self._frame(decoded, number=number, stamp=stamp)

    @property
    def lost_frames(self) -> int:
        return self._pass.damage.lost

    @property
    def damaged_frames(self) -> int:
        return self._pass.damage.damaged

    def close(self) -> None:
        self._frames.close()
        self._decoder.close()
        self._container.close()

    @property
    def discontinuities(self) -> list[Discontinuity]:
        """Where the clock of the file is set anew, as far as frames were read."""
        return self._clock.discontinuities

    def _open(self) -> InputContainer:
        return open_input(self.path)

    def _describe(self, first: VideoFrame) -> None:
        """Takes the properties of the whole video from its first frame."""
        stream = self._stream
        self.tags = {name: text for name, text in stream.metadata.items() if name != "rotate"}
        self.disposition = stream.disposition.value
        self.audio_rates = tuple(audio.sample_rate for audio in self._container.streams.audio)
        self.colour = colour_of(first)
        self.hdr = hdr_metadata(first)
        self.notes = tuple(self._assumptions(first))
        self.depth = depth_of(first.format)
        self.codec, self.pix_fmt = stream.codec_context.name, first.format.name
        with media_errors(f"cannot convert the video of {self.path} to RGB"):
            orientation = orientation_of(first)
            image = upright(to_rgb(first, colour=self.colour), orientation)
        self.height, self.width = image.shape[:2]
        on_its_side = orientation is not None and orientation[0] == 0
        aspect = stream.sample_aspect_ratio or None
        self.sample_aspect = 1 / aspect if aspect and on_its_side else aspect
        self.frame_count = self._expected_frames() or None
        if orientation is None:
            logger.warning("%s is rotated by no multiple of 90 degrees: not applied", self.path)
        # The decoders of VP8 and VP9 leave out what Matroska holds beside the pictures.
        readable = has_alpha(first.format)
        if readable or stream.metadata.get("alpha_mode") == "1":
            self.keeps_opacity = keeps_opacity(self.path, self._options.alpha, readable=readable)
        if (dynamic := dynamic_metadata(first)) is not None:
            logger.warning("the %s metadata of %s cannot be kept", dynamic, self.path)

    def _assumptions(self, first: VideoFrame) -> Iterator[str]:
        untold = untold_colour(first, read_as=self.colour)
        if untold is not None:
            yield f"{self.path} tells {untold}"
        if self.colour.transfer in TRANSFERS:
            yield (
                f"{self.path} is HDR ({TRANSFERS[self.colour.transfer]}): it is enlarged as it is "
                "coded, by a network that knows ordinary video, and stays HDR"
            )

    def _expected_frames(self) -> int:
        stream = self._stream
        frames = stream.frames
        if not frames and stream.duration and stream.time_base:
            frames = round(stream.duration * stream.time_base * self.rate)
        if not frames and self._container.duration:
            frames = round(Fraction(self._container.duration, 1_000_000) * self.rate)
        return count(frames, self._options, rate=self.rate)

    def _shown(self) -> Generator[tuple[VideoFrame, int], None, None]:
        """Yields the frames that are asked for, each with its time stamp."""
        frames = self._stamped()
        if not self._options.is_excerpt:
            yield from frames
        else:
            first = next(frames)
            zero = first[1]
            if self._options.start and self.reopenable:
                frames = self._stamped_from(zero + self._options.start / self.time_base)
            else:
                frames = itertools.chain((first,), frames)
            timed = (
                (
                    (frame, stamp),
                    (stamp - zero) * self.time_base,
                    max(frame.duration, 0) * self.time_base or 1 / self.rate,
                )
                for frame, stamp in frames
            )
            begin: int | None = None
            for frame, stamp in cut_out(timed, self._options, path=self.path):
                if begin is None:
                    begin = stamp
                    self.excerpt = Excerpt(
                        start=begin * self.time_base, offset=(begin - zero) * self.time_base
                    )
                yield frame, stamp - begin
        self._clock.tell()

    def _stamped(self, *, target: Fraction | None = None) -> Iterator[tuple[VideoFrame, int]]:
        """All frames with their time stamps; with a target, those from shortly before it on."""
        self._clock = Clock(
            self.path,
            time_base=self.time_base,
            rate=self.rate,
            discontinuous=bool(self._container.format.flags & _DISCONTINUOUS),
        )
        self._decoder = self._decode(target=target)
        frames = self._clock.read(self._fields.over(self._decoder))
        return self._on_time(frames) if self._container.format.name == "avi" else frames

    def _on_time(
        self, frames: Iterator[tuple[VideoFrame, int]]
    ) -> Iterator[tuple[VideoFrame, int]]:
        """AVI tells no times, and frames have those of the packets with which they leave the
        decoder, late by as many as it holds back. The first is due with the first packet.
        """
        for frame, stamp in frames:
            if self._late is None:
                self._late = stamp - (self._pass.first_stamp or 0)
            yield frame, stamp - self._late

    def _stamped_from(self, target: Fraction) -> Iterator[tuple[VideoFrame, int]]:
        """Frames from ``target`` on, and at least two before, if there are, which deinterlacing
        looks at; stamps and target are in ticks.
        """
        for goal in (target - 2 / (self.rate * self.time_base), None):
            self._decoder.close()
            self._container.close()
            with media_errors(f"cannot read {self.path} a second time"):
                self._container = self._open()
            self._stream = _pick_stream(self._container, path=self.path)
            frames = self._stamped(target=goal)
            first = next(frames, None)
            # Some streams have key frames from which decoders need a while to find in.
            if first is not None and (goal is None or first[1] <= goal):
                return itertools.chain((first,), frames)
        raise MediaError(f"{self.path} has changed while it was read: start again")

    def _decode(self, *, target: Fraction | None) -> Generator[VideoFrame, None, None]:
        self._pass = VideoPass(
            self._container,
            self._stream,
            path=self.path,
            options=self._options,
            rate=self.rate,
            time_base=self.time_base,
            target=None if target is None else target + (self._late or 0),
        )
        yield from self._pass.frames()
        self._check_end()

    def _check_end(self) -> None:
        """Refuses a file that ends within a frame: a y4m, which holds nothing but frames."""
        is_y4m = self._container.format.name == "yuv4mpegpipe"
        if is_y4m and self._pass.read_to != self.path.stat().st_size:
            raise cut_off(self.path, readable=self._pass.packets)

    def _frame(self, decoded: VideoFrame, *, number: int, stamp: int) -> Frame:
        with media_errors(f"cannot convert frame {number} of {self.path} to RGB"):
            orientation = orientation_of(self._usual_first or decoded)
            image = upright(to_rgb(decoded, colour=self.colour), orientation)
            opacity = opacity_of(decoded) if self.keeps_opacity else None
            if opacity is not None:
                opacity = upright(opacity, orientation)
        if image.shape[:2] != (self.height, self.width):
            raise MediaError(
                f"frame {number} of {self.path} is {image.shape[1]}x{image.shape[0]}, those before "
                f"are {self.width}x{self.height}: split the video where its size changes"
            )
        duration = max(decoded.duration, 0)
        return Frame(image=image, pts=stamp, duration=duration, opacity=opacity)


def _rate(stream: VideoStream) -> Fraction:
    """Average frames per second. Where frames come at no constant rate, the other two can be that
    of the stream's clock.
    """
    rates = (stream.average_rate, stream.codec_context.framerate, stream.guessed_rate)
    return next((rate for rate in rates if rate and rate <= _FASTEST), _FALLBACK_RATE)


def _pick_stream(container: InputContainer, *, path: Path) -> VideoStream:
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise MediaError(
                    f"{path} is coded in a way that this build of FFmpeg cannot decode"
                )
            return stream
    kinds = ", ".join(sorted({stream.type for stream in container.streams}))
    found = f"only {kinds}" if kinds else "nor any other"
    raise MediaError(f"{path} has no video stream, {found}: give a file with moving pictures")
