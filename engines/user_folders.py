"""Finds the user's folders, in which engines, placements, the key and jobs are kept."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

from rbvsr_deploy.errors import MissingDependencyError

__all__ = ["cache_folder", "cache_key", "config_folder", "data_folder"]


def cache_folder() -> Path:
    """Return the folder of compiled engines and placements: ``RBVSR_CACHE``, or else the user's
    cache folder.

    Raises:
        MissingDependencyError: the variable is not set and platformdirs is not installed.
    """
    return _user_folder("RBVSR_CACHE", kind="cache")


def config_folder() -> Path:
    """Return the folder of the key: ``RBVSR_CONFIG``, or else the user's configuration folder.

    Raises:
        MissingDependencyError: the variable is not set and platformdirs is not installed.
    """
    return _user_folder("RBVSR_CONFIG", kind="configuration")


def data_folder() -> Path:
    """Return the folder of jobs of the web page: ``RBVSR_DATA``, or else the user's data folder.

    Raises:
        MissingDependencyError: the variable is not set and platformdirs is not installed.
    """
    return _user_folder("RBVSR_DATA", kind="data")


def cache_key(*values: Any) -> str:
    """Return a short name that depends on all of the JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:20]


def _user_folder(variable: str, *, kind: Literal["cache", "configuration", "data"]) -> Path:
    if chosen := os.environ.get(variable):
        return Path(chosen)
    try:
        import platformdirs
    except ImportError:
        raise MissingDependencyError(
            "platformdirs",
            extra="web" if kind == "data" else "engines",
            purpose=f"finding the user's {kind} folder",
        ) from None
    if kind == "cache":
        return platformdirs.user_cache_path("rbvsr-deploy", appauthor=False)
    if kind == "data":
        return platformdirs.user_data_path("rbvsr-deploy", appauthor=False)
    return platformdirs.user_config_path("rbvsr-deploy", appauthor=False)
