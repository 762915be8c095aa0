"""The edge to PyAV: how files are opened and how its errors become ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rbvsr_deploy.errors import MediaError

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer

MAX_PIXELS = 2**31 // 48
"""Of a picture that is read: four times larger, FFmpeg holds none of more. A file of some bytes can
claim any size, and decoders would take the memory for it.
"""
DECODER_LIMITS = {"max_pixels": str(MAX_PIXELS)}
"""Options of every decoder, to be set before it is opened."""

# Old files hold titles in any encoding: the bytes pass through unchanged.
_METADATA_ERRORS = "surrogateescape"


def open_input(media: Any, *, container: str | None = None) -> InputContainer:
    """Opens media for reading.

    Args:
        media: a path, or anything with a ``read`` method.
        container: FFmpeg's name of the format; ``None``: found out.
    """
    import av
    from av.container.core import Flags

    opened = av.open(
        _url(media) if isinstance(media, Path) else media,
        "r",
        format=container,
        options=DECODER_LIMITS,  # of the decoders that look for what is inside
        metadata_errors=_METADATA_ERRORS,
    )
    # PyAV asks for invented presentation times; where a file has none, we want to know.
    opened.flags &= ~cast("int", Flags.gen_pts.value)
    return opened


def open_output(path: Path, *, container: str, options: dict[str, str]) -> OutputContainer:
    """Opens a media file for writing in the format that FFmpeg calls ``container``."""
    import av

    return av.open(
        _url(path),
        "w",
        format=container,
        container_options=options,
        metadata_errors=_METADATA_ERRORS,
    )


@contextmanager
def media_errors(what: str) -> Iterator[None]:
    """Turns every error of PyAV and of the file system into ``MediaError("<what>: <reason>")``."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        raise MediaError(f"{what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """The part of an error that a user can read, without codes and paths."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).strip().rstrip(".")


def _url(path: Path) -> str:
    # Without the scheme, a name such as "a:b.mp4" would be taken for a protocol. With it, FFmpeg
    # also keeps playlists from reaching for anything but files.
    return f"file:{path}"
