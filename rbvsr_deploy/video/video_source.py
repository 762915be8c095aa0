"""Reading a video file: every frame upright, in RGB, with its time stamp."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.base import Frame, Source
from rbvsr_deploy.video.colour import colour_of, to_rgb
from rbvsr_deploy.video.completeness import cut_off, indexed_frames, refuse_cut_off
from rbvsr_deploy.video.orientation import orientation_of, upright
from rbvsr_deploy.video.pyav import media_errors, open_input, reason

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

_FALLBACK_RATE = Fraction(25)
# FFmpeg draws the letters of any text as a video.
_TEXT_FORMATS = frozenset({"tty", "bin", "adf", "idf", "xbin"})


class VideoSource(Source):
    """The first video stream of a file that is not a cover picture.

    Args:
        path: an existing file.

    Raises:
        MediaError: the file is no video, has no video stream, is cut off, or not one of its
            frames can be decoded.
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

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_to = 0  # byte at which the last packet ends
        with media_errors(f"{path} is no complete video, picture or folder of pictures"):
            self._container = self._open()
        try:
            if self._container.format.name in _TEXT_FORMATS:
                raise MediaError(
                    f"{path} is text, no complete video, picture or folder of pictures"
                )
            self._stream = _pick_stream(self._container, path=path)
            self.stream_index = self._stream.index
            if self.reopenable:
                refuse_cut_off(self._container, video=self._stream, path=path)
            self._decoder = self._decode()
            first = next(self._decoder)
            self._first: VideoFrame | None = first
            self._describe(first)
        except BaseException:
            self._container.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        first, self._first = self._first, None
        if first is None:
            raise RuntimeError("a source is read in one pass: open it again for another")
        stamps = _Stamps(self)
        yield self._frame(first, number=1, stamps=stamps)
        for number, decoded in enumerate(self._decoder, start=2):
            yield self._frame(decoded, number=number, stamps=stamps)

    def close(self) -> None:
        self._decoder.close()
        self._container.close()

    def _open(self) -> InputContainer:
        return open_input(self.path)

    def _describe(self, first: VideoFrame) -> None:
        """Takes the properties of the whole video from its first frame."""
        stream = self._stream
        self.tags = {name: text for name, text in stream.metadata.items() if name != "rotate"}
        self.disposition = stream.disposition.value
        self.audio_rates = tuple(audio.sample_rate for audio in self._container.streams.audio)
        self.rate = stream.average_rate or stream.guessed_rate or _FALLBACK_RATE
        self.time_base = stream.time_base or 1 / self.rate
        self.colour = colour_of(first)
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
        if any(component.bits > 8 for component in first.format.components):
            logger.warning("%s has more than 8 bits per sample; they are rounded to 8", self.path)
        if any(component.is_alpha for component in first.format.components):
            logger.warning("%s may be transparent in parts; its opacity is dropped", self.path)
        if first.interlaced_frame:
            logger.warning("%s is interlaced; its frames are taken as they are", self.path)

    def _expected_frames(self) -> int:
        stream = self._stream
        if stream.frames:
            return stream.frames
        if stream.duration and stream.time_base:
            return round(stream.duration * stream.time_base * self.rate)
        if self._container.duration:
            return round(Fraction(self._container.duration, 1_000_000) * self.rate)
        return 0

    def _decode(self) -> Generator[VideoFrame, None, None]:
        """Yields decoded frames; packets that cannot be decoded are left out with a warning."""
        import av

        stream = self._stream
        stream.thread_type = "AUTO"
        packets = damaged = frames = 0
        with media_errors(f"cannot read {self.path} any further"):
            for packet in self._container.demux(stream):
                packets += packet.size > 0
                if packet.pos is not None:
                    self._read_to = packet.pos + packet.size
                try:
                    for frame in packet.decode():
                        frames += 1
                        yield frame
                except av.InvalidDataError as error:
                    damaged += 1
                    logger.debug("packet %d of %s: %s", packets, self.path, reason(error))
        if not frames:
            raise MediaError(
                f"{self.path} holds no video frame that can be decoded "
                f"({packets} packets, {damaged} of them damaged): give a complete video"
            )
        if damaged:
            logger.warning("damaged frames of %s that are left out: %d", self.path, damaged)
        expected = indexed_frames(self._container, stream)
        if packets < expected:
            raise cut_off(self.path, readable=packets, expected=expected)

    def _frame(self, decoded: VideoFrame, *, number: int, stamps: _Stamps) -> Frame:
        with media_errors(f"cannot convert frame {number} of {self.path} to RGB"):
            image = upright(to_rgb(decoded, colour=self.colour), orientation_of(decoded))
        if image.shape[:2] != (self.height, self.width):
            raise MediaError(
                f"frame {number} of {self.path} is {image.shape[1]}x{image.shape[0]}, those before "
                f"are {self.width}x{self.height}: split the video where its size changes"
            )
        return Frame(image=image, pts=stamps.take(decoded), duration=max(decoded.duration, 0))


class _Stamps:
    """Time stamps that exist and increase, as encoders need them."""

    def __init__(self, source: VideoSource) -> None:
        self._path = source.path
        self._period = 1 / (source.rate * source.time_base)
        self._last: int | None = None
        self._derived = Fraction(0)
        self._by_decoding = False
        self._warned = False

    def take(self, frame: VideoFrame) -> int:
        """The stamp of the next frame in ticks: its own, or one derived from the average rate."""
        # Formats without presentation times, such as AVI, tell when a frame leaves the decoder.
        pts = frame.pts if frame.pts is not None else frame.dts
        if pts is None:
            # The last frames leave the decoder after the last packet, hence without a time.
            if not self._by_decoding:
                self._warn("lacks time stamps; they are derived from the average frame rate")
            pts = round(self._derived)
            self._derived += self._period
        else:
            self._derived = pts + self._period
            self._by_decoding = frame.pts is None
        if self._last is not None and pts <= self._last:
            self._warn("has time stamps that do not increase; those are moved by one tick")
            pts = self._last + 1
        self._last = pts
        return pts

    def _warn(self, what: str) -> None:
        if not self._warned:
            logger.warning("%s %s", self._path, what)
        self._warned = True


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
