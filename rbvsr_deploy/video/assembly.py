"""Joins the encoded segments and the streams copied from the source into one video file."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.video.base import Source
from rbvsr_deploy.video.colour.conversion import from_rgb
from rbvsr_deploy.video.copying.copied_streams import CopiedStreams
from rbvsr_deploy.video.copying.packet_copy import UNLISTED_AUDIO, stream_tags
from rbvsr_deploy.video.copying.time_window import TimeWindow
from rbvsr_deploy.video.encoding.packets import StoredPacket, decoding_times, read_packets
from rbvsr_deploy.video.encoding.stream_settings import StreamSettings
from rbvsr_deploy.video.options import WriteOptions
from rbvsr_deploy.video.pyav import open_output
from rbvsr_deploy.video.staging.read_back import Ledger
from rbvsr_deploy.video.video_source import VideoSource

if TYPE_CHECKING:
    from av.stream import Disposition

__all__ = ["Assembly"]

logger = logging.getLogger(__name__)

# These formats can hold any start time and the negative decoding timestamps of B-frames.
_KEEPS_STAMPS = ("mp4", "mov", "matroska", "webm")
_EDITED = ("mp4", "mov")
# Seconds of audio before 0 that are kept for decoders to warm up: more where an edit list hides
# them.
_PREROLL, _HIDDEN_PREROLL = Fraction(3, 100), Fraction(1, 10)
_LARGEST_TIMESCALE = 2**31 - 1


class Assembly(Closing):
    """Muxes a video file without encoding.

    Opening it writes the file's header, which shows early what the format cannot hold.

    Args:
        path: the file to write.
        settings: of the video stream.
        source: where everything else is copied from.
        options: what of it.
        shift: seconds by which times in the output are later than those of the source.
        end: when the last frame ends, in seconds; of an excerpt, everything ends then. ``None``:
            not known yet.

    Raises:
        OSError, ValueError, av.FFmpegError: here and in all methods, if the format cannot hold the
            streams or the disk fails.
        MediaError: the source cannot be read.
    """

    extradata: bytes
    """Codec headers of the whole stream, which must be the same in all segments."""

    def __init__(
        self,
        path: Path,
        *,
        settings: StreamSettings,
        source: Source,
        options: WriteOptions,
        shift: Fraction = Fraction(0),
        end: Fraction | None = None,
    ) -> None:
        self._settings = settings
        self._source = source
        self._shift = shift
        self._end = end
        self._shifts = False
        self._ledger = Ledger(settings.container)
        self._keeps_stamps = settings.container in _KEEPS_STAMPS or settings.constant_rate
        self._copies: CopiedStreams | None = None
        muxing = {"avoid_negative_ts": "disabled"} if self._keeps_stamps else {}
        if settings.container in ("mp4", "mov"):
            muxing["movie_timescale"] = str(_movie_timescale(settings.time_base, source))
            muxing["write_tmcd"] = "1"  # the timecode in the video's tags, if any
        if settings.container in ("matroska", "webm"):
            muxing["fflags"] = "+bitexact"  # otherwise the file has a random number
        unlisted = _has_unlisted_audio(source, options, container=settings.container)
        self._output = open_output(
            path, container=settings.container, options=muxing, any_codec=unlisted
        )
        try:
            self._stream = settings.add_to(self._output)
            if isinstance(source, VideoSource):
                tags = stream_tags(source.tags, container=settings.container)
                if source.excerpt is not None and source.excerpt.offset:
                    # The timecode is that of the input's first frame.
                    tags = {name: tags[name] for name in tags if name.lower() != "timecode"}
                if "stereo_mode" in tags:
                    self._keep_stereo(tags["stereo_mode"])
                self._stream.metadata.update(tags)
                self._stream.disposition = cast("Disposition", source.disposition)
                if source.reopenable:
                    self._copies = CopiedStreams(
                        source,
                        target=self._output,
                        container=settings.container,
                        window=self._window(),
                        options=options,
                        ledger=self._ledger,
                    )
            self._ledger.expect(self._output)
            self._output.start_encoding()
            self.extradata = bytes(self._stream.codec_context.extradata or b"")
        except BaseException:
            self.close()
            raise

    def try_out(self) -> None:
        """Encode and write one black frame, and complete the file, which is of no other use."""
        settings = self._settings
        black = np.zeros((settings.height, settings.width, 3), np.uint8)
        frame = from_rgb(black, pix_fmt=settings.encoder.pix_fmt, colour=settings.frame_colour)
        frame.pts, frame.time_base = 0, settings.time_base
        frame.duration = max(1, round(1 / (settings.rate * settings.time_base)))
        for packet in [*self._stream.encode(frame), *self._stream.encode(None)]:
            packet.stream, packet.time_base = self._stream, settings.time_base
            packet.pts = packet.dts = 0
            self._output.mux_one(packet)
        self._output.close()

    def write(self, files: list[Path], *, delay: int, name: Path) -> None:
        """Write the packets of all segments, interleaved with the copied streams.

        Args:
            files: files of the segments in order, written by ``PacketWriter``.
            delay: number of packets by which decoding is ahead of presentation.
            name: the output's final path, for messages.
        """
        import av

        times = decoding_times(_stamps(files), delay=delay)
        lead: int | None = None  # ticks from the first decoding to the first presentation
        # An error must not leave a file open, which Windows would not remove.
        with contextlib.closing(_packets(files)) as packets:
            # Some times remain unused: decoding ends before presentation does.
            for stored, dts, is_last in _with_last(zip(packets, times, strict=False)):
                self._copy_until(dts * self._settings.time_base, name=name)
                packet = av.Packet(stored.data)
                packet.stream = self._stream
                packet.time_base = self._settings.time_base
                packet.pts, packet.dts = stored.pts, dts
                packet.duration = stored.duration
                packet.is_keyframe = stored.is_keyframe
                lead = stored.pts - dts if lead is None else lead
                if is_last:  # if the last frame comes late, nothing need be decoded long before
                    packet.dts = dts = max(dts, stored.pts - lead)
                if is_last and self._end is not None and self._settings.container in _EDITED:
                    # They take the length of the video from the packet that is decoded last, which
                    # need not be that of the frame shown last.
                    end = round(self._end / self._settings.time_base)
                    rest = min(end - dts - lead, end - stored.pts)
                    packet.duration = max(stored.duration, rest)
                self._ledger.note(packet)
                self._output.mux_one(packet)

    def finish(self) -> None:
        """Write the rest of the copied streams and complete the file."""
        if self._copies is not None:
            self._copies.advance(None)
        self._output.close()

    def check(self, path: Path, *, name: Path) -> None:
        """Read the finished file back and compare it with what was written.

        Args:
            path: the file.
            name: the output's final path, for messages.

        Raises:
            MediaError: the file's video is not what was written.
        """
        self._ledger.check(path, name=name, changes=self._source.changes)

    def close(self) -> None:
        """Release everything; the file is unusable unless ``finish`` was called."""
        if self._copies is not None:
            self._copies.close()
        # Closing completes the file, which may fail again for the same reason as before.
        with contextlib.suppress(Exception):
            self._output.close()

    def _keep_stereo(self, layout: str) -> None:
        """Report whether the format has a place for the layout of two views in a frame."""
        if self._settings.container in ("matroska", "webm"):
            self._source.changes.keep("stereoscopic layout", f"{layout}, written by the muxer")
        else:
            self._source.changes.drop(
                "stereoscopic layout", f"it is {layout}, which only .mkv and .webm can say"
            )

    def _window(self) -> TimeWindow:
        source, container = self._source, self._settings.container
        preroll = _HIDDEN_PREROLL if container in _EDITED else _PREROLL
        return TimeWindow(
            start=source.origin - self._shift,
            end=None if source.excerpt is None else self._end,
            holds_negative=container in _KEEPS_STAMPS or not self._keeps_stamps,
            preroll=Fraction(0) if source.excerpt is not None else preroll,
        )

    def _copy_until(self, time: Fraction, *, name: Path) -> None:
        """Write the copied streams up to the decoding time of the next video packet."""
        start = time
        if self._copies is not None and self._copies.start is not None:
            start = min(time, self._copies.start)
        means_time = not self._keeps_stamps and self._settings.container != "mpegts"
        if start < 0 and not self._shifts and means_time:
            logger.warning(
                "%s cannot hold negative timestamps: all its streams are %.3f s later than in %s",
                name,
                float(-start),
                self._source.path,
            )
            self._shifts = True
        if self._copies is not None:
            self._copies.advance(time)


def _packets(files: list[Path]) -> Generator[StoredPacket, None, None]:
    for file in files:
        yield from read_packets(file)


def _with_last(
    packets: Iterator[tuple[StoredPacket, int]],
) -> Iterator[tuple[StoredPacket, int, bool]]:
    """Yield packets with their decoding times, and whether each is the last one."""
    held = next(packets, None)
    while held is not None:
        following = next(packets, None)
        yield (*held, following is None)
        held = following


def _stamps(files: list[Path]) -> Iterator[int]:
    """Yield the presentation times of all packets, sorted; segments do not overlap in time."""
    for file in files:
        yield from sorted(packet.pts for packet in read_packets(file, data=False))


def _has_unlisted_audio(source: Source, options: WriteOptions, *, container: str) -> bool:
    """Return whether the source has audio that the muxer writes but does not list."""
    return (
        container == "matroska"
        and options.audio
        and isinstance(source, VideoSource)
        and not source.has_chapters  # which would be lost on that way
        and any(codec in UNLISTED_AUDIO for codec in source.audio_codecs)
    )


def _movie_timescale(time_base: Fraction, source: Source) -> int:
    """Return the movie timescale of an MP4 in ticks per second, which the edit lists use.

    The default of 1000 would shift tracks that do not start at 0 by up to half a millisecond.
    """
    scale = time_base.denominator
    if isinstance(source, VideoSource):
        for rate in source.audio_rates:
            common = math.lcm(scale, rate)
            scale = common if common <= _LARGEST_TIMESCALE else scale
    return min(scale, _LARGEST_TIMESCALE)
