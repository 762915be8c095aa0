"""Opens the requested decoder: a type of device such as "cuda", or an FFmpeg decoder."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.pyav import DECODER_LIMITS, MAX_PIXELS, open_input

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.codec import Codec
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

__all__ = ["decoder_for", "first_frame"]

# A working decoder has given a frame after this many packets.
_TRIAL = 100


def decoder_for(
    stream: VideoStream, name: str | None, *, path: Path, options: dict[str, str]
) -> VideoCodecContext:
    """Return a decoder for a stream.

    A requested device never falls back to decoding in software.

    Args:
        stream: the stream to decode.
        name: a type of device, or a decoder of this build of FFmpeg; ``None``: the default decoder.
        path: path of the file, for messages.
        options: FFmpeg options for the decoder.

    Raises:
        MediaError: this build of FFmpeg or this machine has no such decoder for the codec of the
            stream, or the frames are too large.
    """
    import av
    from av.codec.hwaccel import HWAccel, hwdevices_available

    own = stream.codec_context
    if name is None or name == own.name:
        own.options |= options
        return own
    if own.width * own.height > MAX_PIXELS:
        raise MediaError(
            f"{path} is {own.width}x{own.height}, and frames of more than {MAX_PIXELS:,} pixels "
            "cannot be read: scale it down"
        )
    able = _decoders_of(own.codec.id)
    device = None
    if name in hwdevices_available():
        # FFmpeg's native decoders use a device best; vendors' decoders such as h264_cuvid are last.
        on_device = sorted((c for c in able if _runs_on(c, name)), key=lambda c: "_" in c.name)
        if not on_device:
            raise MediaError(
                f"decoder {name} cannot decode {own.name}, which is the codec of {path}: "
                "leave it out"
            )
        codec, device = on_device[0], HWAccel(name, allow_software_fallback=False)
    else:
        codecs = {codec.name: codec for codec in able}
        if name not in codecs:
            devices = {kind for kind in hwdevices_available() for c in able if _runs_on(c, kind)}
            raise MediaError(
                f"decoder {name!r} is not in this build of FFmpeg, or is not for {own.name}, "
                f"the codec of {path}: leave it out, or use one of "
                + ", ".join(sorted(codecs.keys() | devices))
            )
        codec = codecs[name]
    try:
        context = cast("VideoCodecContext", av.CodecContext.create(codec, "r", device))
        context.options = dict(options)
        context.extradata = own.extradata
        context.width, context.height = own.width, own.height
        context.bits_per_coded_sample = own.bits_per_coded_sample
        context.open()
    except (av.FFmpegError, RuntimeError) as error:
        raise MediaError(
            f"decoder {name} finds no device, or no driver for it, on this machine: leave it out"
        ) from error
    return context


def first_frame(
    path: Path, *, stream: int, decoder: str, playlists: bool = False
) -> VideoFrame | None:
    """Decode the first frame of a file with the default decoder, to get the container's metadata.

    Also check that the requested decoder can decode a frame.

    Args:
        path: the file.
        stream: index of the stream.
        decoder: the requested decoder; see :func:`decoder_for`.
        playlists: whether the file may be a playlist.

    Returns:
        The frame. ``None`` if even the default decoder gives none soon, or if it is the requested
        one.

    Raises:
        MediaError: the requested decoder decodes no frame.
    """
    with open_input(path, playlists=playlists) as container:
        video = cast("VideoStream", container.streams[stream])
        own = video.codec_context
        requested = decoder_for(video, decoder, path=path, options=DECODER_LIMITS)
        if requested is own:
            return None
        own.options |= DECODER_LIMITS
        default = trial = None
        for packet in itertools.islice(container.demux(video), _TRIAL):
            default = default or _decoded(packet, own)
            trial = trial or _decoded(packet, requested)
            if default and trial:
                break
    if default is not None and trial is None:
        raise MediaError(
            f"decoder {decoder} decodes no frame of {path} ({default.width}x{default.height}, "
            f"{default.format.name}): leave it out"
        )
    return default


def _decoded(packet: Packet[VideoStream], context: VideoCodecContext) -> VideoFrame | None:
    """Return the first frame a decoder gives for a packet, if any; refused packets are ignored."""
    import av

    try:
        return next(iter(context.decode(packet)), None)
    except av.FFmpegError:
        return None


def _decoders_of(codec_id: int) -> list[Codec]:
    """Return all decoders for a codec in this build of FFmpeg."""
    import av
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    found = []
    for name in sorted(av.codecs_available):
        with contextlib.suppress(UnknownCodecError):  # an encoder
            codec = Codec(name, "r")
            if codec.id == codec_id:
                found.append(codec)
    return found


def _runs_on(codec: Codec, device: str) -> bool:
    from av.codec.hwaccel import HWDeviceType

    return any(
        config.is_supported and config.device_type == HWDeviceType[device]
        for config in codec.hardware_configs
    )
