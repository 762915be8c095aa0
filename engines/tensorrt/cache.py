"""Files in the user's cache folder: checksummed, replaced in one piece, thrown away when damaged.

A cache may always be lost: what cannot be read is made anew, what cannot be written is done
without, each with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from rbvsr_deploy.errors import MissingDependencyError
from rbvsr_deploy.files import write_atomically

__all__ = ["cache_folder", "cache_key", "read_cached", "remove_cached", "write_cached"]

logger = logging.getLogger(__name__)

_MAGIC = b"rbvsr-cache 1\n"
_DIGEST_SIZE = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """Return the folder of compiled engines: ``RBVSR_CACHE``, or else the user's cache folder.

    Raises:
        MissingDependencyError: the variable is not set and platformdirs is not installed.
    """
    if chosen := os.environ.get("RBVSR_CACHE"):
        return Path(chosen)
    try:
        import platformdirs
    except ImportError:
        raise MissingDependencyError(
            "platformdirs", extra="engines", purpose="finding the user's cache folder"
        ) from None
    return platformdirs.user_cache_path("rbvsr-deploy", appauthor=False)


def cache_key(*values: Any) -> str:
    """Return a short name that depends on all of the JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:20]


def read_cached(path: Path) -> bytes | None:
    """What :func:`write_cached` wrote; ``None`` if there is nothing, or it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("the cache file '%s' cannot be read (%s)", path, error.strerror)
        return None
    content = data[len(_MAGIC) + _DIGEST_SIZE :]
    if data != _sealed(content):
        logger.warning("the cache file '%s' is damaged and is made anew", path)
        remove_cached(path)
        return None
    return content


def write_cached(path: Path, content: bytes) -> None:
    """Keep some bytes, if the folder allows it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _sealed(content))
    except OSError as error:
        logger.warning(
            "nothing is kept for the next time: '%s' cannot be written (%s); set RBVSR_CACHE to a "
            "folder that can",
            path,
            error.strerror,
        )


def remove_cached(path: Path) -> None:
    """Remove a file, or warn if the folder cannot be written."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the cache file '%s' cannot be removed (%s)", path, error.strerror)


def _sealed(content: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(content).digest() + content
