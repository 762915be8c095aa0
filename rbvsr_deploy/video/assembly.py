"""Putting a video file together: encoded packets, and what is copied from the source."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.video.base import Source
from rbvsr_deploy.video.copying.copied_streams import CopiedStreams
from rbvsr_deploy.video.copying.packet_copy import portable_tags
from rbvsr_deploy.video.copying.time_window import TimeWindow
from rbvsr_deploy.video.encoding.packets import decoding_times, read_packets
from rbvsr_deploy.video.encoding.stream_settings import StreamSettings
from rbvsr_deploy.video.options import WriteOptions
from rbvsr_deploy.video.pyav import open_output
from rbvsr_deploy.video.video_source import VideoSource

if TYPE_CHECKING:
    from av.stream import Disposition

__all__ = ["Assembly"]

logger = logging.getLogger(__name__)

# These formats hold any start and the negative decoding times of B-frames as they are.
_KEEPS_STAMPS = ("mp4", "mov", "matroska", "webm")
_LARGEST_TIMESCALE = 2**31 - 1


class Assembly(Closing):
    """A video file that is put together without encoding.

    Opening it writes the file's header, which shows early what the format cannot hold.

    Args:
        path: the file to write.
        settings: of the video stream.
        source: where everything else is copied from.
        options: what of it.
        end: when the last picture ends, in seconds; of an excerpt, everything ends then. ``None``:
            not known yet.
        told: whether the user knows already which streams are left out or changed.

    Raises:
        OSError, ValueError, av.FFmpegError: here and in all methods, where the format or the disk
            refuse.
        MediaError: the source cannot be read.
    """

    extradata: bytes
    """What the encoder has to say once for the whole stream; the parts must agree."""

    def __init__(
        self,
        path: Path,
        *,
        settings: StreamSettings,
        source: Source,
        options: WriteOptions,
        end: Fraction | None = None,
        told: bool = False,
    ) -> None:
        self._settings = settings
        self._source = source
        self._shifts = False
        self._keeps_stamps = settings.container in _KEEPS_STAMPS or settings.constant_rate
        self._copies: CopiedStreams | None = None
        muxing = {"avoid_negative_ts": "disabled"} if self._keeps_stamps else {}
        if settings.container in ("mp4", "mov"):
            muxing["movie_timescale"] = str(_movie_timescale(settings.time_base, source))
            muxing["write_tmcd"] = "1"  # the time code, where the video's tags tell one
        self._output = open_output(path, container=settings.container, options=muxing)
        try:
            self._stream = settings.add_to(self._output)
            if isinstance(source, VideoSource):
                tags = portable_tags(source.tags)
                if source.excerpt is not None and source.excerpt.offset:
                    # It tells the time of the input's first frame.
                    tags = {name: tags[name] for name in tags if name.lower() != "timecode"}
                self._stream.metadata.update(tags)
                self._stream.disposition = cast("Disposition", source.disposition)
                if source.reopenable:
                    self._copies = CopiedStreams(
                        source,
                        target=self._output,
                        window=self._window(end),
                        options=options,
                        told=told,
                    )
            self._output.start_encoding()
            self.extradata = bytes(self._stream.codec_context.extradata or b"")
        except BaseException:
            self.close()
            raise

    def write(self, files: list[Path], *, delay: int, name: Path) -> None:
        """Writes the packets of all parts and, in between, what is copied.

        Args:
            files: of the parts in order, as ``PacketWriter`` wrote them.
            delay: by how many packets decoding has to run ahead of presentation.
            name: the output as the user knows it, for messages.
        """
        import av

        times = decoding_times(_stamps(files), delay=delay)
        packets = (packet for file in files for packet in read_packets(file))
        # The last times are left over: decoding ends before presentation does.
        for stored, dts in zip(packets, times, strict=False):
            self._bring_along(dts * self._settings.time_base, name=name)
            packet = av.Packet(stored.data)
            packet.stream = self._stream
            packet.time_base = self._settings.time_base
            packet.pts, packet.dts = stored.pts, dts
            packet.duration = stored.duration
            packet.is_keyframe = stored.is_keyframe
            self._output.mux_one(packet)

    def finish(self) -> None:
        """Writes the rest of what is copied, and completes the file."""
        if self._copies is not None:
            self._copies.advance(None)
        self._output.close()

    def close(self) -> None:
        """Frees everything; the file is of no use unless ``finish`` was called."""
        if self._copies is not None:
            self._copies.close()
        # Closing completes the file, which may fail once more in whatever has failed already.
        with contextlib.suppress(Exception):
            self._output.close()

    def _window(self, end: Fraction | None) -> TimeWindow | None:
        excerpt = self._source.excerpt
        if excerpt is None:
            return None
        holds_negative = self._settings.container in _KEEPS_STAMPS
        return TimeWindow(start=excerpt.start, end=end, holds_negative=holds_negative)

    def _bring_along(self, time: Fraction, *, name: Path) -> None:
        """Writes what is copied up to the decoding time of the video's next packet."""
        start = time
        if self._copies is not None and self._copies.start is not None:
            start = min(time, self._copies.start)
        if start < 0 and not self._shifts and not self._keeps_stamps:
            logger.warning(
                "%s cannot hold times before 0: everything in it comes %.3f s later than in %s",
                name,
                float(-start),
                self._source.path,
            )
            self._shifts = True
        if self._copies is not None:
            self._copies.advance(time)


def _stamps(files: list[Path]) -> Iterator[int]:
    """Presentation times of all packets, increasing: no part begins before another ends."""
    for file in files:
        yield from sorted(packet.pts for packet in read_packets(file, data=False))


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
