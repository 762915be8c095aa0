"""Refuses files that name further files to read, such as playlists, unless they are allowed.

FFmpeg detects a format by content: a text file named ``film.mp4`` can be a list of files of this
machine, whose content would then appear in the output.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from rbvsr_deploy.errors import MediaError

__all__ = ["SINGLE_IMAGE", "demuxers", "refuse_playlist"]

SINGLE_IMAGE = {"pattern_type": "none"}
"""Options for FFmpeg's ``image2``: a file named ``a%03d.png`` is one image, not a sequence."""

_PLAYLISTS = frozenset({"hls", "concat"})
# Also name further files, addresses or devices, but are not videos that people keep as files.
_NEVER = frozenset(
    {"dash", "sdp", "rtsp", "rtp", "sap", "imf", "vobsub", "webm_dash_manifest", "lavfi"}
    | {"alsa", "fbdev", "kmsgrab", "oss", "video4linux2,v4l2", "x11grab", "xcbgrab", "iec61883"}
    | {"avfoundation", "decklink", "dshow", "gdigrab", "jack", "openal", "pulse", "sndio", "vfwcap"}
    | {"libcdio", "libdc1394", "android_camera", "tty"}
)

_STARTS = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:#EXTM3U|ffconcat\s|v=0\r?\n|<\?xml[^>]*>\s*<MPD|<MPD)"
)
_END = b"#EXT-X-ENDLIST"
_LONGEST = 2**20
"""Maximum size of a playlist in bytes: a day in segments of ten seconds is 0.5 MB."""

_DEEPEST, _MOST_NAMES = 2, 1000
"""Limits for playlists within playlists; those of several qualities name about ten others."""


@functools.cache
def demuxers(*, playlists: bool) -> str:
    """Return the demuxers that FFmpeg may choose from, separated by commas.

    Args:
        playlists: whether to include HLS playlists and concat scripts.
    """
    import av

    excluded = _NEVER if playlists else _NEVER | _PLAYLISTS
    names = set()
    for name in av.formats_available:
        try:
            names.add(av.ContainerFormat(name, "r").name)
        except ValueError:  # a muxer
            continue
    return ",".join(sorted(names - excluded))


def refuse_playlist(path: Path, *, playlists: bool, depth: int = 0) -> None:
    """Refuse a file that FFmpeg would read further files for.

    Args:
        path: the file.
        playlists: whether HLS playlists and concat scripts are allowed.
        depth: number of playlists that led to this one.

    Raises:
        MediaError: it is a playlist and those are not allowed, or it or one that it names never
            ends.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(4096)
        if _STARTS.match(start) is None:
            return
        text = start + file.read(_LONGEST)
    if not playlists:
        raise MediaError(
            f"{path} is a playlist, which names other files to read: give the video itself, or "
            "allow playlists if you trust it",
            parameters=("allow_playlists",),
        )
    if b"#EXTINF" in text and _END not in text:
        raise MediaError(
            f"{path} is a live playlist, which has no end: record it first, or append a line "
            f"{_END.decode()}"
        )
    if depth > _DEEPEST:
        raise MediaError(f"{path} is a playlist in a playlist in a playlist: give the video itself")
    for name in dict.fromkeys(itertools.islice(_named_in(text), _MOST_NAMES)):
        named = path.parent / os.fsdecode(name)
        with contextlib.suppress(OSError, ValueError):  # FFmpeg reports files that are missing
            if named.is_file():
                refuse_playlist(named, playlists=playlists, depth=depth + 1)


def _named_in(text: bytes) -> Iterator[bytes]:
    """Yield the names of files in a playlist or script."""
    is_script = text.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"ffconcat")
    for line in text.splitlines():
        line = line.strip()
        if is_script:
            keyword, _, name = line.partition(b" ")
            if keyword == b"file":
                yield name.strip(b" '\"")
        elif line and not line.startswith(b"#"):
            yield line
