"""Encoding one part of a video, on its own, into a file of packets."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.colour.conversion import from_rgb
from rbvsr_deploy.video.encoding.packets import PacketWriter, StoredPacket, reordered
from rbvsr_deploy.video.encoding.stream_settings import StreamSettings
from rbvsr_deploy.video.staging.parts import StoredFile

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from rbvsr_deploy.pixels import Image

__all__ = ["PartEncoder"]


class PartEncoder:
    """A fresh encoder for a part, so that nothing before the part decides about its bytes.

    Args:
        settings: of the stream.
        path: the file for the packets.

    Raises:
        OSError, av.FFmpegError: here and in all methods, where disk or encoder refuse.
    """

    frames: int
    """How many have been given."""

    def __init__(self, settings: StreamSettings, *, path: Path) -> None:
        self.frames = 0
        self._settings = settings
        self._output, self._stream = settings.stream_of_its_own()
        self._stamps: list[int] = []
        self._writer = PacketWriter(path)

    def encode(
        self, image: Image, *, pts: int, duration: int, opacity: Image | None = None
    ) -> None:
        """Encodes one frame.

        Args:
            image: ``(H, W, 3)`` RGB, uint8 or uint16.
            pts: presentation time in ticks of the settings' time base.
            duration: in the same ticks; 0: not known.
            opacity: ``(H, W, 1)`` of the same dtype, where the pixel format has alpha.
        """
        settings = self._settings
        picture = from_rgb(
            image,
            pix_fmt=settings.encoder.pix_fmt,
            colour=settings.frame_colour,
            opacity=opacity,
        )
        picture.pts, picture.time_base = pts, settings.time_base
        picture.duration = duration
        self._take(picture)
        self.frames += 1

    def finish(self) -> tuple[StoredFile, dict[str, Any]]:
        """Completes the part.

        Returns:
            The file, on the disk, and the record that joining needs.
        """
        self._take(None)
        context = self._stream.codec_context
        media = {
            "extradata": bytes(context.extradata or b"").hex(),
            # The encoder's own word is the same for all parts, whatever happens in them.
            "delay": max(context.reorder_depth, reordered(self._stamps)),
        }
        return self._writer.finish(), media

    def close(self) -> None:
        """Frees file and encoder; does nothing after ``finish``."""
        self._writer.close()
        self._output.close()

    def _take(self, picture: VideoFrame | None) -> None:
        for packet in self._stream.encode(picture):
            pts = packet.pts if packet.pts is not None else packet.dts
            if pts is None:
                raise MediaError(
                    f"codec {self._settings.encoder.name} tells no times: choose another"
                )
            scale = Fraction(packet.time_base) / self._settings.time_base
            self._stamps.append(round(pts * scale))
            self._writer.write(
                StoredPacket(
                    pts=self._stamps[-1],
                    duration=round((packet.duration or 0) * scale),
                    is_keyframe=packet.is_keyframe,
                    data=bytes(packet),
                )
            )
