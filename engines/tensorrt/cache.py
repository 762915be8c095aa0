"""Keeps signed files in the user's cache folder, and discards damaged ones.

TensorRT runs the cached engines as code, so a file is used only if this user has signed it, owns
it, and nobody else can have written to it. The cache may be lost at any time: entries that cannot
be read are rebuilt, and entries that cannot be written are skipped, each with a warning.
"""

from __future__ import annotations

import hmac
import logging
from pathlib import Path

from rbvsr_deploy.engines.tensorrt.signing import signature
from rbvsr_deploy.engines.user_folders import cache_folder, cache_key
from rbvsr_deploy.files import make_private_folder, read_private, write_atomically

__all__ = ["cache_folder", "cache_key", "read_cached", "remove_cached", "write_cached"]

logger = logging.getLogger(__name__)

_MAGIC = b"rbvsr-cache 2\n"
_SIGNATURE_SIZE = 32


def read_cached(path: Path) -> bytes | None:
    """Return the content from :func:`write_cached`, or ``None`` if the file is missing or damaged,
    or somebody else may have written it.
    """
    try:
        data = read_private(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("the cache file '%s' is not used (%s)", path, error.strerror)
        return None
    content = data[len(_MAGIC) + _SIGNATURE_SIZE :]
    seal = _seal(path, content, make_key=False)
    if seal is None or not hmac.compare_digest(data, seal + content):
        logger.warning("the cache file '%s' is damaged and is rebuilt", path)
        remove_cached(path)
        return None
    return content


def write_cached(path: Path, content: bytes) -> None:
    """Write a signed file, or warn if the folder cannot be written to."""
    seal = _seal(path, content, make_key=True)
    if seal is None:
        return
    try:
        make_private_folder(path.parent)
        write_atomically(path, seal + content, private=True)
    except OSError as error:
        logger.warning(
            "compiled engines are not cached: '%s' cannot be written (%s); set RBVSR_CACHE to a "
            "writable folder",
            path,
            error.strerror,
        )


def remove_cached(path: Path) -> None:
    """Remove a file, or warn if the folder cannot be written to."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the cache file '%s' cannot be removed (%s)", path, error.strerror)


def _seal(path: Path, content: bytes, *, make_key: bool) -> bytes | None:
    """Return the header of a file with this name and content, or ``None`` without a key."""
    purpose = f"cache {path.parent.name}/{path.name}"
    signed = signature(purpose, content, make_key=make_key)
    return None if signed is None else _MAGIC + signed
