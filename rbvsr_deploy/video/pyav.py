"""Opens files with PyAV and converts its errors to ``MediaError``."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.image_metadata import PNG, png_without_profile
from rbvsr_deploy.video.playlists import SINGLE_IMAGE, demuxers, refuse_playlist

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer

MAX_PIXELS = 2**31 // 48
"""Maximum pixels of an input frame: FFmpeg cannot hold a larger one upscaled by four. A file of a
few bytes can claim any size, and decoders would allocate the memory for it.
"""
DECODER_LIMITS = {"max_pixels": str(MAX_PIXELS)}
"""Options for every decoder, to be set before it is opened."""

_LONGEST_OPENING = 8  # seconds; an index of 900,000 frames takes one
_POLL = 0.2  # seconds
_PLAYLIST_TIMEOUT = 8  # seconds; FFmpeg may wait for what a playlist names

# Old files have titles in arbitrary encodings: the bytes pass through unchanged.
_METADATA_ERRORS = "surrogateescape"


def open_input(
    media: Any, *, container: str | None = None, playlists: bool = False
) -> InputContainer:
    """Open media for reading.

    Args:
        media: a path, or an object with a ``read`` method.
        container: FFmpeg's name of the format; ``None``: detected.
        playlists: whether to follow HLS playlists and concat scripts.

    Raises:
        MediaError: a path leads to a playlist that is not allowed, or opening takes too long.
        av.FFmpegError, OSError: the media cannot be opened.
    """
    import av
    from av.container.core import Flags

    if isinstance(media, Path):
        refuse_playlist(media, playlists=playlists)
    source = _readable(media) if isinstance(media, Path) else media
    opened = _in_time(
        lambda: av.open(
            source,
            "r",
            format=container,
            # The limits are for the decoders that probe the streams.
            options=DECODER_LIMITS
            | SINGLE_IMAGE
            | {"format_whitelist": demuxers(playlists=playlists)},
            metadata_errors=_METADATA_ERRORS,
            timeout=_PLAYLIST_TIMEOUT if playlists else None,
        ),
        media,
    )
    # PyAV lets FFmpeg invent missing presentation times; we need to know that they are missing.
    opened.flags &= ~cast("int", Flags.gen_pts.value)
    return opened


def open_output(
    path: Path, *, container: str, options: dict[str, str], any_codec: bool = False
) -> OutputContainer:
    """Open a media file for writing.

    Args:
        path: the file.
        container: FFmpeg's name of the format.
        options: options of the muxer.
        any_codec: whether to take codecs that FFmpeg's muxer writes but does not list. PyAV goes by
            the list; FFmpeg's "tee" muxer has none, and passes on everything but chapters.
    """
    import av

    url = _url(path)
    if any_codec:
        settings = ":".join(f"{name}={value}" for name, value in options.items())
        url = f"[f={container}:{settings}]" + re.sub(r"([\\\\'|\[\]\s])", r"\\\1", url)
        container, options = "tee", {}
    return av.open(
        url,
        "w",
        format=container,
        container_options=options,
        metadata_errors=_METADATA_ERRORS,
    )


@contextmanager
def media_errors(what: str) -> Iterator[None]:
    """Raise every error of PyAV and of the file system as ``MediaError("<what>: <reason>")``."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        raise MediaError(f"{what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return the human-readable part of an error, without codes and paths."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).strip().rstrip(".")


def _in_time(open_media: Callable[[], InputContainer], media: object) -> InputContainer:
    """Open media in a thread, so that signals are handled meanwhile, and only up to a time: a
    megabyte of tags or chapters can keep FFmpeg busy for hours.
    """
    opening: Future[InputContainer] = Future()
    clock: list[int] = []

    def work() -> None:
        if sys.platform != "win32":  # where it is not limited
            clock.append(time.pthread_getcpuclockid(threading.get_ident()))
        try:
            opening.set_result(open_media())
        except BaseException as error:  # raised again below
            opening.set_exception(error)

    # A daemon, unlike those of an executor: the program can end although this one is busy.
    threading.Thread(target=work, name="opener", daemon=True).start()
    while not wait((opening,), timeout=_POLL).done:
        if clock and _seconds_of(clock[0]) > _LONGEST_OPENING:
            raise MediaError(
                f"{media} is refused: opening it takes more than {_LONGEST_OPENING} seconds of "
                "processor time, so it is damaged or made to; convert it with another program"
            )
    return opening.result()


def _seconds_of(clock: int) -> float:
    """Return the time on the clock of a thread; 0 if the thread has just ended."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            return time.clock_gettime(clock)
    return 0


def _readable(path: Path) -> str | io.BytesIO:
    """Return what to open for a file.

    FFmpeg's decoder of animated PNG (libavcodec 62) frees a colour profile twice, which ends the
    process: it does not get to see it.
    """
    with path.open("rb") as file:
        if file.read(len(PNG)) != PNG:
            return _url(path)
    data = path.read_bytes()
    plain = png_without_profile(data)
    return _url(path) if len(plain) == len(data) else io.BytesIO(plain)


def _url(path: Path) -> str:
    # Without the scheme, FFmpeg would take "a:b.mp4" for a protocol. With it, FFmpeg also refuses
    # to open network addresses listed in an allowed playlist.
    return f"file:{path}"
