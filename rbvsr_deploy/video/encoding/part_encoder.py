"""Encodes one segment of a video independently into a packet file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.encoding.captions import CAPTIONED, with_captions
from rbvsr_deploy.video.encoding.conversions import Conversions
from rbvsr_deploy.video.encoding.packets import PacketWriter, StoredPacket, reordered
from rbvsr_deploy.video.encoding.stream_settings import StreamSettings
from rbvsr_deploy.video.staging.parts import StoredFile

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from rbvsr_deploy.pixels import Image

__all__ = ["SegmentEncoder"]


class SegmentEncoder:
    """Encodes a segment with a new encoder, so that its bytes do not depend on earlier segments.

    Args:
        settings: the settings of the stream.
        path: the packet file to write.
        conversions: convert its frames; empty, and empty again after ``finish`` and ``close``.

    Raises:
        OSError, av.FFmpegError: here and in all methods: writing or encoding failed.
    """

    frames: int
    """Number of frames taken so far."""

    def __init__(
        self, settings: StreamSettings, *, path: Path, conversions: Conversions[tuple[int, int]]
    ) -> None:
        self.frames = 0
        self._conversions = conversions
        self._settings = settings
        self._output, self._stream = settings.standalone_stream()
        self._stamps: list[int] = []
        self._captions: dict[int, bytes] = {}  # by time, of the frames inside the encoder
        self._writer = PacketWriter(path)

    def encode(
        self,
        image: Image,
        *,
        pts: int,
        duration: int,
        opacity: Image | None = None,
        captions: bytes | None = None,
    ) -> None:
        """Take one frame; it is encoded once it is converted.

        Args:
            image: ``(H, W, 3)`` RGB, uint8 or uint16.
            pts: presentation time in ticks of the settings' time base.
            duration: duration in the same ticks; 0: unknown.
            opacity: ``(H, W, 1)`` alpha of the same dtype, if the pixel format has alpha.
            captions: closed captions of the frame, which only some encoders can take.
        """
        if captions is not None and self._settings.encoder.name in CAPTIONED:
            self._captions[pts] = captions
        self.frames += 1
        for converted in self._conversions.add(image, (pts, duration), opacity=opacity):
            self._encode_at(*converted)

    def finish(self) -> tuple[StoredFile, dict[str, Any]]:
        """Complete the segment.

        Returns:
            The file, flushed to disk, and the metadata needed for joining.
        """
        for converted in self._conversions.rest():
            self._encode_at(*converted)
        self._encode(None)
        context = self._stream.codec_context
        media = {
            "extradata": bytes(context.extradata or b"").hex(),
            # The encoder reports the same depth for all segments, whatever they contain.
            "delay": max(context.reorder_depth, reordered(self._stamps)),
        }
        return self._writer.finish(), media

    def close(self) -> None:
        """Release the file and the encoder; does nothing after ``finish``."""
        self._conversions.clear()
        self._writer.close()
        self._output.close()

    def _encode_at(self, frame: VideoFrame, times: tuple[int, int]) -> None:
        frame.pts, frame.duration = times
        frame.time_base = self._settings.time_base
        self._encode(frame)

    def _encode(self, frame: VideoFrame | None) -> None:
        """Write the packets that a frame yields; ``None`` flushes the encoder."""
        for packet in self._stream.encode(frame):
            pts = packet.pts if packet.pts is not None else packet.dts
            if pts is None:
                raise MediaError(
                    f"codec {self._settings.encoder.name} returns packets without timestamps: "
                    "choose another codec"
                )
            scale = Fraction(packet.time_base) / self._settings.time_base
            self._stamps.append(round(pts * scale))
            data, captions = bytes(packet), self._captions.pop(self._stamps[-1], None)
            if captions is not None:
                hevc = self._settings.encoder.name == "libx265"
                data = with_captions(data, captions, hevc=hevc)
            self._writer.write(
                StoredPacket(
                    pts=self._stamps[-1],
                    duration=round((packet.duration or 0) * scale),
                    is_keyframe=packet.is_keyframe,
                    data=data,
                )
            )
