"""Reads a video file: every frame upright, in RGB, with its timestamp."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.pixels import eight_bits, sixteen_bits
from rbvsr_deploy.video.base import Excerpt, Frame, Source
from rbvsr_deploy.video.colour.colour import colour_of, depth_of, has_alpha, untagged_colour
from rbvsr_deploy.video.colour.conversion import opacity_of, resized, to_rgb
from rbvsr_deploy.video.colour.hdr import TRANSFERS, hdr_metadata
from rbvsr_deploy.video.colour.opacity import keeps_opacity
from rbvsr_deploy.video.colour.orientation import orientation_of, upright
from rbvsr_deploy.video.completeness import cut_off, refuse_cut_off
from rbvsr_deploy.video.decoder import first_frame
from rbvsr_deploy.video.excerpts import count, cut_out
from rbvsr_deploy.video.image_metadata import ImageMetadata, metadata_of_png
from rbvsr_deploy.video.images.files import SUPPORTED
from rbvsr_deploy.video.input_files import InputFiles
from rbvsr_deploy.video.interlacing import CombWatch, Deinterlacer
from rbvsr_deploy.video.options import ReadOptions, WriteOptions
from rbvsr_deploy.video.pyav import media_errors, open_input
from rbvsr_deploy.video.side_data import (
    SideDataWatch,
    captions_of,
    describe_streams,
    stream_side_data,
)
from rbvsr_deploy.video.stream_choice import (
    average_rate,
    choose_video,
    codec_name,
    describe,
    is_chapter_list,
    is_cover,
)
from rbvsr_deploy.video.timing.seeking import has_index
from rbvsr_deploy.video.timing.timestamps import Clock
from rbvsr_deploy.video.video_pass import VideoPass

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

    from rbvsr_deploy.pixels import Image
    from rbvsr_deploy.video.colour.colour import Colour

logger = logging.getLogger(__name__)

# FFmpeg renders any text file as a video.
_TEXT_FORMATS = frozenset({"tty", "bin", "adf", "idf", "xbin"})
# FFmpeg's formats for images, of which it reads only one as a video, without metadata.
_IMAGE_FORMATS = frozenset({"image2", "ico", "fits", "alias_pix", "brender_pix"})
_IMAGE_SUFFIX, _JPEGS = "_pipe", "jpeg_pipe"  # the latter is raw Motion JPEG
_LONGEST_START = 2**24  # bytes of a PNG in which to look for metadata
_CROPPING = "Frame Cropping"  # FFmpeg's name of this side data of a stream
_DEFAULT_READING = ReadOptions()


class VideoSource(Source):
    """Reads the main video stream of a file, see ``choose_video``.

    Frames have the size, bit depth, matrix and range of the first one: others are converted.

    Args:
        path: an existing file.
        options: how to read the file.

    Raises:
        MediaError: the file is not a video, has no video stream, is cut off, has no decodable
            frame, or has no frame in the requested excerpt.
    """

    reopenable = True
    """True if ``path`` can be opened again, to copy the other streams."""
    stream_index: int
    """Index of the video stream in the file."""
    tags: dict[str, str]
    """Metadata of the video stream, such as language and title."""
    disposition: int
    """FFmpeg's disposition flags of the video stream, such as "default"."""
    audio_rates: tuple[int, ...]
    """Sample rates of the audio streams in hertz."""
    audio_codecs: tuple[str, ...]
    """FFmpeg's names of the codecs of the audio streams."""
    has_chapters: bool
    """True if the file has chapters."""

    def __init__(self, path: Path, options: ReadOptions = _DEFAULT_READING) -> None:
        self.path = path
        self._options = options
        self.files = InputFiles(path, [path], whole=False) if self.reopenable else None
        self._opaque = False  # whether frames with alpha were all opaque so far
        self._late: int | None = None  # delay of AVI frames in ticks
        not_media = "not a complete video, image or image folder"
        if self.files is not None:
            self.files.opened()
        with media_errors(f"{path} is {not_media}"):
            self._container = self.open_container()
        try:
            name = self._container.format.name
            if name in _TEXT_FORMATS:
                raise MediaError(f"{path} is text, {not_media}")
            if (name.endswith(_IMAGE_SUFFIX) and name != _JPEGS) or name in _IMAGE_FORMATS:
                raise MediaError(
                    f"{path} is an image of a kind that is not supported "
                    f"({name.removesuffix(_IMAGE_SUFFIX)}): {SUPPORTED}"
                )
            self._stream = choose_video(self._container, path=path)
            self.stream_index = self._stream.index
            self.rate = average_rate(self._stream)
            self._take_stock()
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
            # A requested decoder sees only the packets, not the container's metadata.
            self._default_first = (
                first_frame(
                    path,
                    stream=self.stream_index,
                    decoder=options.decoder,
                    playlists=options.allow_playlists,
                )
                if options.decoder is not None
                else None
            )
            self._frames = self._requested()
            self._first: tuple[VideoFrame, int] | None = next(self._frames)
            self._describe(self._default_first or self._first[0])
        except BaseException:
            self._container.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        first, self._first = self._first, None
        if first is None:
            raise RuntimeError("a source can be read only once: open it again for another pass")
        for number, (decoded, stamp) in enumerate(itertools.chain((first,), self._frames), start=1):
            yield self._frame(decoded, number=number, stamp=stamp)

    def frames_from(self, number: int, *, pts: int | None) -> Iterator[Frame]:
        if not number or pts is None or not self.reopenable:
            yield from itertools.islice(self, number, None)
            return
        self._first = None
        target = pts + self.origin / self.time_base
        for place, (decoded, stamp) in enumerate(
            itertools.dropwhile(lambda item: item[1] < target, self._stamped_from(target)), number
        ):
            yield self._frame(decoded, number=place + 1, stamp=int(stamp - target) + pts)

    @property
    def lost_frames(self) -> int:
        return self._pass.damage.lost

    @property
    def damaged_frames(self) -> int:
        return self._pass.damage.damaged

    @property
    def is_seekable(self) -> bool:
        """Whether :meth:`frames_from` reads no more than it has to, whatever it is asked for."""
        plain = not (self._options.is_excerpt or self._options.deinterlace)
        indexed = has_index(self._container) and self._container.format.name != "avi"
        return self.reopenable and plain and indexed

    @property
    def is_regular(self) -> bool:
        """Whether the frames so far had times of their own, without jumps, and no damage."""
        irregular = self._pass.clock.jumps or self._clock.repaired
        return not (irregular or self.lost_frames or self.damaged_frames)

    def close(self) -> None:
        self._frames.close()
        self._decoder.close()
        self._container.close()

    def drop_companions(self, reason: str, options: WriteOptions) -> None:
        """Report everything but the video as dropped, as the output has no place for it."""
        for stream in self._container.streams:
            asked = {"audio": options.audio, "subtitle": options.subtitles}.get(stream.type, True)
            other = stream.type != "video" or is_cover(stream)
            if asked and other and not is_chapter_list(stream):
                self.changes.drop(describe(stream), reason)
        if self.has_chapters:
            self.changes.drop("chapters", reason)

    def open_container(self) -> InputContainer:
        """Open the file for one more pass; only where it is :attr:`reopenable`."""
        return open_input(self.path, playlists=self._options.allow_playlists)

    def _take_stock(self) -> None:
        """Look at what the file has besides frames."""
        found = stream_side_data(describe_streams(self._container), self.stream_index)
        left, right, top, bottom = map(int, found.get(_CROPPING, "0/0/0/0").split("/"))
        self._crop = top, bottom, left, right
        for other in self._container.streams.video:
            if other.index != self.stream_index and not is_cover(other):
                self.changes.drop(describe(other), "only one video stream is upscaled")
        ignored = set()
        if "stereo_mode" in self._stream.metadata:  # a tag of Matroska, which is copied
            ignored.add("stereoscopic layout")
        self._metadata: ImageMetadata | None = None
        if self._container.format.name == "apng":
            with self.path.open("rb") as file:
                self._metadata = metadata_of_png(file.read(_LONGEST_START))
            for kind, why in self._metadata.lost.items():
                self.changes.drop(kind, why)
            ignored.add("ICC profile of the video")
        self._side_data = SideDataWatch(self.changes, ignored=frozenset(ignored))
        self._side_data.stream(found)

    def _describe(self, first: VideoFrame) -> None:
        """Set the properties of the whole video from its first frame."""
        stream = self._stream
        self.tags = {name: text for name, text in stream.metadata.items() if name != "rotate"}
        self.disposition = stream.disposition.value
        self.audio_rates = tuple(audio.sample_rate for audio in self._container.streams.audio)
        self.audio_codecs = tuple(codec_name(s) or "" for s in self._container.streams.audio)
        self.has_chapters = bool(self._container.chapters())
        self.colour = colour_of(first)
        self.hdr = hdr_metadata(first)
        self.notes = tuple(self._assumptions(first))
        self.depth = depth_of(first.format)
        self.codec, self.pix_fmt = stream.codec_context.name, first.format.name
        self._stored = first.width, first.height
        self._aspect = self._pass.sample_aspect
        with media_errors(f"cannot convert the video of {self.path} to RGB"):
            orientation = orientation_of(first)
            image = upright(self._cropped(to_rgb(first, colour=self.colour)), orientation)
        self.height, self.width = image.shape[:2]
        on_its_side = orientation is not None and orientation[0] == 0
        aspect = stream.sample_aspect_ratio or None
        self.sample_aspect = 1 / aspect if aspect and on_its_side else aspect
        self.frame_count = self._expected_frames() or None
        if orientation is None:
            logger.warning(
                "the rotation of %s is not a multiple of 90 degrees and is not applied", self.path
            )
        # The VP8 and VP9 decoders ignore the alpha channel, which Matroska stores separately.
        readable = has_alpha(first.format)
        if readable and self._options.alpha != "keep":
            self._opaque = True
            self._look_for_opacity(first)
        elif readable or stream.metadata.get("alpha_mode") == "1":
            self.keeps_opacity = keeps_opacity(
                self.path, self._options.alpha, changes=self.changes, readable=readable
            )

    def _look_for_opacity(self, frame: VideoFrame) -> None:
        """Refuse or report an alpha channel, once a frame is not opaque."""
        opacity = opacity_of(frame) if self._opaque else None
        if opacity is not None and opacity.min() < np.iinfo(opacity.dtype).max:
            self._opaque = False
            keeps_opacity(self.path, self._options.alpha, changes=self.changes)

    def _assumptions(self, first: VideoFrame) -> Iterator[str]:
        untagged = untagged_colour(first, read_as=self.colour)
        if untagged is not None:
            yield f"{self.path} has {untagged}"
        if self.colour.transfer in TRANSFERS:
            yield (
                f"{self.path} is HDR ({TRANSFERS[self.colour.transfer]}): it is upscaled without "
                "tone mapping, by a network trained on SDR video, and stays HDR"
            )

    def _expected_frames(self) -> int:
        stream = self._stream
        frames = stream.frames
        if not frames and stream.duration and stream.time_base:
            frames = round(stream.duration * stream.time_base * self.rate)
        if not frames and self._container.duration:
            frames = round(Fraction(self._container.duration, 1_000_000) * self.rate)
        return count(frames, self._options, rate=self.rate)

    def _requested(self) -> Generator[tuple[VideoFrame, int], None, None]:
        """Yield the requested frames with their timestamps."""
        frames = self._stamped()
        ticks: int | None = None
        if not self._options.is_excerpt:
            for frame, stamp in frames:
                if ticks is None:
                    # Never after the first frame, whose time may be a guess.
                    ticks = math.floor(self._pass.clock.origin / self.time_base)
                    ticks = min(ticks, stamp) if ticks else 0
                    self.origin = ticks * self.time_base
                    self.first_time = (stamp - ticks) * self.time_base
                yield frame, stamp - ticks
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
                    self.origin = begin * self.time_base
                    self.excerpt = Excerpt(offset=(begin - zero) * self.time_base)
                yield frame, stamp - begin
        self._clock.report()
        if self._pass.clock.jumps:
            self.changes.convert(
                "timestamps",
                f"the clock of {self.path} jumps {self._pass.clock.jumps} times; the times after a "
                "jump continue those before it",
            )

    def _stamped(self, *, target: Fraction | None = None) -> Iterator[tuple[VideoFrame, int]]:
        """Yield all frames with their timestamps; with a target, from shortly before it on."""
        self._clock = Clock(self.path, time_base=self.time_base, rate=self.rate)
        self._decoder = self._decode(target=target)
        frames = self._clock.read(self._fields.over(self._decoder))
        return self._without_delay(frames) if self._container.format.name == "avi" else frames

    def _without_delay(
        self, frames: Iterator[tuple[VideoFrame, int]]
    ) -> Iterator[tuple[VideoFrame, int]]:
        """Yield the frames of an AVI with the decoder's delay removed from their timestamps.

        AVI has no timestamps: a frame gets that of the packet with which it leaves the decoder,
        and is late by the number of frames the decoder buffers. The first frame belongs to the
        first packet.
        """
        for frame, stamp in frames:
            if self._late is None:
                self._late = stamp - (self._pass.first_stamp or 0)
            yield frame, stamp - self._late

    def _stamped_from(self, target: Fraction) -> Iterator[tuple[VideoFrame, int]]:
        """Yield the frames from ``target`` on, preceded by at least two for deinterlacing, if there
        are any; timestamps and target are in ticks.
        """
        for goal in (target - 2 / (self.rate * self.time_base), None):
            self._decoder.close()
            self._container.close()
            with media_errors(f"cannot read {self.path} a second time"):
                self._container = self.open_container()
            self._stream = choose_video(self._container, path=self.path)
            frames = self._stamped(target=goal)
            first = next(frames, None)
            # In some streams, decoders give frames only some time after a key frame.
            if first is not None and (goal is None or first[1] <= goal):
                return itertools.chain((first,), frames)
        raise MediaError(f"{self.path} changed while it was being read: start again")

    def _decode(self, *, target: Fraction | None) -> Generator[VideoFrame, None, None]:
        self._pass = VideoPass(
            self._container,
            self._stream,
            path=self.path,
            options=self._options,
            rate=self.rate,
            time_base=self.time_base,
            side_data=self._side_data,
            target=None if target is None else target + (self._late or 0),
        )
        yield from self._pass.frames()
        self._check_end()

    def _check_end(self) -> None:
        """Refuse a y4m that ends in the middle of a frame."""
        is_y4m = self._container.format.name == "yuv4mpegpipe"
        if is_y4m and self._pass.read_to != self.path.stat().st_size:
            raise cut_off(self.path, readable=self._pass.packets)

    def _frame(self, decoded: VideoFrame, *, number: int, stamp: int) -> Frame:
        with media_errors(f"cannot convert frame {number} of {self.path} to RGB"):
            orientation = orientation_of(self._default_first or decoded)
            duration = max(decoded.duration, 0)
            colour = self._colour_now(decoded)
            captions = self._captions(decoded)
            decoded = self._resized(decoded, number=number)
            image = upright(self._cropped(to_rgb(decoded, colour=colour)), orientation)
            self._look_for_opacity(decoded)
            opacity = opacity_of(decoded) if self.keeps_opacity else None
            if opacity is not None:
                opacity = upright(self._cropped(opacity), orientation)
        self._check_aspect()
        if image.shape[:2] != (self.height, self.width):
            raise MediaError(
                f"frame {number} of {self.path} is {image.shape[1]}x{image.shape[0]}, but the "
                f"frames before it are {self.width}x{self.height}: split the video where its "
                "rotation changes"
            )
        in_depth = eight_bits if self.depth <= 8 else sixteen_bits
        return Frame(
            image=in_depth(image),
            pts=stamp,
            duration=duration,
            opacity=None if opacity is None else in_depth(opacity),
            captions=captions,
            metadata=self._metadata,
        )

    def _captions(self, frame: VideoFrame) -> bytes | None:
        captions = captions_of(frame)
        if captions is not None and self.keeps_captions:
            self.changes.keep("closed captions", "written with the frames")
        elif captions is not None:
            self.changes.drop("closed captions", "only libx264 and libx265 can be given them")
        return captions

    def _colour_now(self, frame: VideoFrame) -> Colour:
        """Return the colour description of a frame, and report what differs from the first one."""
        colour = colour_of(frame, matrix_if_unknown=self.colour.matrix)
        if (colour.matrix, colour.range) != (self.colour.matrix, self.colour.range):
            self.changes.convert(
                "colour matrix and range",
                "they change within the video; all frames get those of the first",
            )
        if (hdr := hdr_metadata(frame)) is not None and hdr != self.hdr:
            self.changes.drop(
                "later HDR display metadata",
                "it changes within the video; the output has that of the first frame",
            )
        if (colour.primaries, colour.transfer) != (self.colour.primaries, self.colour.transfer):
            self.changes.drop(
                "later colour primaries and transfer",
                "they change within the video; the output is tagged with those of the first frame",
            )
        return colour

    def _resized(self, frame: VideoFrame, *, number: int) -> VideoFrame:
        """Return a frame in the size of the first one, as which it is stored and shown."""
        if (frame.width, frame.height) == self._stored:
            return frame
        width, height = self._stored
        self.changes.convert(
            "frame size",
            f"it changes within the video, to {frame.width}x{frame.height} at frame {number}; all "
            f"frames get the {width}x{height} of the first",
        )
        return resized(frame, width=width, height=height)

    def _cropped(self, image: Image) -> Image:
        """Return the part of a stored frame that the container says to show."""
        top, bottom, left, right = self._crop
        height, width = image.shape[:2]
        cropped = image[top : height - bottom, left : width - right]
        return cropped if cropped.size else image

    def _check_aspect(self) -> None:
        aspect = self._pass.sample_aspect
        if aspect is not None and self._aspect is not None and aspect != self._aspect:
            self.changes.drop(
                "later pixel aspect ratios",
                f"it changes from {self._aspect} to {aspect} within the video; the output keeps "
                "the first",
            )
        self._aspect = self._aspect or aspect
