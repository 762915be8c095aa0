"""Decoding with what a user asks for: a kind of device such as "cuda", or a decoder of FFmpeg's."""

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

# Packets after which a decoder that works has given a frame.
_TRIAL = 100


def decoder_for(
    stream: VideoStream, name: str | None, *, path: Path, options: dict[str, str]
) -> VideoCodecContext:
    """A decoder for a stream.

    Nothing is decoded in software where a device was asked for.

    Args:
        stream: the packets come from it.
        name: a kind of device that this build of FFmpeg knows, or one of its decoders; ``None``:
            the usual one.
        path: of the file, for messages.
        options: FFmpeg's, of any decoder.

    Raises:
        MediaError: the build, the machine or the codec of the stream has none of that name; or its
            pictures are larger than can be read.
    """
    import av
    from av.codec.hwaccel import HWAccel, hwdevices_available

    own = stream.codec_context
    if name is None or name == own.name:
        own.options |= options
        return own
    if own.width * own.height > MAX_PIXELS:
        raise MediaError(
            f"{path} is {own.width}x{own.height}, and pictures of more than {MAX_PIXELS:,} pixels "
            "cannot be read: scale it down"
        )
    able = _decoders_of(own.codec.id)
    device = None
    if name in hwdevices_available():
        # FFmpeg's own decoders use a device best; makers of devices have put others beside them.
        on_it = sorted((c for c in able if _runs_on(c, name)), key=lambda c: "_" in c.name)
        if not on_it:
            raise MediaError(
                f"decoder {name} cannot decode {own.name}, which {path} is coded in: leave it out"
            )
        codec, device = on_it[0], HWAccel(name, allow_software_fallback=False)
    else:
        codecs = {codec.name: codec for codec in able}
        if name not in codecs:
            devices = {kind for kind in hwdevices_available() for c in able if _runs_on(c, kind)}
            raise MediaError(
                f"decoder {name!r} is not in this build of FFmpeg, or not for {own.name}, which "
                f"{path} is coded in: leave it out, or give one of "
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
            f"decoder {name} finds no device of its kind, or no driver for it, on this machine: "
            "leave it out"
        ) from error
    return context


def first_frame(path: Path, *, stream: int, decoder: str) -> VideoFrame | None:
    """The first frame of a file as the usual decoder gives it, with all that its container tells.

    Finds out, too, whether the decoder that is asked for can decode one.

    Args:
        path: the file.
        stream: number of the stream.
        decoder: as for :func:`decoder_for`.

    Returns:
        The frame; ``None`` where not even the usual decoder finds one soon, or where it is the one
        that is asked for.

    Raises:
        MediaError: the decoder cannot.
    """
    with open_input(path) as container:
        video = cast("VideoStream", container.streams[stream])
        own = video.codec_context
        asked = decoder_for(video, decoder, path=path, options=DECODER_LIMITS)
        if asked is own:
            return None
        own.options |= DECODER_LIMITS
        usual = trial = None
        for packet in itertools.islice(container.demux(video), _TRIAL):
            usual = usual or _decoded(packet, own)
            trial = trial or _decoded(packet, asked)
            if usual and trial:
                break
    if usual is not None and trial is None:
        raise MediaError(
            f"decoder {decoder} decodes no frame of {path}, of {usual.width}x{usual.height} in "
            f"{usual.format.name}: leave it out"
        )
    return usual


def _decoded(packet: Packet[VideoStream], context: VideoCodecContext) -> VideoFrame | None:
    """The first frame that a decoder gives after a packet, if any; it may refuse some packets."""
    import av

    try:
        return next(iter(context.decode(packet)), None)
    except av.FFmpegError:
        return None


def _decoders_of(codec_id: int) -> list[Codec]:
    """All decoders of this build for a codec."""
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
