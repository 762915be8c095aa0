"""Opening an encoder before any work, where it may well fail: devices, and large pictures."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, cast

from rbvsr_deploy.errors import MediaError

if TYPE_CHECKING:
    from av.codec import Codec
    from av.video.codeccontext import VideoCodecContext

    from rbvsr_deploy.video.encoding.encoder_settings import Encoder

__all__ = ["runs_on_device", "software_for", "try_encoder"]

# Pixels across or down that any encoder in software takes.
_LARGE = 4096
# By the end of an encoder's name.
_NEEDS = {
    "nvenc": "an NVIDIA GPU that encodes such pictures, and its driver",
    "qsv": "an Intel GPU that encodes such pictures, and its driver",
    "amf": "an AMD GPU that encodes such pictures, and its driver",
}
_IN_SOFTWARE = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9"}


def runs_on_device(codec: Codec) -> bool:
    """Whether an encoder is one of a GPU or another device."""
    from av.codec.codec import Capabilities

    return bool(codec.capabilities & (Capabilities.hardware | Capabilities.hybrid))


def try_encoder(codec: Codec, encoder: Encoder, *, size: tuple[int, int]) -> None:
    """Opens an encoder and closes it again, unless nothing speaks against it.

    Args:
        codec: of the encoder.
        encoder: with its settings.
        size: width and height of the pictures.

    Raises:
        MediaError: it cannot be opened on this machine, or for pictures of this size.
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
                f"{what}: scale the input down, or use ffv1, which has no limit, and an output "
                "that ends in .mkv"
            ) from error
        needs = _NEEDS[codec.name.rpartition("_")[2]]
        raise MediaError(
            f"{what} on this machine: it needs {needs}; use {software_for(codec)} to do without"
        ) from error


def software_for(codec: Codec) -> str:
    """An encoder that needs no device, of the same codec where there is one."""
    return _IN_SOFTWARE.get(codec.canonical_name, "libx264")
