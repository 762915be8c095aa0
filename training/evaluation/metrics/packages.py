"""Finds weights in packages without importing them, and reads pickles without running code."""

from __future__ import annotations

import importlib.util
import io
import pickle
from pathlib import Path
from typing import Any

from rbvsr_deploy.errors import MediaError, first_line

__all__ = ["installed_file", "read_pickle"]

# Names that pickled arrays are built from, in older and newer versions of NumPy.
_ARRAYS = {
    (module, name)
    for package in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{package}.multiarray", "_reconstruct"),
        (f"{package}.multiarray", "scalar"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    )
}


def installed_file(package: str, name: str) -> Path | None:
    """Find a file in the folder of a package; ``None`` if the package is not installed or lacks the
    file.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / name
        if path.is_file():
            return path
    return None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_pickle(path: Path) -> Any:
    """Read the numbers, text, containers and arrays of a pickle; no other code in it is run.

    Raises:
        MediaError: the file cannot be read or contains anything else.
    """
    try:
        return _Unpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle can raise any exception
        raise MediaError(f"cannot read {path}: {first_line(error)}") from None
