"""Files in the user's cache folder: signed, replaced in one piece, thrown away when damaged.

What is cached is given to TensorRT, which runs it: a file is used only if this user has signed it,
owns it, and nobody else could have written to it. A cache may always be lost: what cannot be read
is made anew, what cannot be written is done without, each with a warning.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
from pathlib import Path
from typing import Any

from rbvsr_deploy.engines.tensorrt.signing import signature
from rbvsr_deploy.errors import MissingDependencyError
from rbvsr_deploy.files import write_atomically
from rbvsr_deploy.private_files import make_private_folder, read_private

__all__ = ["cache_folder", "cache_key", "read_cached", "remove_cached", "write_cached"]

logger = logging.getLogger(__name__)

_MAGIC = b"rbvsr-cache 2\n"
_SIGNATURE_SIZE = 32


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
    """What :func:`write_cached` wrote; ``None`` if there is nothing, it is damaged, or somebody
    else may have written it.
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
        logger.warning("the cache file '%s' is damaged and is made anew", path)
        remove_cached(path)
        return None
    return content


def write_cached(path: Path, content: bytes) -> None:
    """Keep some bytes, if the folder allows it."""
    seal = _seal(path, content, make_key=True)
    if seal is None:
        return
    try:
        make_private_folder(path.parent)
        write_atomically(path, seal + content, private=True)
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


def _seal(path: Path, content: bytes, *, make_key: bool) -> bytes | None:
    """What stands before the content in a file of that name; ``None`` without a key."""
    purpose = f"cache {path.parent.name}/{path.name}"
    signed = signature(purpose, content, make_key=make_key)
    return None if signed is None else _MAGIC + signed
