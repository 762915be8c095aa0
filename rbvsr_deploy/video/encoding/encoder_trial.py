"""Opens encoders that may fail, on devices or for large frames, before any work is done."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, cast

from rbvsr_deploy.errors import MediaError

if TYPE_CHECKING:
    from av.codec import Codec
    from av.video.codeccontext import VideoCodecContext

    from rbvsr_deploy.video.encoding.encoder_settings import Encoder

__all__ = ["runs_on_device", "software_for", "try_encoder"]

# Width or height in pixels that every software encoder supports.
_LARGE = 4096
# Keyed by the suffix of the encoder's name.
_NEEDS = {
    "nvenc": "an NVIDIA GPU that supports this format, and its driver",
    "qsv": "an Intel GPU that supports this format, and its driver",
    "amf": "an AMD GPU that supports this format, and its driver",
}
_IN_SOFTWARE = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9"}


def runs_on_device(codec: Codec) -> bool:
    """Return whether an encoder runs on a GPU or another device."""
    from av.codec.codec import Capabilities

    return bool(codec.capabilities & (Capabilities.hardware | Capabilities.hybrid))


def try_encoder(codec: Codec, encoder: Encoder, *, size: tuple[int, int]) -> None:
    """Open an encoder and close it again, if it runs on a device or the frames are large.

    Args:
        codec: the encoder's codec.
        encoder: the encoder with its settings.
        size: width and height of the frames in pixels.

    Raises:
        MediaError: the encoder cannot be opened on this machine, or for frames of this size.
    """
    import av

    on_device = runs_on_device(codec)
    if not on_device and max(size) <= _LARGE:
        return
    context = cast("VideoCodecContext", av.CodecContext.create(codec, "w"))
    context.width, context.height = size
    context.pix_fmt = encoder.pix_fmt
    context.framerate, context.time_base = Fraction(25), Fraction(1, 25)
    context.options = encoder.options | encoder.processor_options
    try:
        context.open()
    except (av.FFmpegError, ValueError) as error:
        what = f"codec {codec.name} cannot encode {size[0]}x{size[1]} in {encoder.pix_fmt}"
        if not on_device:
            raise MediaError(
                f"{what}: scale the input down, or use codec ffv1, which has no limit, and an "
                "output name ending in .mkv"
            ) from error
        needs = _NEEDS[codec.name.rpartition("_")[2]]
        raise MediaError(
            f"{what} on this machine: it needs {needs}; use {software_for(codec)} instead"
        ) from error


def software_for(codec: Codec) -> str:
    """Return a software encoder, for the same codec if there is one."""
    return _IN_SOFTWARE.get(codec.canonical_name, "libx264")
