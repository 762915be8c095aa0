"""Holds the settings of a video stream, shared by all its segments and the joined file."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, cast

from rbvsr_deploy.video.colour.colour import FULL, RGB_MATRIX, Colour
from rbvsr_deploy.video.encoding.encoder_settings import Encoder, merged

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

__all__ = ["StreamSettings"]


@dataclass(frozen=True)
class StreamSettings:
    """Holds everything other than the frames that determines the bytes of an encoded stream."""

    container: str
    """FFmpeg name of the output format."""
    encoder: Encoder
    width: int
    """Width in pixels."""
    height: int
    """Height in pixels."""
    time_base: Fraction
    """Seconds per tick."""
    rate: Fraction
    """Average frames per second."""
    sample_aspect: Fraction | None
    """Width of a pixel divided by its height; ``None``: unknown."""
    colour: Colour
    """Colour description of the source."""
    constant_rate: bool
    """True if the format stores a frame rate instead of timestamps."""

    @property
    def frame_colour(self) -> Colour:
        """Colour description to convert frames to for the encoder."""
        # JPEG is always full range.
        if self.encoder.pix_fmt.startswith("yuvj") or self.encoder.name == "mjpeg":
            return dataclasses.replace(self.colour, range=FULL)
        return self.colour

    def add_to(self, output: OutputContainer) -> VideoStream:
        """Add the stream to an output, without opening its encoder."""
        from av.codec.context import Flags
        from av.video.format import VideoFormat

        stream = cast(
            "VideoStream",
            output.add_stream(
                self.encoder.name,
                rate=self.rate,
                options=merged(self.encoder.options, self.encoder.processor_options),
            ),
        )
        context = stream.codec_context
        context.width, context.height = self.width, self.height
        context.pix_fmt = self.encoder.pix_fmt
        if self.container in ("mp4", "mov") and context.codec.canonical_name == "hevc":
            # Apple players only recognise HEVC with this tag.
            context.codec_tag = "hvc1"
        context.time_base = stream.time_base = self.time_base
        context.flags |= Flags.frame_duration
        if output.format.name == "tee":  # see open_output
            context.flags |= Flags.global_header
        context.thread_count = self.encoder.threads
        if self.sample_aspect is not None:
            context.sample_aspect_ratio = self.sample_aspect
        if self.constant_rate:
            # Without timestamps in the file, frames must be stored in presentation order.
            context.max_b_frames = 0
        rgb = VideoFormat(self.encoder.pix_fmt, 16, 16).is_rgb
        context.colorspace = RGB_MATRIX if rgb else self.colour.matrix
        context.color_range = FULL if rgb else self.frame_colour.range
        context.color_primaries = self.colour.primaries
        context.color_trc = self.colour.transfer
        return stream

    def standalone_stream(self) -> tuple[OutputContainer, VideoStream]:
        """Return a stream for encoding only.

        Its container is never written, but must be kept open while the stream is in use.
        """
        import av

        output = av.open(io.BytesIO(), "w", format=self.container)
        return output, self.add_to(output)

    def identity(self) -> dict[str, str]:
        """Return all settings as text, to check that segments fit together.

        The keys are stored in job folders: changing one makes interrupted jobs start over.
        """
        import av

        codec = av.library_versions["libavcodec"]
        colour = dataclasses.astuple(self.colour)
        return {
            "container": self.container,
            "codec": self.encoder.name,
            "pixel format": self.encoder.pix_fmt,
            "encoder setting": ", ".join(
                f"{name}={value}" for name, value in sorted(self.encoder.options.items())
            ),
            "number of encoder threads": str(self.encoder.threads),
            "picture size": f"{self.width}x{self.height}",
            "time base": str(self.time_base),
            "frame rate": str(self.rate),
            "sample aspect ratio": str(self.sample_aspect),
            "colour description": "-".join(str(number) for number in colour),
            "version of PyAV": f"{av.__version__} with libavcodec {'.'.join(map(str, codec))}",
        }
