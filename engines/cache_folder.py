"""Finds the folder of everything that is kept from run to run."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from rbvsr_deploy.errors import MissingDependencyError

__all__ = ["cache_folder", "cache_key"]


def cache_folder() -> Path:
    """Return the folder of compiled engines and placements: ``RBVSR_CACHE``, or else the user's
    cache folder.

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
