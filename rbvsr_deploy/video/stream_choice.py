"""Chooses the video stream of a file to upscale, and reads what the file says about it."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from rbvsr_deploy.errors import MediaError

if TYPE_CHECKING:
    from av.codec.context import CodecContext
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.stream import VideoStream

__all__ = ["average_rate", "choose_video", "codec_name", "describe", "is_chapter_list", "is_cover"]

_DISCARD_ALL = 48  # AVDISCARD_ALL
_FALLBACK_RATE = Fraction(25)
# Frames per second. With a variable frame rate, some fields hold the rate of the stream's clock.
_FASTEST_GUESS = 500


def choose_video(container: InputContainer, *, path: Path) -> VideoStream:
    """Return the video stream that players show: the default one, else the largest, else the first.

    Cover images do not count, nor do streams that only complete another one. A single image comes
    after videos: in an animated AVIF, it is one of the frames.

    Raises:
        MediaError: the file has no video stream, or none with a known codec.
    """
    from av.stream import Disposition

    minor = Disposition.dependent | Disposition.timed_thumbnails | Disposition.still_image
    videos = [video for video in container.streams.video if not is_cover(video)]
    if not videos:
        raise MediaError(f"{path} has {_what_it_has(container)}: give a file with video")
    known = [video for video in videos if video.codec_context is not None]
    if not known:
        raise MediaError(
            f"the codec of {path} is not supported by this build of FFmpeg: re-encode it"
        )

    def rank(video: VideoStream) -> tuple[bool, bool, bool, int, int]:
        is_default = bool(video.disposition & Disposition.default)
        size = video.codec_context.width * video.codec_context.height
        return not video.disposition & minor, video.frames != 1, is_default, size, -video.index

    return max(known, key=rank)


def average_rate(stream: VideoStream) -> Fraction:
    """Return the average frames per second."""
    average, guessed = stream.average_rate, stream.guessed_rate
    if average and average == guessed:
        return average
    rates = (average, stream.codec_context.framerate, guessed)
    return next((rate for rate in rates if rate and rate <= _FASTEST_GUESS), _FALLBACK_RATE)


def describe(stream: Stream) -> str:
    """Describe a stream for a message, such as "audio stream 1 (aac, fra)"."""
    codec = codec_name(stream)
    language = f", {stream.language}" if stream.language else ""
    return f"{stream.type} stream {stream.index} ({codec or 'unknown codec'}{language})"


def is_cover(stream: Stream) -> bool:
    """Return whether a stream is a cover image."""
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def is_chapter_list(stream: Stream) -> bool:
    """Return whether a stream is the track in which MP4 and MOV keep their chapter titles.

    FFmpeg reads it with the header and discards its packets; PyAV 17 does not expose this.
    """
    return getattr(stream, "discard", None) == _DISCARD_ALL


def codec_name(stream: Stream) -> str | None:
    """Return the FFmpeg name of a stream's codec, or the file name of an attachment.

    Returns:
        The codec's name, not that of a decoder; ``None`` without a decoder.
    """
    context: CodecContext | None = stream.codec_context
    return getattr(stream, "name", None) if context is None else context.codec.canonical_name


def _what_it_has(container: InputContainer) -> str:
    """Describe the streams of a file without video, such as "no video stream, only audio"."""
    counts = Counter(
        "cover image" if stream.type == "video" else f"{stream.type} stream"
        for stream in container.streams
    )
    if not counts:
        return "no streams"
    found = [
        f"{number} {name}{'s' * (number > 1)}" if number > 1 else f"one {name}"
        for name, number in counts.items()
    ]
    return f"no video stream, only {' and '.join(found)}"
