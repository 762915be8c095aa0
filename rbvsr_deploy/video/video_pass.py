"""Decodes the video of a file in one pass and counts damaged frames."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.completeness import cut_off, indexed_frames
from rbvsr_deploy.video.damage import Damage
from rbvsr_deploy.video.decoder import decoder_for
from rbvsr_deploy.video.options import ReadOptions
from rbvsr_deploy.video.pyav import DECODER_LIMITS, MAX_PIXELS, media_errors
from rbvsr_deploy.video.side_data import SideDataWatch
from rbvsr_deploy.video.timing.file_clock import FileClock
from rbvsr_deploy.video.timing.seeking import packets_around

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = ["VideoPass"]


class VideoPass:
    """Decodes a video once, giving its frames in order of presentation.

    Args:
        container: the newly opened file, which the caller closes.
        stream: its video stream.
        path: path of the file, for messages.
        options: how to read the file.
        rate: average frames per second.
        time_base: seconds per tick.
        side_data: looks at every packet and frame.
        target: a time in ticks; decoding starts at the last key frame before it. ``None``: at the
            start.
    """

    clock: FileClock
    """Clock of the file."""
    sample_aspect: Fraction | None = None
    """Pixel aspect ratio of the frames decoded last, if the codec states one."""
    damage: Damage
    """Damage found so far."""
    packets = 0
    """Number of packets read so far."""
    read_to = 0
    """Offset in the file at which the last packet ends, in bytes."""
    first_stamp: int | None = None
    """Decoding timestamp of the first packet in ticks, once it is read."""

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        *,
        path: Path,
        options: ReadOptions,
        rate: Fraction,
        time_base: Fraction,
        side_data: SideDataWatch,
        target: Fraction | None = None,
    ) -> None:
        self._container = container
        self._stream = stream
        self._path = path
        self._options = options
        self._period = 1 / (rate * time_base)
        self._target = target
        self._side_data = side_data
        self.clock = FileClock(container)
        self.damage = Damage(
            path, time_base=time_base, rate=rate, strict=options.strict, from_start=target is None
        )

    def frames(self) -> Iterator[VideoFrame]:
        """Yield the frames; packets that cannot be decoded are skipped with a warning.

        Raises:
            MediaError: the file cannot be read or is cut off, no frame can be decoded, or the video
                is damaged and ``options.strict`` is set.
        """
        import av

        options = dict(DECODER_LIMITS)
        if self._options.strict:
            options["err_detect"] = "explode"
        # Frame threading also loses undamaged frames next to damaged ones.
        self._stream.thread_type = "SLICE"
        context = decoder_for(self._stream, self._options.decoder, path=self._path, options=options)
        frames = 0
        with media_errors(f"cannot read {self._path} any further"):
            for packet in self._demuxed():
                self.packets += packet.size > 0
                if packet.pos is not None:
                    self.read_to = packet.pos + packet.size
                self.damage.packet(packet)
                self._side_data.packet(packet)
                try:
                    decoded = context.decode(packet)
                except av.FFmpegError as error:
                    self.damage.refused(error)
                    continue
                self.sample_aspect = context.sample_aspect_ratio or None
                for frame in decoded:
                    self.damage.frame(frame)
                    self._side_data.frame(frame)
                    frames += 1
                    yield frame
        if not frames and self._target is None:
            raise MediaError(
                f"{self._path} has no video frame that can be decoded "
                f"({self.packets} packets, {self.damage.lost} of them damaged or of more than "
                f"{MAX_PIXELS:,} pixels): give a complete video"
            )
        self.damage.finish()
        expected = indexed_frames(self._container, self._stream)
        if self.packets < expected and not self._options.is_excerpt and self._target is None:
            raise cut_off(self._path, readable=self.packets, expected=expected)

    def _demuxed(self) -> Iterator[Packet[VideoStream]]:
        if self._target is not None:
            yield from packets_around(
                self.clock, self._stream, target=self._target, period=self._period
            )
            return
        for packet in self.clock.packets([self._stream]):
            if self.first_stamp is None:
                self.first_stamp = packet.dts
            yield packet
