"""Joins the encoded segments and the streams copied from the source into one video file."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.video.base import Source
from rbvsr_deploy.video.copying.copied_streams import CopiedStreams
from rbvsr_deploy.video.copying.packet_copy import portable_tags
from rbvsr_deploy.video.copying.time_window import TimeWindow
from rbvsr_deploy.video.encoding.packets import StoredPacket, decoding_times, read_packets
from rbvsr_deploy.video.encoding.stream_settings import StreamSettings
from rbvsr_deploy.video.options import WriteOptions
from rbvsr_deploy.video.pyav import open_output
from rbvsr_deploy.video.video_source import VideoSource

if TYPE_CHECKING:
    from av.stream import Disposition

__all__ = ["Assembly"]

logger = logging.getLogger(__name__)

# These formats can hold any start time and the negative decoding timestamps of B-frames.
_KEEPS_STAMPS = ("mp4", "mov", "matroska", "webm")
_LARGEST_TIMESCALE = 2**31 - 1


class Assembly(Closing):
    """Muxes a video file without encoding.

    Opening it writes the file's header, which shows early what the format cannot hold.

    Args:
        path: the file to write.
        settings: of the video stream.
        source: where everything else is copied from.
        options: what of it.
        end: when the last frame ends, in seconds; of an excerpt, everything ends then. ``None``:
            not known yet.
        reported: whether the user already knows which streams are left out or converted.

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
        end: Fraction | None = None,
        reported: bool = False,
    ) -> None:
        self._settings = settings
        self._source = source
        self._shifts = False
        self._keeps_stamps = settings.container in _KEEPS_STAMPS or settings.constant_rate
        self._copies: CopiedStreams | None = None
        muxing = {"avoid_negative_ts": "disabled"} if self._keeps_stamps else {}
        if settings.container in ("mp4", "mov"):
            muxing["movie_timescale"] = str(_movie_timescale(settings.time_base, source))
            muxing["write_tmcd"] = "1"  # the timecode in the video's tags, if any
        self._output = open_output(path, container=settings.container, options=muxing)
        try:
            self._stream = settings.add_to(self._output)
            if isinstance(source, VideoSource):
                tags = portable_tags(source.tags)
                if source.excerpt is not None and source.excerpt.offset:
                    # The timecode is that of the input's first frame.
                    tags = {name: tags[name] for name in tags if name.lower() != "timecode"}
                self._stream.metadata.update(tags)
                self._stream.disposition = cast("Disposition", source.disposition)
                if source.reopenable:
                    self._copies = CopiedStreams(
                        source,
                        target=self._output,
                        window=self._window(end),
                        options=options,
                        reported=reported,
                    )
            self._output.start_encoding()
            self.extradata = bytes(self._stream.codec_context.extradata or b"")
        except BaseException:
            self.close()
            raise

    def write(self, files: list[Path], *, delay: int, name: Path) -> None:
        """Write the packets of all segments, interleaved with the copied streams.

        Args:
            files: files of the segments in order, written by ``PacketWriter``.
            delay: number of packets by which decoding is ahead of presentation.
            name: the output's final path, for messages.
        """
        import av

        times = decoding_times(_stamps(files), delay=delay)
        # An error must not leave a file open, which Windows would not remove.
        with contextlib.closing(_packets(files)) as packets:
            # Some times remain unused: decoding ends before presentation does.
            for stored, dts in zip(packets, times, strict=False):
                self._copy_until(dts * self._settings.time_base, name=name)
                packet = av.Packet(stored.data)
                packet.stream = self._stream
                packet.time_base = self._settings.time_base
                packet.pts, packet.dts = stored.pts, dts
                packet.duration = stored.duration
                packet.is_keyframe = stored.is_keyframe
                self._output.mux_one(packet)

    def finish(self) -> None:
        """Write the rest of the copied streams and complete the file."""
        if self._copies is not None:
            self._copies.advance(None)
        self._output.close()

    def close(self) -> None:
        """Release everything; the file is unusable unless ``finish`` was called."""
        if self._copies is not None:
            self._copies.close()
        # Closing completes the file, which may fail again for the same reason as before.
        with contextlib.suppress(Exception):
            self._output.close()

    def _window(self, end: Fraction | None) -> TimeWindow | None:
        excerpt = self._source.excerpt
        if excerpt is None:
            return None
        holds_negative = self._settings.container in _KEEPS_STAMPS
        return TimeWindow(start=excerpt.start, end=end, holds_negative=holds_negative)

    def _copy_until(self, time: Fraction, *, name: Path) -> None:
        """Write the copied streams up to the decoding time of the next video packet."""
        start = time
        if self._copies is not None and self._copies.start is not None:
            start = min(time, self._copies.start)
        if start < 0 and not self._shifts and not self._keeps_stamps:
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


def _stamps(files: list[Path]) -> Iterator[int]:
    """Yield the presentation times of all packets, sorted; segments do not overlap in time."""
    for file in files:
        yield from sorted(packet.pts for packet in read_packets(file, data=False))


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
